//! `lagan serve`: the daemon.

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use tracing::level_filters::LevelFilter;

use super::{Common, block_on};
use crate::{
    app::{App, serve_router},
    config::Mode,
    error::{Doing, Result},
    sys::minder::Minder,
    telemetry::{LogFormat, log_to_stderr},
};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Which services to offer.
    #[arg(long, default_value = "all")]
    mode: Mode,
    /// Least important log lines to write: error, warn, info, debug, trace or off.
    #[arg(long, default_value = "info")]
    log_level: LevelFilter,
    /// How log lines look.
    #[arg(long, default_value = "text")]
    log_format: LogFormat,
}

pub(super) fn run(common: &Common, args: &ServeArgs) -> Result<ExitCode> {
    let config = common.load(args.mode)?;
    // Before there is a second thread.
    let minder = if args.mode.controller() {
        Some(Arc::new(Minder::start().doing(|| "start the minder")?))
    } else {
        None
    };
    log_to_stderr(args.log_level, args.log_format);
    if args.mode == Mode::Router {
        block_on(async { serve_router(&config).await })?;
        return Ok(ExitCode::SUCCESS);
    }
    block_on(async { App::new(config, args.mode, minder)?.serve().await })?;
    Ok(ExitCode::SUCCESS)
}
