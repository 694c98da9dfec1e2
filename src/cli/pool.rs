//! `lagan pool`: what volumes are cut from.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    Common, Output,
    backup::{BackupArgs, RestoreArgs, backup, restore},
    block_on,
    client::Daemon,
    client::refused,
    out,
};
use crate::{
    app::thin_place,
    bytes::Bytes,
    config::{Config, Mode, Place, is_lvm_name},
    error::{Chain, Error, ErrorKind, Result},
    id::{PoolId, PoolName},
    pool::{file, thin},
    proto::GetCapacityRequest,
    sys::cmd::Commands,
};

/// Where a pool is: one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Where {
    /// The directory; it is made where a new pool needs it.
    directory: Option<PathBuf>,
    /// A thin pool of LVM, made by `lvcreate --type thin-pool`.
    #[arg(long, value_name = "VG/POOL", value_parser = parse_lvm)]
    lvm: Option<Place>,
    /// A disk, or a partition: all of it.
    #[arg(long, value_name = "DEVICE")]
    device: Option<PathBuf>,
}

impl Where {
    pub(super) fn place(self) -> Place {
        let device = self.device.map(Place::Block);
        self.lvm.or(device).unwrap_or_else(|| Place::File(self.directory.unwrap_or_default()))
    }
}

fn parse_lvm(text: &str) -> std::result::Result<Place, String> {
    let names = text.split_once('/').filter(|(vg, pool)| is_lvm_name(vg) && is_lvm_name(pool));
    let (vg, thin_pool) = names.ok_or("expected the names of a volume group and a thin pool, VG/POOL")?;
    Ok(Place::Lvm { vg: vg.to_owned(), thin_pool: thin_pool.to_owned() })
}

