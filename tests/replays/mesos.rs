//! Mesos: the storage local resource provider of an agent, which starts the plugin itself and tells it its socket in the
//! environment. Read from the sources of 1.11 (`src/csi`, `src/resource_provider/storage`).

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use lagan::proto::{
    CapacityRange, ControllerPublishVolumeRequest, CreateVolumeRequest, GetCapacityRequest,
    ListVolumesRequest, NodeGetInfoRequest, ValidateVolumeCapabilitiesRequest, VolumeCapability,
    controller_service_capability::rpc::Type as ControllerCall,
    node_service_capability::rpc::Type as NodeCall, plugin_capability::service::Type as Service,
    volume_capability::access_mode::Mode,
};
use tonic::Code;

use crate::{
    disk::text,
    fields::{controller_calls, is_mount, node_calls, plugin_services, probe},
    requests::{block, check, delete, hide_at, mount_with, show_at, stage_at, unpublish_from, unstage_at},
    rig::{Daemon, Ground, Kind, MIB, random, write},
};

/// What a disk profile says: a capability, and parameters.
struct Profile {
    capability: VolumeCapability,
    parameters: std::collections::BTreeMap<String, String>,
}

impl Profile {
    fn of(capability: VolumeCapability) -> Self {
        Self { capability, parameters: [("pool".to_owned(), "p".to_owned())].into() }
    }
}

/// A volume as the agent has it in its checkpoint.
struct Disk {
    id: String,
    context: std::collections::BTreeMap<String, String>,
}

struct Agent {
    daemon: Daemon,
    /// `{work_dir}/csi/{type}/{name}/mounts`.
    mounts: String,
    node_id: String,
}

impl Agent {
    /// The agent starts the plugin and asks it all that it wants to know.
    async fn start(ground: &Ground) -> Self {
        let directory = ground.root.join("mesos-csi-aB3dE6");
        fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("endpoint.sock");
        let mut daemon = Daemon::connect(spawn(ground, &socket), socket, ground.log()).await;
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing but the socket is put there");
        let info = probe(&mut daemon).await;
        let services = plugin_services(&mut daemon).await;
        assert!(services.contains(&Service::ControllerService.into()), "or the agent gives up");
        // Once for each service, and compared.
        assert_eq!(probe(&mut daemon).await, info);
        let calls = controller_calls(&mut daemon).await;
        for call in [
            ControllerCall::CreateDeleteVolume,
            ControllerCall::PublishUnpublishVolume,
            ControllerCall::ListVolumes,
            ControllerCall::GetCapacity,
        ] {
            assert!(calls.contains(&call.into()), "{call:?}");
        }
        assert!(node_calls(&mut daemon).await.contains(&NodeCall::StageUnstageVolume.into()));
        let node = daemon.node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
        let mounts = ground.path("mesos/csi/io.lagan/local/mounts");
        Self { daemon, mounts, node_id: node.node_id }
    }

    /// The whole list in one page: the agent does not turn over.
    async fn list(&mut self) -> Vec<Disk> {
        let answer = self.daemon.controller.list_volumes(ListVolumesRequest::default()).await;
        let answer = answer.unwrap().into_inner();
        assert_eq!(answer.next_token, "", "a second page would never be asked for");
        let disk = |entry: lagan::proto::list_volumes_response::Entry| {
            let volume = entry.volume.unwrap();
            Disk { id: volume.volume_id, context: volume.volume_context }
        };
        answer.entries.into_iter().map(disk).collect()
    }

    async fn capacity(&mut self, profile: &Profile) -> i64 {
        let request = GetCapacityRequest {
            volume_capabilities: vec![profile.capability.clone()],
            parameters: profile.parameters.clone(),
            accessible_topology: None,
        };
        self.daemon.controller.get_capacity(request).await.unwrap().into_inner().available_capacity
    }

