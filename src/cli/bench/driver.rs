//! A driver that is measured, whichever it is: its calls with their times, and a ledger of what they made, by which all of
//! it is removed again, and nothing else.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tonic::{Response, Status};
use uuid::Uuid;

use super::super::{client::Daemon, client::refused, volume::capability};
use crate::{
    bytes::Bytes,
    error::{Doing, Result},
    filesystem::Filesystem,
    proto::{
        CapacityRange, ControllerGetCapabilitiesRequest, ControllerGetVolumeRequest,
        ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateSnapshotRequest,
        CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, GetCapacityRequest,
        ListVolumesRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetInfoResponse,
        NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
        NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, TopologyRequirement, VolumeCapability,
        VolumeContentSource, controller_service_capability::rpc::Type as Controls,
        node_service_capability::rpc::Type as Nodes, volume_capability::access_mode::Mode,
        volume_content_source::Type as Source,
    },
};

/// An answer, and the milliseconds it took.
pub(super) type Timed<T> = Result<(T, f64)>;

/// What sort of volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sort {
    /// A raw device where there is none.
    pub(super) filesystem: Option<Filesystem>,
    pub(super) size: Bytes,
}

impl Sort {
    pub(super) const fn raw(size: Bytes) -> Self {
        Self { filesystem: None, size }
    }

    pub(super) const fn ext4(size: Bytes) -> Self {
        Self { filesystem: Some(Filesystem::Ext4), size }
    }

    fn capability(self) -> VolumeCapability {
        let mut how = capability(self.filesystem.is_none(), self.filesystem);
        // The one that every driver knows.
        how.access_mode =
            Some(crate::proto::volume_capability::AccessMode { mode: Mode::SingleNodeWriter.into() });
        how
    }
}

impl std::fmt::Display for Sort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.filesystem.map_or_else(|| "raw".to_owned(), |filesystem| filesystem.to_string());
        write!(f, "{name} {}", self.size)
    }
}

/// A volume that we made.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) id: String,
    name: String,
    sort: Sort,
    context: BTreeMap<String, String>,
}

/// A snapshot that we made.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub(super) id: String,
    name: String,
}

/// What was asked for and is not known to be gone, by name.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) volumes: BTreeMap<String, Asked<CreateVolumeRequest>>,
    pub(super) snapshots: BTreeMap<String, Asked<CreateSnapshotRequest>>,
}

/// Something asked for.
#[derive(Clone)]
pub(super) struct Asked<T> {
    pub(super) request: T,
    /// Not known before the answer.
    pub(super) id: Option<String>,
    /// It may be granted, staged, published.
    pub(super) used: bool,
}

impl<T> Asked<T> {
    const fn new(request: T) -> Self {
        Self { request, id: None, used: false }
    }
}

/// What it offers beyond what each driver must.
#[derive(Debug, Default)]
struct Offers {
    controls: Vec<i32>,
    nodes: Vec<i32>,
}

/// A driver, and what was made with it.
pub(super) struct Driver {
    pub(super) name: String,
    pub(super) daemon: Daemon,
    offers: Offers,
    node: NodeInfo,
    pub(super) root: PathBuf,
    /// Begins the names of everything that this run makes.
    run: String,
    counter: AtomicU64,
    ledger: Mutex<Ledger>,
}

type NodeInfo = NodeGetInfoResponse;

async fn timed<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Timed<T> {
    let begun = Instant::now();
    let answer = call.await;
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    Ok((answer.map_err(refused)?.into_inner(), took))
}

