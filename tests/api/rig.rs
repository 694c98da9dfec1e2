//! The real services over the fake pool and the fake kernel, behind a real socket.

use std::sync::Arc;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use lagan::{
    bytes::Bytes,
    csi::{self, Services, Topology},
    engine::{self, Engine, work::Work},
    error::{Error, ErrorKind, Result},
    id::PoolId,
    node::{self, Node},
    pool::{
        Pool,
        fake::FakeDisk,
        set::{Opener, Pools},
    },
    proto::{
        ControllerPublishVolumeRequest, CreateVolumeRequest, NodePublishVolumeRequest,
        NodeStageVolumeRequest, Snapshot, Volume, VolumeCapability, controller_client::ControllerClient,
        group_controller_client::GroupControllerClient, identity_client::IdentityClient,
        node_client::NodeClient, volume_capability::access_mode::Mode,
    },
    sys::fake::FakeKernel,
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Server},
};

pub(crate) const STAGING: &str = "/t/staging";
pub(crate) const TARGET: &str = "/t/pods/target";
pub(crate) const GIB: i64 = 1 << 30;
/// A pool that the operator of the rig has given up.
pub(crate) const FORGOTTEN: &str = "ffffffffffffffffffffffffffffffff";

/// The pool named "missing", in a rig that has it.
pub(crate) const LOST: &str = "00000000000000000000000000000001";

use crate::fakes::{FakeOpener, LocalUses};
pub(crate) use crate::requests::{
    NODE, block, check, create_with, delete, from_snapshot, from_volume, group_of, hide_at, mount_with,
    publish_with, show_at, snapshot_of, stage_at, ungroup, unpublish_from, unstage_at,
};

/// A pool whose disk is missing.
struct Missing;

#[async_trait]
impl Opener for Missing {
    async fn open(&self) -> Result<Arc<dyn Pool>> {
        Err(Error::new(ErrorKind::Unavailable, "its disk is not here"))
    }

    fn expected(&self) -> Option<PoolId> {
        Some(LOST.parse().unwrap())
    }
}

/// A driver, its clients, and the disk and kernel that outlive it.
pub(crate) struct Rig {
    pub(crate) disk: FakeDisk,
    pub(crate) kernel: FakeKernel,
    pub(crate) work: Work,
    directory: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
    pub(crate) identity: IdentityClient<Channel>,
    pub(crate) controller: ControllerClient<Channel>,
    pub(crate) groups: GroupControllerClient<Channel>,
    pub(crate) node: NodeClient<Channel>,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let kernel = FakeKernel::new(&["/t"]);
        kernel.make_directory("/t/pods");
        Self::over(FakeDisk::new(Bytes::gib(100)), kernel).await
    }

    /// One with a second pool, whose disk is missing.
    pub(crate) async fn beside_a_missing_pool() -> Self {
        let kernel = FakeKernel::new(&["/t"]);
        kernel.make_directory("/t/pods");
        let mut pools = Pools::new();
        pools.add("missing".parse().unwrap(), Box::new(Missing));
        Self::with(pools, 1, FakeDisk::new(Bytes::gib(100)), kernel).await
    }

    /// A driver over what is there already.
    pub(crate) async fn over(disk: FakeDisk, kernel: FakeKernel) -> Self {
        Self::with(Pools::new(), 0, disk, kernel).await
    }

    /// The same beside other pools, of which so many are closed.
    async fn with(mut pools: Pools, closed: usize, disk: FakeDisk, kernel: FakeKernel) -> Self {
        let opener = FakeOpener { disk: disk.clone(), kernel: kernel.clone() };
        pools.add("p".parse().unwrap(), Box::new(opener));
        pools.forget(FORGOTTEN.parse().unwrap());
        let pools = Arc::new(pools);
        let id: lagan::id::NodeId = NODE.parse().unwrap();
        let settings = node::Settings { id: id.clone(), allow_suid: false, max_volumes: 3 };
        let node = Node::new(Arc::clone(&pools), Arc::new(kernel.clone()), settings);
        let settings = engine::Settings { node: id.clone(), max_volumes: 3 };
        let engine = Engine::new(Arc::clone(&pools), Arc::new(LocalUses(node.clone())), settings);
        assert_eq!(engine.start().await.unwrap().len(), closed);
        let work = Work::new(64);
        let services = Services {
            driver_name: "lagan.csi".into(),
            topology: Topology::new("lagan.csi", &id),
            work: work.clone(),
            pools: Arc::clone(&pools),
            engine: Some(engine),
            node: Some(node),
        };
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("csi.sock");
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let routes = csi::routes(&services, services.own());
        let server = tokio::spawn(async move {
            Server::builder().add_routes(routes).serve_with_incoming(incoming).await.unwrap();
        });
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
        let (identity, controller) =
            (IdentityClient::new(channel.clone()), ControllerClient::new(channel.clone()));
        let groups = GroupControllerClient::new(channel.clone());
        let node = NodeClient::new(channel);
        Self { disk, kernel, work, directory, server, identity, controller, groups, node }
    }

    /// The same disk and kernel under a new process: nothing that was remembered is left.
    pub(crate) async fn restart(self) -> Self {
        self.server.abort();
        drop(self.directory);
        Self::over(self.disk, self.kernel).await
    }

    pub(crate) async fn create(
        &mut self,
        request: CreateVolumeRequest,
    ) -> std::result::Result<Volume, Status> {
        let answer = self.controller.create_volume(request).await?;
        Ok(answer.into_inner().volume.unwrap())
    }

    /// A new volume, published to the node.
    pub(crate) async fn published(&mut self, name: &str, capability: VolumeCapability) -> String {
        let request = CreateVolumeRequest { volume_capabilities: vec![capability.clone()], ..create(name) };
        let id = self.create(request).await.unwrap().volume_id;
        let request = ControllerPublishVolumeRequest { volume_capability: Some(capability), ..publish(&id) };
        self.controller.controller_publish_volume(request).await.unwrap();
        id
    }

    /// A new volume, staged at the usual path.
    pub(crate) async fn staged(&mut self, name: &str, capability: VolumeCapability) -> String {
        let id = self.published(name, capability.clone()).await;
        self.node.node_stage_volume(stage(&id, capability)).await.unwrap();
        id
    }

    pub(crate) async fn snapshot(
        &mut self,
        name: &str,
        volume: &str,
    ) -> std::result::Result<Snapshot, Status> {
        Ok(self.controller.create_snapshot(snapshot_of(volume, name)).await?.into_inner().snapshot.unwrap())
    }
}

pub(crate) fn mount(mode: Mode) -> VolumeCapability {
    mount_with(mode, "", &[])
}

pub(crate) fn create(name: &str) -> CreateVolumeRequest {
    create_with(name, GIB, &mount(Mode::SingleNodeWriter))
}

pub(crate) fn publish(id: &str) -> ControllerPublishVolumeRequest {
    publish_with(id, &mount(Mode::SingleNodeWriter))
}

pub(crate) fn stage(id: &str, capability: VolumeCapability) -> NodeStageVolumeRequest {
    stage_at(id, STAGING, &capability)
}

pub(crate) fn publish_at(id: &str, target: &str, capability: VolumeCapability) -> NodePublishVolumeRequest {
    show_at(id, STAGING, target, &capability)
}
