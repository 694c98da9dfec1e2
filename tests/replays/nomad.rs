//! Nomad: a plugin of type `monolith` under raw_exec, whose `stage_publish_base_dir` is the real directory. Read from
//! the sources of 1.10.5.

use std::{fs, path::Path};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, CreateSnapshotRequest,
    CreateVolumeRequest, DeleteSnapshotRequest, ListSnapshotsRequest, ListVolumesRequest,
    NodeExpandVolumeRequest, NodeGetInfoRequest, NodePublishVolumeRequest, Snapshot, TopologyRequirement,
    ValidateVolumeCapabilitiesRequest, Volume, VolumeCapability,
    controller_service_capability::rpc::Type as ControllerCall,
    node_service_capability::rpc::Type as NodeCall, plugin_capability::service::Type as Service,
    volume_capability::access_mode::Mode,
};
use tonic::{Code, Response, Status};

use crate::{
    fields::{controller_calls, is_mount, make_directory, node_calls, plugin_services, probe},
    requests::{
        block, check, delete, from_snapshot, from_volume, hide_at, mount_with, show_at, stage_at,
        unpublish_from, unstage_at,
    },
    rig::{Daemon, Ground, Kind, MIB, random, write},
};

type Answer<T> = Result<Response<T>, Status>;

/// A volume as Nomad's state has it, and one way in which jobs use it.
pub(crate) struct Claimed {
    pub(crate) name: &'static str,
    pub(crate) made: Volume,
    pub(crate) capability: VolumeCapability,
    /// The last part of its paths: whether it is read only, attachment and access mode.
    pub(crate) usage: &'static str,
    pub(crate) read_only: bool,
}

impl Claimed {
    pub(crate) fn new(name: &'static str, made: Volume, capability: VolumeCapability) -> Self {
        let mount =
            matches!(capability.access_type, Some(lagan::proto::volume_capability::AccessType::Mount(_)));
        let usage =
            if mount { "rw-file-system-single-node-writer" } else { "rw-block-device-single-node-writer" };
        Self { name, made, capability, usage, read_only: false }
    }
}

/// The agent of one client, and the server that asks it.
pub(crate) struct Nomad {
    pub(crate) daemon: Daemon,
    /// `{data_dir}/client/csi/monolith/{plugin id}`.
    base: String,
    pub(crate) node_id: String,
}

impl Nomad {
    /// What happens from the start of the plugin's task until the plugin is healthy.
    pub(crate) async fn start(mut daemon: Daemon, data_dir: &str) -> Self {
        // The supervisor's own connection.
        let info = probe(&mut daemon).await;
        // A monolith is looked at twice: as a controller, and as a node.
        let services = plugin_services(&mut daemon).await;
        assert!(services.contains(&Service::ControllerService.into()), "its controller is used");
        assert!(services.contains(&Service::VolumeAccessibilityConstraints.into()), "its topology is used");
        assert_eq!(probe(&mut daemon).await, info);
        let calls = controller_calls(&mut daemon).await;
        for call in [
            ControllerCall::CreateDeleteVolume,
            ControllerCall::PublishUnpublishVolume,
            ControllerCall::ListVolumes,
            ControllerCall::CreateDeleteSnapshot,
            ControllerCall::ListSnapshots,
            ControllerCall::CloneVolume,
            ControllerCall::ExpandVolume,
        ] {
            assert!(calls.contains(&call.into()), "{call:?}");
        }
        assert_eq!(plugin_services(&mut daemon).await, services);
        let node = daemon.node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
        assert!(node.accessible_topology.is_some_and(|place| place.segments.len() == 1));
        probe(&mut daemon).await;
        let calls = node_calls(&mut daemon).await;
        assert!(calls.contains(&NodeCall::StageUnstageVolume.into()));
        assert!(calls.contains(&NodeCall::ExpandVolume.into()));
        let base = format!("{data_dir}/client/csi/monolith/lagan");
        make_directory(&base);
        Self { daemon, base, node_id: node.node_id }
    }

    pub(crate) fn staging(&self, volume: &Claimed) -> String {
        format!("{}/staging/default/{}/{}", self.base, volume.name, volume.usage)
    }

    pub(crate) fn target(&self, volume: &Claimed, alloc: &str) -> String {
        format!("{}/per-alloc/{alloc}/{}/{}", self.base, volume.name, volume.usage)
    }

