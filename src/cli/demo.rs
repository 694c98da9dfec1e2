//! `lagan demo`: the main job on a throw-away pool, each step with its time. It is the real driver on real loop
//! devices, asked over its socket as an orchestrator would ask it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use tracing::level_filters::LevelFilter;

use super::{
    block_on,
    client::{Daemon, refused},
    out,
    scratch::{NODE, Scratch, connect},
    volume::capability,
};
use crate::{
    app::App,
    bytes::Bytes,
    config::{Config, Mode},
    digest::Digest,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::Filesystem,
    proto::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
        ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
        DeleteVolumeRequest, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
        NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeContentSource,
        volume_content_source::{SnapshotSource, Type, VolumeSource},
    },
    sys::{host, minder::Minder},
    telemetry::{LogFormat, log_to_stderr},
};

/// Length of the pool's image: an XFS with reflink in one file.
const POOL: Bytes = Bytes::gib(2);
/// Length of the volumes; they are sparse.
const VOLUME: Bytes = Bytes::gib(1);
/// What is written to the first one.
const DATA: Bytes = Bytes::mib(64);

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Where the throw-away pool is made and removed again; 2.1 GiB are needed.
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(args: &DemoArgs) -> Result<ExitCode> {
    if !host::may_mount() {
        return Err(Error::new(ErrorKind::Unavailable, "the demo mounts filesystems: run it as root"));
    }
    // Before there is a second thread.
    let minder = Arc::new(Minder::start().doing(|| "start the minder")?);
    log_to_stderr(LevelFilter::ERROR, LogFormat::Text);
    let scratch = Scratch::new(&args.directory, "demo", "off".to_owned(), 1000)?;
    let config = scratch.config()?;
    out::line(&format!(
        "A pool of {POOL} in one file (xfs with reflink), volumes of {VOLUME}; times include the call.\n"
    ))?;
    let begun = Instant::now();
    scratch.make_pool(Some(POOL))?;
    report("make the pool", begun.elapsed(), "")?;
    let shown = block_on(async {
        let app = App::new(config.clone(), Mode::All, Some(minder))?;
        let served = tokio::spawn(app.serve());
        let shown = show(&config, &scratch.root).await;
        served.abort();
        shown
    });
    let removed = scratch.remove(&[], &["targets/a", "targets/b", "targets/c"]);
    if removed.is_err() {
        out::talk(&format!("{} could not be removed", scratch.root.display()));
    }
    shown.and(removed)?;
    out::line("\nEverything is removed again. Next: README.md, \"For real\".")?;
    Ok(ExitCode::SUCCESS)
}

fn report(step: &str, took: Duration, remark: &str) -> Result<()> {
    let millis = took.as_secs_f64() * 1000.0;
    out::line(format!("{step:<44}{millis:>10.1} ms   {remark}").trim_end())
}

/// A volume as the demo handles it.
struct Shown {
    id: String,
    letter: &'static str,
}

/// The calls of an orchestrator, timed.
struct Show {
    daemon: Daemon,
    root: PathBuf,
}

impl Show {
    async fn create(
        &self,
        letter: &'static str,
        filesystem: Filesystem,
        from: Option<Type>,
        step: &str,
    ) -> Result<Shown> {
        let required_bytes = VOLUME.signed();
        let request = CreateVolumeRequest {
            name: format!("demo-{letter}"),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
            volume_capabilities: vec![capability(false, Some(filesystem))],
            volume_content_source: from.map(|source| VolumeContentSource { r#type: Some(source) }),
            ..CreateVolumeRequest::default()
        };
        let begun = Instant::now();
        let answer = self.daemon.controller().create_volume(request).await.map_err(refused)?.into_inner();
        report(step, begun.elapsed(), "")?;
        Ok(Shown { id: answer.volume.unwrap_or_default().volume_id, letter })
    }

    fn staging(&self, volume: &Shown) -> String {
        self.root.join("targets").join(volume.letter).display().to_string()
    }

    fn target(&self, volume: &Shown) -> String {
        format!("{}-shown", self.staging(volume))
    }

    async fn publish(&self, volume: &Shown, filesystem: Filesystem, step: &str) -> Result<()> {
        let how = Some(capability(false, Some(filesystem)));
        let begun = Instant::now();
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: NODE.to_owned(),
            volume_capability: how.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        self.daemon.controller().controller_publish_volume(request).await.map_err(refused)?;
        let request = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: self.staging(volume),
            volume_capability: how.clone(),
            ..NodeStageVolumeRequest::default()
        };
        self.daemon.node().node_stage_volume(request).await.map_err(refused)?;
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: self.staging(volume),
            target_path: self.target(volume),
            volume_capability: how,
            ..NodePublishVolumeRequest::default()
        };
        self.daemon.node().node_publish_volume(request).await.map_err(refused)?;
        report(step, begun.elapsed(), "grant, loop device, mount, bind")
    }

