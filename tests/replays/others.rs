//! Nomad's controller calls go to the first healthy controller, whichever host has the volume: two hosts with a driver
//! each, which pass on to each other.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    ListVolumesRequest, NodeExpandVolumeRequest, Topology, TopologyRequirement, Volume,
    volume_capability::access_mode::Mode,
};
use tonic::Code;

use crate::{
    disk::{run, text},
    nomad::{Claimed, Nomad, writer},
    requests::{check, delete, from_snapshot, mount_with},
    rig::{Daemon, Ground, Kind, MIB, write},
};

const LAGAN: &str = env!("CARGO_BIN_EXE_lagan");

/// Two hosts on one disk, a pool each.
struct Pair<'g> {
    ground: &'g Ground,
    ports: [u16; 2],
}

impl<'g> Pair<'g> {
    fn new(ground: &'g Ground) -> Self {
        let certificates = text(&ground.root.join("certs"));
        run(LAGAN, &["certs", "--dir", &certificates, "--host", "n1", "--host", "n2"]);
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [free(), free()];
        let ports = listeners.map(|listener| listener.local_addr().unwrap().port());
        let pair = Self { ground, ports };
        for host in 0..2 {
            let config = pair.configure(host, &certificates);
            let pool = text(&pair.pool(host));
            run(LAGAN, &["--config", &config, "pool", "init", &pool]);
        }
        pair
    }

    fn pool(&self, host: usize) -> PathBuf {
        self.ground.root.join(format!("disk/pool-n{}", host + 1))
    }

    /// One file would do for both but for the name and the pool: a host strikes itself off the list.
    fn configure(&self, host: usize, certificates: &str) -> String {
        let root = text(&self.ground.root);
        let (name, other, pool) = (host + 1, 2 - host, text(&self.pool(host)));
        let config = format!(
            "node_id = \"n{name}\"\nstate_dir = \"{root}/state-n{name}\"\nendpoint = \"{root}/n{name}.sock\"\n\
             http = \"off\"\ntarget_roots = [\"{root}/targets\"]\n\
             [cluster]\ncertificates = \"{certificates}\"\nlisten = \"127.0.0.1:{}\"\ncallers = [\"n{other}\"]\n\
             [cluster.hosts]\nn1 = \"127.0.0.1:{}\"\nn2 = \"127.0.0.1:{}\"\n\
             [[pool]]\nname = \"p\"\nkind = \"file\"\npath = \"{pool}\"\novercommit_percent = 10000\n",
            self.ports[host], self.ports[0], self.ports[1]
        );
        let path = self.ground.root.join(format!("n{name}.toml"));
        fs::write(&path, config).unwrap();
        text(&path)
    }

    #[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
    fn spawn(&self, host: usize) -> Child {
        let config = text(&self.ground.root.join(format!("n{}.toml", host + 1)));
        let log = File::options().create(true).append(true).open(self.ground.log()).unwrap();
        let mut command = Command::new(LAGAN);
        command.args(["--config", &config, "serve", "--log-level", "debug"]).env_remove("CSI_ENDPOINT");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Both, once they know of each other.
    async fn start_both(&self) -> [Nomad; 2] {
        let mut both = [self.start(0).await, self.start(1).await];
        let begun = Instant::now();
        while both[0].daemon.controller.list_volumes(ListVolumesRequest::default()).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "they do not meet");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        both
    }

    async fn start(&self, host: usize) -> Nomad {
        let socket = self.ground.root.join(format!("n{}.sock", host + 1));
        // What is there of an earlier one answers nobody.
        let daemon = Daemon::connect(self.spawn(host), socket, self.ground.log()).await;
        Nomad::start(daemon, &self.ground.path(&format!("n{}", host + 1))).await
    }

    fn account(&self) {
        for host in 1..=2 {
            let config = text(&self.ground.root.join(format!("n{host}.toml")));
            run(LAGAN, &["--config", &config, "doctor", "--check"]);
        }
    }
}

/// `topology_request { required { topology { segments { … } } } }`.
fn create_on(name: &str, host: &str) -> CreateVolumeRequest {
    let place = Topology { segments: [("lagan.csi/host".to_owned(), host.to_owned())].into() };
    let requirement = TopologyRequirement { requisite: vec![place], preferred: Vec::new() };
    CreateVolumeRequest {
        accessibility_requirements: Some(requirement),
        ..Nomad::create(name, 300, &writer("xfs"))
    }
}

fn host_of(volume: &Volume) -> &str {
    &volume.accessible_topology[0].segments["lagan.csi/host"]
}

