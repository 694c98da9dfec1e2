//! `lagan demo`.
use crate::error::Result;
use clap::Args;
use std::process::ExitCode;
/// x
#[derive(Debug, Args)]
pub(super) struct DemoArgs {}
pub(super) fn run(_args: &DemoArgs) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