    async fn unpublish(&self, volume: &Shown) -> Result<()> {
        let (volume_id, target_path) = (volume.id.clone(), self.target(volume));
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path };
        self.daemon.node().node_unpublish_volume(request).await.map_err(refused)?;
        let request = NodeUnstageVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: self.staging(volume),
        };
        self.daemon.node().node_unstage_volume(request).await.map_err(refused)?;
        let request =
            ControllerUnpublishVolumeRequest { volume_id, ..ControllerUnpublishVolumeRequest::default() };
        self.daemon.controller().controller_unpublish_volume(request).await.map_err(refused)?;
        Ok(())
    }

    async fn delete(&self, volume: Shown) -> Result<()> {
        let request = DeleteVolumeRequest { volume_id: volume.id, ..DeleteVolumeRequest::default() };
        self.daemon.controller().delete_volume(request).await.map_err(refused)?;
        Ok(())
    }

    async fn grow(&self, volume: &Shown, filesystem: Filesystem) -> Result<()> {
        let twice = VOLUME.plus(VOLUME);
        let begun = Instant::now();
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: twice.signed(), limit_bytes: 0 }),
            ..ControllerExpandVolumeRequest::default()
        };
        self.daemon.controller().controller_expand_volume(request).await.map_err(refused)?;
        let request = NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: self.target(volume),
            ..NodeExpandVolumeRequest::default()
        };
        self.daemon.node().node_expand_volume(request).await.map_err(refused)?;
        let remark = format!("{filesystem}, mounted, to {twice}");
        report("grow it while it is in use", begun.elapsed(), &remark)
    }
}

async fn show(config: &Config, root: &Path) -> Result<()> {
    let show = Show { daemon: connect(config.endpoint.path()).await?, root: root.to_owned() };
    // A kernel that does not let us grow a mounted ext4 gets an xfs to grow.
    let filesystem = if host::may_grow_ext4() { Filesystem::Ext4 } else { Filesystem::Xfs };
    // Two lengths of the same kind come before: from the second one on a template is at hand.
    let first = show.create("warm", filesystem, None, "create a volume, the first of its kind").await?;
    let second = show.create("cold", filesystem, None, "create a volume, which leaves a template").await?;
    let volume = show.create("a", filesystem, None, "create a volume").await?;
    show.publish(&volume, filesystem, "publish it").await?;
    let data = Path::new(&show.target(&volume)).join("data");
    let written = write_random(&data)?;
    let begun = Instant::now();
    let request = CreateSnapshotRequest {
        source_volume_id: volume.id.clone(),
        name: "demo".to_owned(),
        ..CreateSnapshotRequest::default()
    };
    let snapshot = show.daemon.controller().create_snapshot(request).await.map_err(refused)?.into_inner();
    let snapshot_id = snapshot.snapshot.unwrap_or_default().snapshot_id;
    report("snapshot it while it is in use", begun.elapsed(), "")?;
    let begun = Instant::now();
    show.unpublish(&volume).await?;
    show.delete(volume).await?;
    report("destroy it", begun.elapsed(), "unpublished and deleted, data and all")?;
    let source = Type::Snapshot(SnapshotSource { snapshot_id: snapshot_id.clone() });
    let restored = show.create("b", filesystem, Some(source), "restore it from the snapshot").await?;
    show.publish(&restored, filesystem, "publish the restored volume").await?;
    compare(&Path::new(&show.target(&restored)).join("data"), &written)?;
    let source = Type::Volume(VolumeSource { volume_id: restored.id.clone() });
    let cloned = show.create("c", filesystem, Some(source), "clone it while it is in use").await?;
    show.publish(&cloned, filesystem, "publish the clone beside it").await?;
    compare(&Path::new(&show.target(&cloned)).join("data"), &written)?;
    show.grow(&restored, filesystem).await?;
    for volume in [&restored, &cloned] {
        show.unpublish(volume).await?;
    }
    for volume in [restored, cloned, first, second] {
        show.delete(volume).await?;
    }
    let request = DeleteSnapshotRequest { snapshot_id, ..DeleteSnapshotRequest::default() };
    show.daemon.controller().delete_snapshot(request).await.map_err(refused)?;
    Ok(())
}

fn write_random(path: &Path) -> Result<Digest> {
    let what = || format!("write {}", path.display());
    let mut data = Vec::new();
    File::open("/dev/urandom")
        .and_then(|random| random.take(DATA.get()).read_to_end(&mut data))
        .doing(what)?;
    let begun = Instant::now();
    let mut file = File::create(path).doing(what)?;
    file.write_all(&data).and_then(|()| file.sync_all()).doing(what)?;
    report(&format!("write {DATA} and flush"), begun.elapsed(), "")?;
    Ok(Digest::of([data.as_slice()]))
}

fn compare(path: &Path, written: &Digest) -> Result<()> {
    let read = fs::read(path).doing(|| format!("read {}", path.display()))?;
    if Digest::of([read.as_slice()]) != *written {
        return Err(Error::new(ErrorKind::Broken, format!("{} is not what was written", path.display())));
    }
    out::line("    byte for byte what was written")
}