#[tokio::test]
async fn the_controller_call_lands_on_another_host() {
    let ground = Ground::sized(Kind::On("xfs"), 300);
    let pair = Pair::new(&ground);
    let [mut asked, mut used] = pair.start_both().await;
    assert_eq!((asked.node_id.as_str(), used.node_id.as_str()), ("n1", "n2"));
    let made = asked.created(create_on("db", "n2")).await;
    assert_eq!(host_of(&made), "n2", "it is cut where the job is to run");
    // Whoever is asked again, after the first controller has gone, says the same.
    assert_eq!(used.created(create_on("db", "n2")).await, made);
    let db = Claimed::new("db", made, writer("xfs"));
    let id = db.made.volume_id.clone();
    for _ in 0..2 {
        let grant = Nomad::grant(&db, "n2");
        check(asked.daemon.controller.controller_publish_volume(grant).await, Code::Ok);
    }
    let wrong = Nomad::grant(&db, "n1");
    check(asked.daemon.controller.controller_publish_volume(wrong).await, Code::NotFound);
    let target = used.mount(&db, "alloc").await.unwrap().into_inner();
    write(&Path::new(&target).join("data"), b"content");
    // Grown through one host, on the other.
    let capacity_range = Some(CapacityRange { required_bytes: 400 * MIB, limit_bytes: 0 });
    let grow = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range,
        volume_capability: Some(db.capability.clone()),
        ..ControllerExpandVolumeRequest::default()
    };
    let grown = asked.daemon.controller.controller_expand_volume(grow).await.unwrap().into_inner();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (400 * MIB, true));
    let grow = NodeExpandVolumeRequest {
        volume_id: id.clone(),
        volume_path: target.clone(),
        capacity_range,
        staging_target_path: used.staging(&db),
        volume_capability: Some(mount_with(Mode::SingleNodeWriter, "", &[])),
        ..NodeExpandVolumeRequest::default()
    };
    check(used.daemon.node.node_expand_volume(grow).await, Code::Ok);
    let snapshot = CreateSnapshotRequest {
        source_volume_id: id.clone(),
        name: "s".to_owned(),
        ..CreateSnapshotRequest::default()
    };
    let snapshot = asked.daemon.controller.create_snapshot(snapshot).await.unwrap().into_inner();
    let snapshot = snapshot.snapshot.unwrap();
    let restore = CreateVolumeRequest {
        volume_content_source: from_snapshot(&snapshot.snapshot_id),
        ..Nomad::create("restored", 0, &writer("xfs"))
    };
    let restored = asked.created(restore).await;
    assert_eq!(host_of(&restored), "n2", "beside its source, though no topology says so");
    for nomad in [&mut asked, &mut used] {
        let list = ListVolumesRequest { max_entries: 30, ..ListVolumesRequest::default() };
        let listed = nomad.daemon.controller.list_volumes(list).await.unwrap().into_inner();
        assert_eq!(listed.entries.len(), 2, "the same list from either");
    }
    check(used.unpublish(&db, "alloc").await, Code::Ok);
    check(used.unstage(&db).await, Code::Ok);
    for _ in 0..2 {
        let release = crate::requests::unpublish_from(&id, "n2");
        check(asked.daemon.controller.controller_unpublish_volume(release).await, Code::Ok);
    }
    for id in [&id, &restored.volume_id] {
        check(asked.daemon.controller.delete_volume(delete(id)).await, Code::Ok);
    }
    let remove = lagan::proto::DeleteSnapshotRequest {
        snapshot_id: snapshot.snapshot_id,
        ..lagan::proto::DeleteSnapshotRequest::default()
    };
    check(asked.daemon.controller.delete_snapshot(remove).await, Code::Ok);
    pair.account();
}

/// The host of a volume is down: nobody else speaks for it, and nothing is taken for gone.
#[tokio::test]
async fn the_host_of_a_volume_is_down() {
    let ground = Ground::sized(Kind::On("xfs"), 300);
    let pair = Pair::new(&ground);
    let [mut asked, mut used] = pair.start_both().await;
    let made = asked.created(create_on("db", "n2")).await;
    let db = Claimed::new("db", made, writer("xfs"));
    let id = db.made.volume_id.clone();
    check(asked.daemon.controller.controller_publish_volume(Nomad::grant(&db, "n2")).await, Code::Ok);
    let target = used.mount(&db, "alloc").await.unwrap().into_inner();
    write(&Path::new(&target).join("data"), b"content");
    used.daemon.kill();
    // A node that is down is released through another controller: Nomad tries three times, and later again.
    for _ in 0..3 {
        let release = crate::requests::unpublish_from(&id, "n2");
        let said =
            check(asked.daemon.controller.controller_unpublish_volume(release).await, Code::Unavailable);
        assert!(said.contains("n2"), "{said}");
    }
    check(asked.daemon.controller.delete_volume(delete(&id)).await, Code::Unavailable);
    let own = asked.created(create_on("own", "n1")).await;
    assert_eq!(host_of(&own), "n1", "the others go on");
    check(asked.daemon.controller.delete_volume(delete(&own.volume_id)).await, Code::Ok);
    let mut used = pair.start(1).await;
    assert_eq!(fs::read(Path::new(&target).join("data")).unwrap(), b"content", "nothing was unmounted");
    check(used.unpublish(&db, "alloc").await, Code::Ok);
    check(used.unstage(&db).await, Code::Ok);
    let begun = Instant::now();
    loop {
        let release = crate::requests::unpublish_from(&id, "n2");
        match asked.daemon.controller.controller_unpublish_volume(release).await {
            Ok(_) => break,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "it is not seen to be back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    check(asked.daemon.controller.delete_volume(delete(&id)).await, Code::Ok);
    pair.account();
}
