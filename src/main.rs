//! The one binary: hands over to the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    lagan::cli::run(std::env::args_os())
}
