//! The command line. It asks the daemon, as any orchestrator would, and works on a pool itself only where no daemon
//! serves it (`pool init`, `pool adopt`) or where it merely looks (`doctor`).

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::{
    config::{self, Config, Mode, Overrides},
    error::{Chain, Error, ErrorKind, Result},
};

mod backup;
mod bench;
mod certs;
mod client;
mod demo;
mod doctor;
mod host;
mod import;
mod mount;
mod out;
mod pool;
mod scratch;
mod serve;
mod snapshot;
mod volume;

/// Where the configuration is unless `--config` says otherwise; without the file the defaults hold.
const CONFIG: &str = "/etc/lagan/config.toml";

/// Volumes that outlive their containers: a CSI driver for Linux block storage.
#[derive(Debug, Parser)]
#[command(name = "lagan", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
struct Common {
    /// Configuration file [default: /etc/lagan/config.toml, where it exists].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Socket of the daemon, over the configuration and CSI_ENDPOINT.
    #[arg(long, global = true, value_name = "SOCKET")]
    endpoint: Option<String>,
    /// Name of this node, over the configuration and LAGAN_NODE_ID.
    #[arg(long, global = true, value_name = "NAME")]
    node_id: Option<String>,
    /// How answers are printed.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs; stable.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the driver.
    Serve(serve::ServeArgs),
    /// Show a volume being created, mounted, snapshotted, restored, cloned and grown, on a throw-away pool.
    Demo(demo::DemoArgs),
    /// Measure a CSI driver beside the floors of this machine, and beside another driver.
    Bench(bench::BenchArgs),
    /// Say what is missing on this host and how to mend it.
    Doctor(doctor::DoctorArgs),
    /// Pools, from which volumes are cut.
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Volumes.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Snapshots.
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Hosts of a cluster.
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Make the certificates by which the hosts and routers of a cluster know one another.
    Certs(certs::CertsArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

impl Common {
    fn overrides(&self) -> Overrides {
        // Orchestrators that start the driver tell it its socket in the environment. One file may serve many hosts: then a
        // container is told its node there, which holds for every command in it.
        let told = |given: &Option<String>, variable: &str| {
            let text = given.clone().or_else(|| std::env::var(variable).ok());
            text.filter(|text| !text.is_empty())
        };
        Overrides {
            endpoint: told(&self.endpoint, "CSI_ENDPOINT"),
            node_id: told(&self.node_id, "LAGAN_NODE_ID"),
        }
    }

    /// The file of the configuration, where there is one.
    fn file(&self) -> Option<PathBuf> {
        let default = PathBuf::from(CONFIG);
        self.config.clone().or_else(|| default.exists().then_some(default))
    }

    /// Reads the configuration.
    fn load(&self, mode: Mode) -> Result<Config> {
        config::load(self.file().as_deref(), mode, &self.overrides())
            .map_err(|problems| Error::new(ErrorKind::Invalid, problems.to_string()))
    }
}

/// Runs the command that `arguments` name. Exit status: 0 done, 1 failed, 2 not understood.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Help and version come this way too; clap knows their exit status.
        Err(message) => {
            message.print().unwrap_or_default();
            return if message.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let common = &cli.common;
    let result = match cli.command {
        Command::Serve(args) => serve::run(common, &args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(common, &args),
        Command::Doctor(args) => doctor::run(common, args),
        Command::Pool(command) => pool::run(common, command),
        Command::Volume(command) => volume::run(common, command),
        Command::Snapshot(command) => snapshot::run(common, command),
        Command::Host(command) => host::run(common, command),
        Command::Certs(args) => certs::run(common, &args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "lagan", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => manual(),
    };
    result.unwrap_or_else(|error| {
        out::talk(&format!("lagan: {}", Chain(&error)));
        ExitCode::FAILURE
    })
}

fn manual() -> Result<ExitCode> {
    let print = clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout());
    print.map_err(|error| Error::io("print the manual page", error))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a command's asynchronous part on this thread.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::io("start the runtime", error))?;
    let result = runtime.block_on(work);
    // What still blocks in a system call must not keep the process.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_hang_together() {
        Cli::command().debug_assert();
    }
}