    /// The server's call for a claim, by way of whichever controller it likes.
    pub(crate) fn grant(volume: &Claimed, node_id: &str) -> ControllerPublishVolumeRequest {
        ControllerPublishVolumeRequest {
            volume_id: volume.made.volume_id.clone(),
            node_id: node_id.to_owned(),
            volume_capability: Some(volume.capability.clone()),
            readonly: volume.read_only,
            volume_context: volume.made.volume_context.clone(),
            ..ControllerPublishVolumeRequest::default()
        }
    }

    pub(crate) async fn claim(&mut self, volume: &Claimed) -> Answer<()> {
        let grant = Self::grant(volume, &self.node_id);
        let answer = self.daemon.controller.controller_publish_volume(grant).await?;
        assert!(answer.into_inner().publish_context.is_empty(), "there is nothing to pass on");
        Ok(Response::new(()))
    }

    /// The client mounts for an alloc: what is mounted already is not asked for.
    pub(crate) async fn mount(&mut self, volume: &Claimed, alloc: &str) -> Answer<String> {
        let (id, staging) = (&volume.made.volume_id, self.staging(volume));
        make_directory(&staging);
        if !is_mount(&staging) {
            let mut stage = stage_at(id, &staging, &volume.capability);
            stage.volume_context = volume.made.volume_context.clone();
            self.daemon.node.node_stage_volume(stage).await?;
        }
        let target = self.target(volume, alloc);
        make_directory(Path::new(&target).parent().unwrap().to_str().unwrap());
        if !is_mount(&target) {
            self.daemon.node.node_publish_volume(self.publish(volume, alloc)).await?;
        }
        assert!(is_mount(&target), "{target}");
        Ok(Response::new(target))
    }

    fn publish(&self, volume: &Claimed, alloc: &str) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            readonly: volume.read_only,
            volume_context: volume.made.volume_context.clone(),
            ..show_at(
                &volume.made.volume_id,
                &self.staging(volume),
                &self.target(volume, alloc),
                &volume.capability,
            )
        }
    }

    /// The client unmounts for an alloc; afterwards it removes a target that is left itself, and would call that odd.
    pub(crate) async fn unpublish(&mut self, volume: &Claimed, alloc: &str) -> Answer<()> {
        let target = self.target(volume, alloc);
        self.daemon.node.node_unpublish_volume(hide_at(&volume.made.volume_id, &target)).await?;
        assert!(!Path::new(&target).exists(), "the driver removes the target");
        Ok(Response::new(()))
    }

    pub(crate) async fn unstage(&mut self, volume: &Claimed) -> Answer<()> {
        let request = unstage_at(&volume.made.volume_id, &self.staging(volume));
        self.daemon.node.node_unstage_volume(request).await?;
        Ok(Response::new(()))
    }

    pub(crate) async fn release(&mut self, volume: &Claimed) -> Answer<()> {
        let request = unpublish_from(&volume.made.volume_id, &self.node_id);
        self.daemon.controller.controller_unpublish_volume(request).await?;
        Ok(Response::new(()))
    }

    /// `nomad volume create`: with an empty topology where the specification names none.
    pub(crate) fn create(name: &str, mib: i64, capability: &VolumeCapability) -> CreateVolumeRequest {
        let capacity_range =
            (mib > 0).then_some(CapacityRange { required_bytes: mib * MIB, limit_bytes: 2 * mib * MIB });
        CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range,
            volume_capabilities: vec![capability.clone()],
            accessibility_requirements: Some(TopologyRequirement::default()),
            ..CreateVolumeRequest::default()
        }
    }

    pub(crate) async fn created(&mut self, request: CreateVolumeRequest) -> Volume {
        let answer = self.daemon.controller.create_volume(request.clone()).await.unwrap().into_inner();
        // A call that timed out is sent again as it was.
        let again = self.daemon.controller.create_volume(request).await.unwrap().into_inner();
        assert_eq!(answer, again);
        answer.volume.unwrap()
    }

    async fn snapshot(&mut self, volume: &Claimed, name: &str) -> Snapshot {
        let request = CreateSnapshotRequest {
            source_volume_id: volume.made.volume_id.clone(),
            name: name.to_owned(),
            ..CreateSnapshotRequest::default()
        };
        let made = self.daemon.controller.create_snapshot(request.clone()).await.unwrap().into_inner();
        let again = self.daemon.controller.create_snapshot(request).await.unwrap().into_inner();
        assert_eq!(made, again);
        made.snapshot.unwrap()
    }
}

