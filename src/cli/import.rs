//! `lagan volume import`: what is not ours becomes a volume. The daemon does it, asked by the same call as for any other
//! volume, with what to import beside the request: no orchestrator sends that.

use clap::Args;
use tonic::{Request, metadata::MetadataValue};

use super::{
    client::{Daemon, refused, with_progress},
    volume::capability,
};
use crate::{
    bytes::Bytes,
    config::Config,
    error::{Doing, Error, ErrorKind, Result},
    id::PoolName,
    proto::{self, CapacityRange, CreateVolumeRequest, IMPORT},
};

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Name of the new volume; the same name and source again give the same volume.
    name: String,
    #[command(flatten)]
    from: From,
    /// Make it longer than its source, such as 10GiB.
    #[arg(long)]
    size: Option<Bytes>,
    /// Pool to put it into [default: the first one].
    #[arg(long)]
    pool: Option<PoolName>,
}

/// What to import: one of these. It stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct From {
    /// A thin volume of LVM in the pool's own thin pool, mounted or not: taken as it is at one instant.
    #[arg(long, value_name = "VG/LV")]
    lv: Option<String>,
    /// A thin device of the pool that no record knows, as `lagan doctor` lists them.
    #[arg(long, value_name = "NUMBER")]
    thin_id: Option<u32>,
    /// A block device or file that is not in use: copied, but for its zeros.
    #[arg(long, value_name = "PATH")]
    device: Option<std::path::PathBuf>,
}

impl From {
    fn text(&self) -> Result<String> {
        match self {
            Self { lv: Some(name), .. } => Ok(format!("lv:{name}")),
            Self { thin_id: Some(number), .. } => Ok(format!("thin:{number}")),
            Self { device: Some(path), .. } => {
                let path = std::path::absolute(path).doing(|| "find the device")?;
                let text = path.to_str().map(|path| format!("device:{path}"));
                text.ok_or_else(|| Error::new(ErrorKind::Invalid, "the path is not text"))
            }
            Self { .. } => Err(Error::new(ErrorKind::Invalid, "nothing to import is named")),
        }
    }
}

/// Asks the daemon, and shows how far it is.
pub(super) async fn import(config: &Config, args: ImportArgs) -> Result<proto::Volume> {
    let range = |size: Bytes| CapacityRange { required_bytes: size.signed(), limit_bytes: 0 };
    let mut request = Request::new(CreateVolumeRequest {
        name: args.name.clone(),
        capacity_range: args.size.map(range),
        volume_capabilities: vec![capability(true, None)],
        parameters: args.pool.iter().map(|pool| ("pool".to_owned(), pool.to_string())).collect(),
        ..CreateVolumeRequest::default()
    });
    request.metadata_mut().insert_bin(IMPORT, MetadataValue::from_bytes(args.from.text()?.as_bytes()));
    let mut controller = Daemon::connect(config).await?.controller();
    let call = controller.create_volume(request);
    let answer = with_progress(config, &args.name, call).await.map_err(refused)?.into_inner();
    Ok(answer.volume.unwrap_or_default())
}