/// The identity of a pool, and the machine that it belongs to.
pub(super) fn identify(place: &Place, commands: &Commands) -> Result<(PoolId, String)> {
    match thin_place(place) {
        Ok(place) => thin::identify(&place, commands),
        Err(directory) => file::identify(directory),
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// List the pools of the configuration.
    List,
    /// Show one pool.
    Show {
        /// Its name.
        name: PoolName,
    },
    /// Make a pool: in an empty directory, of a thin pool of LVM, or of a blank disk.
    #[command(visible_alias = "create")]
    Init {
        #[command(flatten)]
        place: Where,
        /// Make the pool an XFS in one preallocated file of this length, which shares blocks on any filesystem.
        #[arg(long, value_name = "SIZE", conflicts_with_all = ["lvm", "device"])]
        image: Option<Bytes>,
        /// Destroy what is on the disk of this serial number or uuid.
        #[arg(long, value_name = "SERIAL|UUID", requires = "device")]
        destroy: Option<String>,
    },
    /// Make this machine the one that serves a pool, when its disk has moved here.
    Adopt {
        #[command(flatten)]
        place: Where,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Write all records of a pool as text, for a time when they are lost. It may be served meanwhile.
    Backup(BackupArgs),
    /// Put records back that are lost or damaged. The pool must not be served.
    Restore(RestoreArgs),
    /// Let go of a pool that is not served, so that its disk can be taken away.
    #[command(visible_alias = "close")]
    Stop {
        #[command(flatten)]
        place: Where,
    },
    /// Make a thin pool longer, in use or not: by what its volume group has free, or its disk has grown by.
    Extend {
        #[command(flatten)]
        place: Where,
        /// How much longer; a pool on a disk of its own takes all that there is.
        #[arg(long, value_name = "SIZE", required_unless_present_any = ["device", "metadata"])]
        by: Option<Bytes>,
        /// How much longer its metadata.
        #[arg(long, value_name = "SIZE", conflicts_with = "device")]
        metadata: Option<Bytes>,
    },
    /// Write the metadata of a pool on a disk of its own anew, where it does not start.
    Repair {
        /// The disk.
        #[arg(long)]
        device: PathBuf,
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
        PoolCommand::List => block_on(listed(&config, None, common.output))?.print(common.output)?,
        PoolCommand::Show { name } => {
            block_on(listed(&config, Some(&name), common.output))?.print(common.output)?;
        }
        PoolCommand::Init { place, image, destroy } => {
            init(&config, &place.place(), image, destroy.as_deref())?
        }
        PoolCommand::Adopt { place, yes } => {
            let (place, commands) = (place.place(), Commands::find());
            let (id, machine) = identify(&place, &commands)?;
            let plan = format!(
                "pool {id} in {place} belongs to machine {machine}. It will belong to this one, {}. Two machines that \
                 serve one pool destroy it: make sure that {machine} no longer does.",
                config.machine_id
            );
            if !out::confirmed(&plan, yes) {
                return Ok(ExitCode::FAILURE);
            }
            match thin_place(&place) {
                Ok(place) => thin::adopt(&place, &config.machine_id, &commands)?,
                Err(directory) => file::adopt(directory, &config.machine_id)?,
            };
            out::talk("adopted");
        }
        PoolCommand::Backup(args) => return backup(args),
        PoolCommand::Restore(args) => return restore(&config.machine_id, args),
        PoolCommand::Stop { place } => match thin_place(&place.place()) {
            Ok(place) => thin::stop(&place, &Commands::find())?,
            Err(directory) => file::close(directory)?,
        },
        PoolCommand::Extend { place, by, metadata } => {
            extend(&config.machine_id, &place.place(), by, metadata)?
        }
        PoolCommand::Repair { device } => {
            thin::repair(&device, &config.machine_id, &Commands::find())?;
            out::talk(
                "its metadata was written anew: start the driver, and compare what is there with what should be",
            );
        }
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

fn init(config: &Config, place: &Place, image: Option<Bytes>, destroy: Option<&str>) -> Result<()> {
    let (machine, commands) = (&config.machine_id, Commands::find());
    let id = match thin_place(place) {
        Ok(place) => thin::init(&place, machine, destroy, &commands)?,
        Err(directory) => file::init(directory, machine, image, &commands)?,
    };
    out::talk(&format!("pool {id} made in {place}"));
    if config.pools.iter().any(|pool| pool.place == *place) {
        return Ok(());
    }
    out::talk("to serve it, add to the configuration:\n");
    // The first pool that is configured takes the place of the built-in one, which may be in use.
    if config.default_pool
        && let Some(built_in) = config.pools.first().filter(|pool| is_there(&pool.place))
    {
        out::line(&format!("{}\n", configuration_of(&built_in.place)))?;
    }
    out::line(&configuration_of(place))
}

fn extend(machine: &str, place: &Place, by: Option<Bytes>, metadata: Option<Bytes>) -> Result<()> {
    let commands = Commands::find();
    match thin_place(place) {
        Ok(place) => {
            if !thin::extend(&place, machine, by, metadata, &commands)? {
                out::talk("the disk is as long as the pool: there is nothing to take in");
                return Ok(());
            }
        }
        Err(directory) => {
            let what =
                format!("{} takes the space of its filesystem: make that one longer", directory.display());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
    }
    out::talk("extended");
    Ok(())
}

fn is_there(place: &Place) -> bool {
    matches!(place, Place::File(path) if path.exists())
}

/// The lines that make a place a pool of the configuration.
fn configuration_of(place: &Place) -> String {
    let (name, place) = match place {
        Place::File(path) => {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (name, format!("kind = \"file\"\npath = {:?}", path.display().to_string()))
        }
        Place::Lvm { vg, thin_pool } => {
            (thin_pool.clone(), format!("kind = \"lvm\"\nvg = {vg:?}\nthin_pool = {thin_pool:?}"))
        }
        Place::Block(device) => {
            let name = device.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (name, format!("kind = \"block\"\ndevice = {:?}", device.display().to_string()))
        }
    };
    let name = if name.parse::<PoolName>().is_ok() { name } else { "default".to_owned() };
    format!("[[pool]]\nname = {name:?}\n{place}")
}

pub(super) async fn listed(config: &Config, only: Option<&PoolName>, output: Output) -> Result<out::Rows> {
    let daemon = Daemon::connect(config).await?;
    let mut rows = out::Rows::new(&["name", "kind", "place", "id", "available", "largest_volume", "state"]);
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
        rows.add([
            pool.name.as_str().into(),
            pool.place.kind().into(),
            pool.place.to_string().into(),
            identity(&pool.place),
            available,
            largest,
            state.into(),
        ]);
    }
    Ok(rows)
}

fn identity(place: &Place) -> Value {
    match identify(place, &Commands::find()) {
        Ok((id, _)) => id.to_string().into(),
        Err(error) => {
            tracing::debug!(error = %Chain(&error), "pool not identified");
            Value::Null
        }
    }
}