fn ground() -> Ground {
    Ground::sized(Kind::On("xfs"), 300)
}

pub(crate) fn writer(filesystem: &str) -> VolumeCapability {
    mount_with(Mode::SingleNodeWriter, filesystem, &["noatime"])
}

#[tokio::test]
async fn the_life_of_a_volume() {
    let ground = ground();
    let mut nomad = Nomad::start(ground.start().await, &ground.path("nomad")).await;
    let how = writer("xfs");
    let made = nomad.created(Nomad::create("db", 300, &how)).await;
    assert_eq!(made.capacity_bytes, 300 * MIB);
    assert_eq!(made.accessible_topology.len(), 1, "the scheduler goes by it");
    let db = Claimed::new("db[0]", made, how);
    // `nomad volume register` asks, and compares what is confirmed with what it asked for.
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: db.made.volume_id.clone(),
        volume_context: db.made.volume_context.clone(),
        volume_capabilities: vec![db.capability.clone()],
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let valid = nomad.daemon.controller.validate_volume_capabilities(validate).await.unwrap().into_inner();
    assert!(valid.confirmed.unwrap().volume_capabilities == [db.capability.clone()]);
    // Two allocs on one node: each is claimed, one stage serves both.
    let mut targets = Vec::new();
    for alloc in ["6f1f2c7e-7d04-0f6c-a8f1-6fd0b0ad4a5d", "c56a4180-65aa-42ec-a945-5fd21dec0538"] {
        check(nomad.claim(&db).await, Code::Ok);
        check(nomad.claim(&db).await, Code::Ok);
        targets.push((alloc, nomad.mount(&db, alloc).await.unwrap().into_inner()));
        // After a restart of the client an alloc is mounted once more.
        let same = nomad.publish(&db, alloc);
        check(nomad.daemon.node.node_publish_volume(same).await, Code::Ok);
    }
    let [(first, written), (second, read)] = targets.try_into().unwrap();
    let content = random(1 << 16);
    write(&Path::new(&written).join("data"), &content);
    assert!(fs::read(Path::new(&read).join("data")).unwrap() == content);
    expand(&mut nomad, &db, &[first, second]).await;
    copies(&mut nomad, &db, &content).await;
    check(nomad.unpublish(&db, first).await, Code::Ok);
    check(nomad.unpublish(&db, first).await, Code::Ok);
    // A client that was restarted has forgotten who else uses the stage (hashicorp/nomad#25813).
    let said = check(nomad.unstage(&db).await, Code::FailedPrecondition);
    assert!(said.contains(&read), "{said}");
    check(nomad.release(&db).await, Code::FailedPrecondition);
    write(&Path::new(&read).join("more"), &content);
    check(nomad.daemon.controller.delete_volume(delete(&db.made.volume_id)).await, Code::FailedPrecondition);
    for _ in 0..2 {
        check(nomad.unpublish(&db, second).await, Code::Ok);
        check(nomad.unstage(&db).await, Code::Ok);
        check(nomad.release(&db).await, Code::Ok);
    }
    for _ in 0..2 {
        check(nomad.daemon.controller.delete_volume(delete(&db.made.volume_id)).await, Code::Ok);
    }
    // What went on for an alloc that is collected much later.
    check(nomad.unpublish(&db, second).await, Code::Ok);
    check(nomad.unstage(&db).await, Code::Ok);
    check(nomad.release(&db).await, Code::Ok);
    ground.account();
}

/// The controller, then every claim, by both paths and without the mount options.
async fn expand(nomad: &mut Nomad, volume: &Claimed, allocs: &[&str]) {
    let capacity_range = Some(CapacityRange { required_bytes: 400 * MIB, limit_bytes: 600 * MIB });
    let before = room(&nomad.target(volume, allocs[0]));
    let grow = ControllerExpandVolumeRequest {
        volume_id: volume.made.volume_id.clone(),
        capacity_range,
        volume_capability: Some(volume.capability.clone()),
        ..ControllerExpandVolumeRequest::default()
    };
    for _ in 0..2 {
        let answer = nomad.daemon.controller.controller_expand_volume(grow.clone()).await.unwrap();
        let grown = answer.into_inner();
        assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (400 * MIB, true));
    }
    for alloc in allocs {
        let grow = NodeExpandVolumeRequest {
            volume_id: volume.made.volume_id.clone(),
            volume_path: nomad.target(volume, alloc),
            capacity_range,
            staging_target_path: nomad.staging(volume),
            volume_capability: Some(mount_with(Mode::SingleNodeWriter, "", &[])),
            ..NodeExpandVolumeRequest::default()
        };
        let grown = nomad.daemon.node.node_expand_volume(grow).await.unwrap().into_inner();
        assert_eq!(grown.capacity_bytes, 400 * MIB, "Nomad compares it");
    }
    assert!(room(&nomad.target(volume, allocs[0])) > before + 90 * (1 << 20), "the filesystem has grown");
}

