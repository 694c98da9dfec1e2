//! `lagan pool`: what volumes are cut from.

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;
use serde_json::Value;

use super::{Common, Output, block_on, client::Daemon, client::refused, out};
use crate::{
    bytes::Bytes,
    config::{Config, Mode, PoolConfig},
    error::{Chain, Error, ErrorKind, Result},
    id::PoolName,
    pool::file,
    proto::GetCapacityRequest,
    sys::cmd::Commands,
};

#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// List the pools of the configuration.
    List,
    /// Show one pool.
    Show {
        /// Its name.
        name: PoolName,
    },
    /// Make a pool in an empty directory.
    #[command(visible_alias = "create")]
    Init {
        /// The directory; it is made where it is missing.
        directory: PathBuf,
        /// Make the pool an XFS in one preallocated file of this length, which shares blocks on any filesystem.
        #[arg(long, value_name = "SIZE")]
        image: Option<Bytes>,
    },
    /// Make this machine the one that serves a pool, when its disk has moved here.
    Adopt {
        /// The pool's directory.
        directory: PathBuf,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Let go of a pool that is not served: unmount its image, so that its disk can be taken away.
    Close {
        /// The pool's directory.
        directory: PathBuf,
    },
    /// Delete an empty pool: its directory holds no volume and no snapshot.
    Delete {
        /// The pool's directory.
        directory: PathBuf,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(common: &Common, command: PoolCommand) -> Result<ExitCode> {
    let config = common.load(Mode::All)?;
    match command {
        PoolCommand::List => block_on(list(&config, None, common.output))?,
        PoolCommand::Show { name } => block_on(list(&config, Some(&name), common.output))?,
        PoolCommand::Init { directory, image } => {
            let id = file::init(&directory, &config.machine_id, image, &Commands::find())?;
            out::talk(&format!("pool {id} made in {}", directory.display()));
            if !config.pools.iter().any(|pool| pool.path == directory) {
                out::talk("to serve it, add to the configuration:\n");
                // The first pool that is configured takes the place of the built-in one, which may be in use.
                if config.default_pool
                    && let Some(built_in) = config.pools.first().filter(|pool| pool.path.exists())
                {
                    out::line(&format!("{}\n", configuration_of(&built_in.path)))?;
                }
                out::line(&configuration_of(&directory))?;
            }
        }
        PoolCommand::Adopt { directory, yes } => {
            let (id, machine) = file::identify(&directory)?;
            let plan = format!(
                "pool {id} in {} belongs to machine {machine}. It will belong to this one, {}. Two machines that \
                 serve one pool destroy it: make sure that {machine} no longer does.",
                directory.display(),
                config.machine_id
            );
            if !out::confirmed(&plan, yes) {
                return Ok(ExitCode::FAILURE);
            }
            file::adopt(&directory, &config.machine_id)?;
            out::talk("adopted");
        }
        PoolCommand::Close { directory } => file::close(&directory)?,
        PoolCommand::Delete { directory, yes } => {
            let (id, _) = file::identify(&directory)?;
            let plan = format!("pool {id} in {} will be deleted; it must hold nothing", directory.display());
            if !out::confirmed(&plan, yes) {
                return Ok(ExitCode::FAILURE);
            }
            file::delete(&directory)?;
            out::talk("deleted");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The lines that make a directory a pool of the configuration.
fn configuration_of(directory: &std::path::Path) -> String {
    let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = if name.parse::<PoolName>().is_ok() { name } else { "default".to_owned() };
    format!("[[pool]]\nname = {name:?}\nkind = \"file\"\npath = {:?}", directory.display().to_string())
}

async fn list(config: &Config, only: Option<&PoolName>, output: Output) -> Result<()> {
    let daemon = Daemon::connect(config).await?;
    let mut rows = out::Rows::new(&["name", "kind", "path", "id", "available", "largest_volume", "state"]);
    let wanted: Vec<_> =
        config.pools.iter().filter(|pool| only.is_none_or(|only| pool.name == *only)).collect();
    if let (Some(only), true) = (only, wanted.is_empty()) {
        return Err(Error::new(ErrorKind::NotFound, format!("the configuration has no pool {only}")));
    }
    for pool in wanted {
        let parameters = [("pool".to_owned(), pool.name.to_string())].into();
        let request = GetCapacityRequest { parameters, ..GetCapacityRequest::default() };
        let (available, largest, state) = match daemon.controller().get_capacity(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let largest = answer.maximum_volume_size.unwrap_or_default();
                (out::size(answer.available_capacity, output), out::size(largest, output), "open".to_owned())
            }
            Err(status) => (Value::Null, Value::Null, refused(status).to_string()),
        };
        let path = pool.path.display().to_string();
        rows.add([
            pool.name.as_str().into(),
            "file".into(),
            path.into(),
            identity(pool),
            available,
            largest,
            state.into(),
        ]);
    }
    rows.print(output)
}

fn identity(pool: &PoolConfig) -> Value {
    match file::identify(&pool.path) {
        Ok((id, _)) => id.to_string().into(),
        Err(error) => {
            tracing::debug!(error = %Chain(&error), "pool not identified");
            Value::Null
        }
    }
}