    /// CREATE_DISK from a storage pool. The size is exact; the name is the uuid of the operation.
    fn create(name: &str, bytes: i64, profile: &Profile) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: bytes }),
            volume_capabilities: vec![profile.capability.clone()],
            parameters: profile.parameters.clone(),
            ..CreateVolumeRequest::default()
        }
    }

    async fn created(&mut self, name: &str, bytes: i64, profile: &Profile) -> Disk {
        let request = Self::create(name, bytes, profile);
        let made = self.daemon.controller.create_volume(request.clone()).await.unwrap().into_inner();
        assert_eq!(made, self.daemon.controller.create_volume(request).await.unwrap().into_inner());
        let volume = made.volume.unwrap();
        assert_eq!(volume.capacity_bytes, bytes);
        Disk { id: volume.volume_id, context: volume.volume_context }
    }

    /// CREATE_DISK from a disk that was there before.
    async fn validate(&mut self, disk: &Disk, profile: &Profile) {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: disk.id.clone(),
            volume_context: disk.context.clone(),
            volume_capabilities: vec![profile.capability.clone()],
            parameters: profile.parameters.clone(),
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        let answer = self.daemon.controller.validate_volume_capabilities(request).await.unwrap().into_inner();
        let confirmed = answer.confirmed.unwrap();
        assert_eq!(confirmed.volume_context, disk.context);
        assert_eq!(confirmed.parameters, profile.parameters);
        assert!(confirmed.volume_capabilities.contains(&profile.capability));
    }

    fn staging(&self, disk: &Disk) -> String {
        format!("{}/{}/staging", self.mounts, disk.id)
    }

    fn target(&self, disk: &Disk) -> String {
        format!("{}/{}/target", self.mounts, disk.id)
    }

    async fn attach(&mut self, disk: &Disk, profile: &Profile) {
        let request = ControllerPublishVolumeRequest {
            volume_id: disk.id.clone(),
            node_id: self.node_id.clone(),
            volume_capability: Some(profile.capability.clone()),
            volume_context: disk.context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        check(self.daemon.controller.controller_publish_volume(request).await, Code::Ok);
    }

    async fn stage(&mut self, disk: &Disk, profile: &Profile) {
        fs::create_dir_all(self.staging(disk)).unwrap();
        let mut request = stage_at(&disk.id, &self.staging(disk), &profile.capability);
        request.volume_context = disk.context.clone();
        check(self.daemon.node.node_stage_volume(request).await, Code::Ok);
    }

    /// The parent of the target is the agent's, the target is the plugin's.
    async fn publish(&mut self, disk: &Disk, profile: &Profile) -> String {
        let target = self.target(disk);
        fs::create_dir_all(Path::new(&target).parent().unwrap()).unwrap();
        let mut request = show_at(&disk.id, &self.staging(disk), &target, &profile.capability);
        request.volume_context = disk.context.clone();
        check(self.daemon.node.node_publish_volume(request).await, Code::Ok);
        assert!(Path::new(&target).exists(), "Target path not created");
        target
    }

    async fn unpublish(&mut self, disk: &Disk) {
        let target = self.target(disk);
        check(self.daemon.node.node_unpublish_volume(hide_at(&disk.id, &target)).await, Code::Ok);
        assert!(!Path::new(&target).exists(), "Target path not removed");
    }

    async fn unstage(&mut self, disk: &Disk) {
        let staging = self.staging(disk);
        check(self.daemon.node.node_unstage_volume(unstage_at(&disk.id, &staging)).await, Code::Ok);
        assert!(
            Path::new(&staging).exists() && !is_mount(&staging),
            "the agent looks for it, and removes it"
        );
    }

    /// DESTROY_DISK: every step is repeated after a failover of the agent.
    async fn destroy(&mut self, disk: &Disk) {
        for _ in 0..2 {
            self.unpublish(disk).await;
        }
        for _ in 0..2 {
            self.unstage(disk).await;
        }
        for _ in 0..2 {
            let request = unpublish_from(&disk.id, &self.node_id);
            check(self.daemon.controller.controller_unpublish_volume(request).await, Code::Ok);
        }
        for _ in 0..2 {
            check(self.daemon.controller.delete_volume(delete(&disk.id)).await, Code::Ok);
        }
        fs::remove_dir(self.staging(disk)).unwrap();
        fs::remove_dir(format!("{}/{}", self.mounts, disk.id)).unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "tests do what an agent would")]