fn room(path: &str) -> u64 {
    let known = rustix::fs::statvfs(path).unwrap();
    known.f_blocks * known.f_frsize
}

/// `nomad volume snapshot`, and `volume create` with `snapshot_id` or `clone_id`.
async fn copies(nomad: &mut Nomad, db: &Claimed, content: &[u8]) {
    let snapshot = nomad.snapshot(db, "nightly").await;
    assert!(snapshot.ready_to_use && snapshot.creation_time.is_some());
    let sources = [from_snapshot(&snapshot.snapshot_id), from_volume(&db.made.volume_id)];
    for (name, source) in ["restored", "cloned"].into_iter().zip(sources) {
        let request =
            CreateVolumeRequest { volume_content_source: source, ..Nomad::create(name, 0, &db.capability) };
        let copy = Claimed::new(name, nomad.created(request).await, db.capability.clone());
        check(nomad.claim(&copy).await, Code::Ok);
        let target = nomad.mount(&copy, name).await.unwrap().into_inner();
        assert!(fs::read(Path::new(&target).join("data")).unwrap() == content, "{name}");
        check(nomad.unpublish(&copy, name).await, Code::Ok);
        check(nomad.unstage(&copy).await, Code::Ok);
        check(nomad.release(&copy).await, Code::Ok);
        // The command line asks for pages of 30.
        let list = ListVolumesRequest { max_entries: 30, ..ListVolumesRequest::default() };
        let listed = nomad.daemon.controller.list_volumes(list).await.unwrap().into_inner();
        assert_eq!((listed.entries.len(), listed.next_token.as_str()), (2, ""));
        check(nomad.daemon.controller.delete_volume(delete(&copy.made.volume_id)).await, Code::Ok);
    }
    let list = ListSnapshotsRequest { max_entries: 30, ..ListSnapshotsRequest::default() };
    let listed = nomad.daemon.controller.list_snapshots(list.clone()).await.unwrap().into_inner();
    assert_eq!(listed.entries.len(), 1);
    assert_eq!(listed.entries[0].snapshot.as_ref().unwrap().source_volume_id, db.made.volume_id);
    let remove =
        DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..DeleteSnapshotRequest::default() };
    for _ in 0..2 {
        check(nomad.daemon.controller.delete_snapshot(remove.clone()).await, Code::Ok);
    }
    let listed = nomad.daemon.controller.list_snapshots(list).await.unwrap().into_inner();
    assert!(listed.entries.is_empty());
}

/// A raw volume is never a mount point at its staging path, so each alloc stages it again.
#[tokio::test]
async fn a_raw_volume_is_staged_for_each_alloc() {
    let ground = ground();
    let mut nomad = Nomad::start(ground.start().await, &ground.path("nomad")).await;
    let how = block(Mode::SingleNodeWriter);
    let made = nomad.created(Nomad::create("raw", 8, &how)).await;
    let raw = Claimed::new("raw", made, how);
    for alloc in ["one", "two"] {
        check(nomad.claim(&raw).await, Code::Ok);
        let target = nomad.mount(&raw, alloc).await.unwrap().into_inner();
        assert!(!is_mount(&nomad.staging(&raw)), "a directory, as Nomad made it");
        assert_eq!(crate::disk::run("blockdev", &["--getsize64", &target]).trim(), (8 * MIB).to_string());
    }
    check(nomad.unpublish(&raw, "one").await, Code::Ok);
    check(nomad.unstage(&raw).await, Code::FailedPrecondition);
    check(nomad.unpublish(&raw, "two").await, Code::Ok);
    check(nomad.unstage(&raw).await, Code::Ok);
    check(nomad.release(&raw).await, Code::Ok);
    let uuid = raw.made.volume_id.rsplit('.').next().unwrap();
    assert!(
        !crate::disk::run("losetup", &["-l", "-n", "-O", "BACK-FILE"]).contains(uuid),
        "its device is gone"
    );
    check(nomad.daemon.controller.delete_volume(delete(&raw.made.volume_id)).await, Code::Ok);
    ground.account();
}