impl Driver {
    /// Asks a driver what it offers. What it mounts goes below `root`, which must not exist.
    pub(super) async fn new(name: &str, daemon: Daemon, root: PathBuf) -> Result<Self> {
        let answer =
            daemon.controller().controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await;
        let controls = answer.map_err(refused)?.into_inner().capabilities.into_iter().filter_map(|offered| {
            use crate::proto::controller_service_capability::Type::Rpc;
            let Some(Rpc(rpc)) = offered.r#type else { return None };
            Some(rpc.r#type)
        });
        let controls = controls.collect();
        let answer = daemon.node().node_get_capabilities(NodeGetCapabilitiesRequest {}).await;
        let nodes = answer.map_err(refused)?.into_inner().capabilities.into_iter().filter_map(|offered| {
            use crate::proto::node_service_capability::Type::Rpc;
            let Some(Rpc(rpc)) = offered.r#type else { return None };
            Some(rpc.r#type)
        });
        let offers = Offers { controls, nodes: nodes.collect() };
        let answer = daemon.node().node_get_info(NodeGetInfoRequest {}).await;
        let node = answer.map_err(refused)?.into_inner();
        fs::create_dir(&root).doing(|| format!("make {}", root.display()))?;
        let run = format!("bench-{}", &Uuid::new_v4().simple().to_string()[..8]);
        let (counter, ledger) = (AtomicU64::new(0), Mutex::default());
        Ok(Self { name: name.to_owned(), daemon, offers, node, root, run, counter, ledger })
    }

    /// The same driver after it was started again.
    pub(super) fn reconnect(&mut self, daemon: Daemon) {
        self.daemon = daemon;
    }

    pub(super) fn controls(&self, what: Controls) -> bool {
        self.offers.controls.contains(&what.into())
    }

    fn nodes(&self, what: Nodes) -> bool {
        self.offers.nodes.contains(&what.into())
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh_name(&self) -> String {
        format!("{}-{}", self.run, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    fn staging(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}-staging"))
    }

    /// Where a published volume is.
    pub(super) fn target(&self, made: &Made) -> PathBuf {
        self.root.join(&made.name)
    }

    pub(super) async fn create(&self, sort: Sort, from: Option<Source>) -> Timed<Made> {
        let topology = self
            .node
            .accessible_topology
            .clone()
            .map(|here| TopologyRequirement { requisite: vec![here.clone()], preferred: vec![here] });
        let request = CreateVolumeRequest {
            name: self.fresh_name(),
            capacity_range: Some(CapacityRange { required_bytes: sort.size.signed(), limit_bytes: 0 }),
            volume_capabilities: vec![sort.capability()],
            volume_content_source: from.map(|source| VolumeContentSource { r#type: Some(source) }),
            accessibility_requirements: topology,
            ..CreateVolumeRequest::default()
        };
        let name = request.name.clone();
        self.ledger().volumes.insert(name.clone(), Asked::new(request.clone()));
        let (answer, took) = timed(self.daemon.controller().create_volume(request)).await?;
        let volume = answer.volume.unwrap_or_default();
        if let Some(asked) = self.ledger().volumes.get_mut(&name) {
            asked.id = Some(volume.volume_id.clone());
        }
        Ok((Made { id: volume.volume_id, name, sort, context: volume.volume_context }, took))
    }

    pub(super) async fn delete(&self, made: Made) -> Timed<()> {
        let request = DeleteVolumeRequest { volume_id: made.id, ..DeleteVolumeRequest::default() };
        let (_, took) = timed(self.daemon.controller().delete_volume(request)).await?;
        self.ledger().volumes.remove(&made.name);
        Ok(((), took))
    }

    pub(super) async fn get(&self, made: &Made) -> Timed<()> {
        let request = ControllerGetVolumeRequest { volume_id: made.id.clone() };
        let (_, took) = timed(self.daemon.controller().controller_get_volume(request)).await?;
        Ok(((), took))
    }

    /// A page of 100.
    pub(super) async fn list(&self) -> Timed<()> {
        let request = ListVolumesRequest { max_entries: 100, ..ListVolumesRequest::default() };
        let (_, took) = timed(self.daemon.controller().list_volumes(request)).await?;
        Ok(((), took))
    }

    /// How much more its pool may promise; without end where it does not say.
    pub(super) async fn may_promise(&self) -> Result<Bytes> {
        if !self.controls(Controls::GetCapacity) {
            return Ok(Bytes::MAX);
        }
        let (answer, _) = timed(self.daemon.controller().get_capacity(GetCapacityRequest::default())).await?;
        Ok(Bytes::try_from(answer.available_capacity).unwrap_or_default())
    }

    pub(super) async fn snapshot(&self, made: &Made) -> Timed<Cut> {
        let name = self.fresh_name();
        let request = CreateSnapshotRequest {
            source_volume_id: made.id.clone(),
            name: name.clone(),
            ..CreateSnapshotRequest::default()
        };
        self.ledger().snapshots.insert(name.clone(), Asked::new(request.clone()));
        let (answer, took) = timed(self.daemon.controller().create_snapshot(request)).await?;
        let id = answer.snapshot.unwrap_or_default().snapshot_id;
        if let Some(asked) = self.ledger().snapshots.get_mut(&name) {
            asked.id = Some(id.clone());
        }
        Ok((Cut { id, name }, took))
    }

    pub(super) async fn delete_snapshot(&self, cut: Cut) -> Timed<()> {
        let request = DeleteSnapshotRequest { snapshot_id: cut.id, ..DeleteSnapshotRequest::default() };
        let (_, took) = timed(self.daemon.controller().delete_snapshot(request)).await?;
        self.ledger().snapshots.remove(&cut.name);
        Ok(((), took))
    }

    /// The right to use it; `None` where this driver grants none.
    pub(super) async fn grant(&self, made: &Made) -> Timed<BTreeMap<String, String>> {
        if let Some(entry) = self.ledger().volumes.get_mut(&made.name) {
            entry.used = true;
        }
        if !self.controls(Controls::PublishUnpublishVolume) {
            return Ok((BTreeMap::new(), 0.0));
        }
        let request = ControllerPublishVolumeRequest {
            volume_id: made.id.clone(),
            node_id: self.node.node_id.clone(),
            volume_capability: Some(made.sort.capability()),
            volume_context: made.context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let (answer, took) = timed(self.daemon.controller().controller_publish_volume(request)).await?;
        Ok((answer.publish_context, took))
    }

    pub(super) async fn stage(&self, made: &Made, publish: &BTreeMap<String, String>) -> Timed<()> {
        let staging = self.staging(&made.name);
        if !self.nodes(Nodes::StageUnstageVolume) {
            return Ok(((), 0.0));
        }
        // As kubelet does.
        fs::create_dir_all(&staging).doing(|| format!("make {}", staging.display()))?;
        let request = NodeStageVolumeRequest {
            volume_id: made.id.clone(),
            publish_context: publish.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(made.sort.capability()),
            volume_context: made.context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        let (_, took) = timed(self.daemon.node().node_stage_volume(request)).await?;
        Ok(((), took))
    }

    pub(super) async fn publish(&self, made: &Made, publish: &BTreeMap<String, String>) -> Timed<()> {
        let request = NodePublishVolumeRequest {
            volume_id: made.id.clone(),
            publish_context: publish.clone(),
            staging_target_path: self.staging(&made.name).display().to_string(),
            target_path: self.target(made).display().to_string(),
            volume_capability: Some(made.sort.capability()),
            volume_context: made.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        let (_, took) = timed(self.daemon.node().node_publish_volume(request)).await?;
        Ok(((), took))
    }

    /// Granted, staged and published.
    pub(super) async fn use_it(&self, made: &Made) -> Result<()> {
        let (context, _) = self.grant(made).await?;
        self.stage(made, &context).await?;
        self.publish(made, &context).await.map(drop)
    }

    pub(super) async fn stats(&self, made: &Made) -> Timed<()> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: made.id.clone(),
            volume_path: self.target(made).display().to_string(),
            staging_target_path: self.staging(&made.name).display().to_string(),
        };
        let (_, took) = timed(self.daemon.node().node_get_volume_stats(request)).await?;
        Ok(((), took))
    }

    pub(super) async fn unpublish(&self, made: &Made) -> Timed<()> {
        self.unpublish_name(&made.id, &made.name).await
    }

    pub(super) async fn unpublish_name(&self, id: &str, name: &str) -> Timed<()> {
        let target_path = self.root.join(name).display().to_string();
        let request = NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path };
        let (_, took) = timed(self.daemon.node().node_unpublish_volume(request)).await?;
        Ok(((), took))
    }

    pub(super) async fn unstage(&self, made: &Made) -> Timed<()> {
        self.unstage_name(&made.id, &made.name).await
    }

    pub(super) async fn unstage_name(&self, id: &str, name: &str) -> Timed<()> {
        if !self.nodes(Nodes::StageUnstageVolume) {
            return Ok(((), 0.0));
        }
        let staging = self.staging(name);
        let request = NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: staging.display().to_string(),
        };
        let (_, took) = timed(self.daemon.node().node_unstage_volume(request)).await?;
        remove_own(&staging)?;
        Ok(((), took))
    }

    pub(super) async fn ungrant(&self, made: &Made) -> Timed<()> {
        self.ungrant_name(&made.id, &made.name).await
    }

    pub(super) async fn ungrant_name(&self, id: &str, name: &str) -> Timed<()> {
        let mut took = 0.0;
        if self.controls(Controls::PublishUnpublishVolume) {
            let request = ControllerUnpublishVolumeRequest {
                volume_id: id.to_owned(),
                node_id: self.node.node_id.clone(),
                ..ControllerUnpublishVolumeRequest::default()
            };
            took = timed(self.daemon.controller().controller_unpublish_volume(request)).await?.1;
        }
        if let Some(entry) = self.ledger().volumes.get_mut(name) {
            entry.used = false;
        }
        Ok(((), took))
    }

    /// The way back from [`Driver::use_it`].
    pub(super) async fn leave_it(&self, made: &Made) -> Result<()> {
        self.unpublish(made).await?;
        self.unstage(made).await?;
        self.ungrant(made).await.map(drop)
    }
}

/// Removes a directory of ours that a driver may have removed already.
fn remove_own(path: &Path) -> Result<()> {
    super::super::scratch::gone(path, fs::remove_dir)
}