fn spawn(ground: &Ground, socket: &Path) -> std::process::Child {
    let log = File::options().create(true).append(true).open(ground.log()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lagan"));
    command.args(["--config", &text(&ground.root.join("lagan.toml")), "serve", "--log-level", "debug"]);
    command.env("CSI_ENDPOINT", format!("unix://{}", text(socket))).env("MESOS_AGENT_ID", "agent-S0");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

fn ground() -> Ground {
    let mut ground = Ground::sized(Kind::On("xfs"), 300);
    // A pool that promises what it has: that is what an agent offers.
    ground.pool_settings = "overcommit_percent = 100\n".to_owned();
    ground.lagan(&["pool", "list"]);
    ground
}

#[tokio::test]
async fn the_life_of_a_disk() {
    let ground = ground();
    let mut agent = Agent::start(&ground).await;
    let profile = Profile::of(mount_with(Mode::SingleNodeWriter, "ext4", &[]));
    assert!(agent.list().await.is_empty());
    let before = agent.capacity(&profile).await;
    assert_eq!(before % MIB, 0, "Mesos counts in megabytes");
    let disk = agent.created("5cf4a9a1-3f2a-4a62-8c1e-5d1f0e5b0c11", 64 * MIB, &profile).await;
    // After each operation the agent asks again.
    let after = agent.capacity(&profile).await;
    assert!(after <= before - 64 * MIB, "{before} then {after}");
    assert_eq!(agent.list().await.len(), 1);
    agent.attach(&disk, &profile).await;
    agent.stage(&disk, &profile).await;
    let target = agent.publish(&disk, &profile).await;
    let content = random(1 << 16);
    write(&Path::new(&target).join("data"), &content);
    // The agent is started anew, and with it the plugin; a volume in use is brought to where it was.
    agent.daemon.kill();
    let mut agent = Agent::start(&ground).await;
    assert!(fs::read(Path::new(&target).join("data")).unwrap() == content);
    assert_eq!(agent.list().await[0].id, disk.id);
    agent.attach(&disk, &profile).await;
    agent.stage(&disk, &profile).await;
    agent.publish(&disk, &profile).await;
    // A persistent volume that is destroyed is emptied by the agent first.
    fs::remove_file(Path::new(&target).join("data")).unwrap();
    agent.destroy(&disk).await;
    assert_eq!(agent.capacity(&profile).await, before, "all of it comes back");
    ground.account();
}

/// All that is offered can be had: a framework takes a storage pool as a whole.
#[tokio::test]
async fn what_is_offered_can_be_had() {
    let ground = ground();
    let mut agent = Agent::start(&ground).await;
    for capability in [block(Mode::SingleNodeWriter), mount_with(Mode::SingleNodeWriter, "ext4", &[])] {
        let profile = Profile::of(capability);
        let all = agent.capacity(&profile).await;
        let disk = agent.created("all", all, &profile).await;
        assert!(agent.capacity(&profile).await < MIB);
        agent.attach(&disk, &profile).await;
        agent.stage(&disk, &profile).await;
        agent.publish(&disk, &profile).await;
        agent.destroy(&disk).await;
    }
    // What is no whole number of blocks is refused, not rounded past the limit.
    let profile = Profile::of(block(Mode::SingleNodeWriter));
    let odd = Agent::create("odd", 10 * MIB + 1, &profile);
    check(agent.daemon.controller.create_volume(odd).await, Code::OutOfRange);
    ground.account();
}

/// A volume that was there before the agent: `lagan volume create`, then CREATE_DISK with a profile.
#[tokio::test]
async fn a_disk_that_was_there_before() {
    let ground = ground();
    let mut agent = Agent::start(&ground).await;
    let profile = Profile::of(mount_with(Mode::SingleNodeWriter, "ext4", &[]));
    let endpoint = format!("unix://{}", text(&agent.daemon.socket));
    // With the parameters of the profile: the agent has them confirmed.
    let create = ["--endpoint", &endpoint, "volume", "create", "old", "--pool", "p", "--size", "16MiB"];
    let made = ground.lagan(&create);
    assert!(made.status.success(), "{made:?}");
    let disk = agent.list().await.pop().unwrap();
    for _ in 0..2 {
        agent.validate(&disk, &profile).await;
    }
    agent.attach(&disk, &profile).await;
    agent.stage(&disk, &profile).await;
    agent.publish(&disk, &profile).await;
    agent.destroy(&disk).await;
    // Of a profile that it does not fit nothing is confirmed.
    let made =
        ground.lagan(&["--endpoint", &endpoint, "volume", "create", "raw", "--block", "--size", "4MiB"]);
    assert!(made.status.success(), "{made:?}");
    let disk = agent.list().await.pop().unwrap();
    let request = ValidateVolumeCapabilitiesRequest {
        volume_id: disk.id.clone(),
        volume_capabilities: vec![mount_with(Mode::MultiNodeMultiWriter, "ext4", &[])],
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let answer = agent.daemon.controller.validate_volume_capabilities(request).await.unwrap().into_inner();
    assert!(answer.confirmed.is_none() && !answer.message.is_empty(), "{}", answer.message);
    check(agent.daemon.controller.delete_volume(delete(&disk.id)).await, Code::Ok);
    ground.account();
}