/// A reader beside a writer on one node is another grant to it, and refused as the specification says: docs/nomad.md
/// has the way that works. Readers alone share a stage of their own.
#[tokio::test]
async fn readers_have_a_stage_of_their_own() {
    let ground = ground();
    let mut nomad = Nomad::start(ground.start().await, &ground.path("nomad")).await;
    let made = nomad.created(Nomad::create("shared", 16, &writer("ext4"))).await;
    let mut reader = Claimed::new("shared", made.clone(), writer("ext4"));
    (reader.usage, reader.read_only) = ("ro-file-system-single-node-writer", true);
    let other = Claimed::new("shared", made, writer("ext4"));
    check(nomad.claim(&other).await, Code::Ok);
    let said = check(nomad.claim(&reader).await, Code::AlreadyExists);
    assert!(said.contains("in another way"), "{said}");
    let target = nomad.mount(&other, "w").await.unwrap().into_inner();
    write(&Path::new(&target).join("data"), b"content");
    check(nomad.unpublish(&other, "w").await, Code::Ok);
    check(nomad.unstage(&other).await, Code::Ok);
    check(nomad.release(&other).await, Code::Ok);
    for alloc in ["r1", "r2"] {
        check(nomad.claim(&reader).await, Code::Ok);
        let target = nomad.mount(&reader, alloc).await.unwrap().into_inner();
        assert_eq!(fs::read(Path::new(&target).join("data")).unwrap(), b"content");
        let refused = fs::write(Path::new(&target).join("new"), b"x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    for alloc in ["r1", "r2"] {
        check(nomad.unpublish(&reader, alloc).await, Code::Ok);
    }
    check(nomad.unstage(&reader).await, Code::Ok);
    check(nomad.release(&reader).await, Code::Ok);
    check(nomad.daemon.controller.delete_volume(delete(&other.made.volume_id)).await, Code::Ok);
    ground.account();
}

/// A node that is down is asked nothing; its right is taken back through the controller, again and again.
#[tokio::test]
async fn a_node_that_is_down() {
    let ground = ground();
    let mut nomad = Nomad::start(ground.start().await, &ground.path("nomad")).await;
    let made = nomad.created(Nomad::create("db", 16, &writer("ext4"))).await;
    let db = Claimed::new("db", made, writer("ext4"));
    check(nomad.claim(&db).await, Code::Ok);
    let target = nomad.mount(&db, "a").await.unwrap().into_inner();
    // The agent is cut off, the host and what runs on it are not: its writer is not cut off from a local file.
    write(&Path::new(&target).join("data"), b"content");
    for _ in 0..2 {
        let said = check(nomad.release(&db).await, Code::FailedPrecondition);
        assert!(said.contains(&target), "{said}");
    }
    check(nomad.unpublish(&db, "a").await, Code::Ok);
    // Staged and unused it is let go without NodeUnstage, which comes late.
    check(nomad.release(&db).await, Code::Ok);
    assert!(!is_mount(&nomad.staging(&db)));
    check(nomad.unstage(&db).await, Code::Ok);
    // The plugin's task starts anew while a volume is in use: nothing is unmounted, and the rest goes on.
    check(nomad.claim(&db).await, Code::Ok);
    nomad.mount(&db, "b").await.unwrap();
    nomad.daemon.kill();
    assert!(is_mount(&target.replace("/a/", "/b/")), "a mount is the kernel's");
    let mut nomad = Nomad::start(ground.start().await, &ground.path("nomad")).await;
    check(nomad.claim(&db).await, Code::Ok);
    let target = nomad.mount(&db, "b").await.unwrap().into_inner();
    assert_eq!(fs::read(Path::new(&target).join("data")).unwrap(), b"content");
    check(nomad.unpublish(&db, "b").await, Code::Ok);
    check(nomad.unstage(&db).await, Code::Ok);
    check(nomad.release(&db).await, Code::Ok);
    check(nomad.daemon.controller.delete_volume(delete(&db.made.volume_id)).await, Code::Ok);
    ground.account();
}
