//! Docker Swarm: a managed plugin with a root of its own, where `/data/published` alone reaches the host. Read from the
//! sources of swarmkit v2.0.0 (`manager/csi`, `agent/csi`).

use std::{
    fs::{self, File},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lagan::proto::{
    CapacityRange, ControllerPublishVolumeRequest, CreateVolumeRequest, NodeGetInfoRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, Volume, VolumeCapability,
    controller_service_capability::rpc::Type as ControllerCall,
    node_service_capability::rpc::Type as NodeCall,
    plugin_capability::service::Type as Service,
    volume_capability::{AccessMode, access_mode::Mode},
};
use serde_json::Value;
use tonic::{Code, Response, Status};

use crate::{
    disk::{run, text, try_run},
    fields::{controller_calls, is_mount, node_calls, plugin_services, probe},
    requests::{block, check, delete, hide_at, mount_with, show_at, stage_at, unpublish_from, unstage_at},
    rig::{Daemon, Ground, Kind, MIB, write},
};

/// What dockerd makes of `deploy/swarm/config.json` and of what `deploy/swarm/build` has made: the mounts that it names,
/// the capabilities of a container with those that it adds, its entry point.
const ENTER: &str = r#"
mount -t proc proc "$ROOT/proc"
mount --rbind /sys "$ROOT/sys"
while read -r source destination; do
	mount --rbind "$source" "$ROOT$destination"
done <<<"$MOUNTS"
exec setpriv --bounding-set "$CAPABILITIES" chroot "$ROOT" $ENTRYPOINT --log-level debug
"#;
/// Those of any container of Docker's.
const CAPABILITIES: &str = "-all,+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,\
                            +net_bind_service,+sys_chroot,+kill,+audit_write";
const CONFIG: &str = "node_id = \"n1\"\nhttp = \"off\"\n[[pool]]\nname = \"p\"\nkind = \"file\"\n\
                      path = \"/srv/pool\"\novercommit_percent = 10000\n";

/// The plugin on the host: its root, and what it shows of itself.
struct Plugin<'g> {
    ground: &'g Ground,
    root: PathBuf,
    published: PathBuf,
    config: Value,
}

impl<'g> Plugin<'g> {
    fn install(ground: &'g Ground) -> Self {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/swarm/build");
        let made = text(&ground.root.join("plugin"));
        run(&text(&build), &[&made, env!("CARGO_BIN_EXE_lagan")]);
        let config = fs::read(format!("{made}/config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let (root, published) =
            (PathBuf::from(format!("{made}/rootfs")), ground.root.join("propagated-mount"));
        fs::create_dir(&published).unwrap();
        for directory in [&root, &published] {
            run("mount", &["--bind", &text(directory), &text(directory)]);
        }
        run("mount", &["--make-private", &text(&root)]);
        run("mount", &["--make-shared", &text(&published)]);
        fs::create_dir(ground.root.join("etc")).unwrap();
        fs::write(ground.root.join("etc/config.toml"), CONFIG).unwrap();
        Self { ground, root, published, config }
    }

    /// Each mount of the configuration, from a place of the test where the host's is another's.
    fn mounts(&self) -> String {
        let ground = &self.ground.root;
        let mut lines =
            format!("{} {}\n", text(&self.published), self.config["propagatedMount"].as_str().unwrap());
        for mount in self.config["mounts"].as_array().unwrap() {
            let source = match mount["source"].as_str().unwrap() {
                "/etc/lagan" => text(&ground.join("etc")),
                "/var/lib/lagan" => text(&ground.join("state")),
                "/srv" => text(&ground.join("disk")),
                source => source.to_owned(),
            };
            lines += &format!("{source} {}\n", mount["destination"].as_str().unwrap());
        }
        lines.trim_end().to_owned()
    }

    #[expect(clippy::disallowed_methods, reason = "tests do what dockerd would")]
    async fn start(&self) -> Daemon {
        let words = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let interface = &self.config["interface"];
        assert_eq!(words(&interface["types"]), ["docker.csicontroller/1.0", "docker.csinode/1.0"]);
        let endpoint = &self.config["env"][0];
        let socket = format!("/run/docker/plugins/{}", interface["socket"].as_str().unwrap());
        assert_eq!(
            (endpoint["name"].as_str(), endpoint["value"].as_str()),
            (Some("CSI_ENDPOINT"), Some(&*socket))
        );
        // What this machine's root has not itself, nobody can be given.
        let added = words(&self.config["linux"]["capabilities"]);
        let added =
            added.iter().map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()));
        let log = File::options().create(true).append(true).open(self.ground.log()).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "unchanged", "bash", "-euc", ENTER]);
        command.env("ROOT", &self.root).env("MOUNTS", self.mounts());
        command.env("CAPABILITIES", CAPABILITIES.to_owned() + &added.collect::<String>());
        command.env("ENTRYPOINT", words(&self.config["entrypoint"]).join(" ")).env("CSI_ENDPOINT", &socket);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Daemon::connect(child, self.root.join(&socket[1..]), self.ground.log()).await
    }

    /// Where a task's container gets a volume from.
    fn shown(&self, volume: &str) -> String {
        text(&self.published.join(volume))
    }
}

impl Drop for Plugin<'_> {
    fn drop(&mut self) {
        for directory in [&self.published, &self.root] {
            drop(try_run("umount", &["--recursive", &text(directory)]));
        }
    }
}

/// A volume as Swarm has it: an id of its own, and what was asked for.
struct Assigned {
    swarm_id: &'static str,
    made: Volume,
    capability: VolumeCapability,
}

/// A manager and the agent of one node, in one dockerd.
struct Swarm {
    daemon: Daemon,
    node_id: String,
}

impl Swarm {
    async fn start(mut daemon: Daemon) -> Self {
        // The manager, as it first needs the plugin.
        probe(&mut daemon).await;
        assert!(plugin_services(&mut daemon).await.contains(&Service::ControllerService.into()));
        let calls = controller_calls(&mut daemon).await;
        assert!(
            calls.contains(&ControllerCall::PublishUnpublishVolume.into()),
            "or nobody takes rights back"
        );
        // The agent.
        probe(&mut daemon).await;
        assert!(node_calls(&mut daemon).await.contains(&NodeCall::StageUnstageVolume.into()));
        let node = daemon.node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
        Self { daemon, node_id: node.node_id }
    }

    /// `docker volume create`: no topology unless one is asked for.
    fn create(name: &str, mib: i64, capability: &VolumeCapability) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: mib * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![capability.clone()],
            ..CreateVolumeRequest::default()
        }
    }

    async fn created(&mut self, swarm_id: &'static str, request: CreateVolumeRequest) -> Assigned {
        let made = self.daemon.controller.create_volume(request.clone()).await.unwrap().into_inner();
        assert_eq!(made, self.daemon.controller.create_volume(request.clone()).await.unwrap().into_inner());
        let capability = request.volume_capabilities[0].clone();
        Assigned { swarm_id, made: made.volume.unwrap(), capability }
    }

    /// The manager: always as a mount, whatever the volume is.
    async fn controller_publish(&mut self, volume: &Assigned) {
        let mode = volume.capability.access_mode.unwrap().mode.try_into().unwrap();
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.made.volume_id.clone(),
            node_id: self.node_id.clone(),
            volume_capability: Some(mount_with(mode, "", &[])),
            volume_context: volume.made.volume_context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        check(self.daemon.controller.controller_publish_volume(request).await, Code::Ok);
    }

    async fn controller_unpublish(
        &mut self,
        volume: &Assigned,
    ) -> Result<Response<lagan::proto::ControllerUnpublishVolumeResponse>, Status> {
        let request = unpublish_from(&volume.made.volume_id, &self.node_id);
        self.daemon.controller.controller_unpublish_volume(request).await
    }

    /// The agent: both calls again, for as long as one of them fails. The parents of its paths it never makes.
    async fn node_publish(&mut self, volume: &Assigned) {
        let staging = format!("/data/staged/{}", volume.swarm_id);
        let target = format!("/data/published/{}", volume.swarm_id);
        let id = &volume.made.volume_id;
        for _ in 0..2 {
            let stage = NodeStageVolumeRequest {
                volume_context: volume.made.volume_context.clone(),
                ..stage_at(id, &staging, &volume.capability)
            };
            check(self.daemon.node.node_stage_volume(stage).await, Code::Ok);
            let publish = NodePublishVolumeRequest {
                volume_context: volume.made.volume_context.clone(),
                ..show_at(id, &staging, &target, &volume.capability)
            };
            check(self.daemon.node.node_publish_volume(publish).await, Code::Ok);
        }
    }

    /// The agent, which says nothing of the stage: what it published itself it forgets to unstage.
    async fn node_unpublish(&mut self, volume: &Assigned) {
        let target = format!("/data/published/{}", volume.swarm_id);
        check(
            self.daemon.node.node_unpublish_volume(hide_at(&volume.made.volume_id, &target)).await,
            Code::Ok,
        );
    }

    async fn node_unstage(&mut self, volume: &Assigned) {
        let staging = format!("/data/staged/{}", volume.swarm_id);
        check(
            self.daemon.node.node_unstage_volume(unstage_at(&volume.made.volume_id, &staging)).await,
            Code::Ok,
        );
    }

    async fn delete(&mut self, volume: &Assigned) {
        for _ in 0..2 {
            check(self.daemon.controller.delete_volume(delete(&volume.made.volume_id)).await, Code::Ok);
        }
    }
}

fn ground() -> Ground {
    Ground::sized(Kind::On("xfs"), 300)
}

#[tokio::test]
async fn the_life_of_a_cluster_volume() {
    let ground = ground();
    let plugin = Plugin::install(&ground);
    let mut swarm = Swarm::start(plugin.start().await).await;
    let how = mount_with(Mode::SingleNodeWriter, "ext4", &["noatime"]);
    let volume = swarm.created("w1tj7qu1lsp8a0yb4m2t3r9xk", Swarm::create("db", 16, &how)).await;
    let shown = plugin.shown(volume.swarm_id);
    // Three tasks, one after another: each time the stage of the one before is still there, or taken away by the manager.
    for task in 0..3_u8 {
        for _ in 0..2 {
            swarm.controller_publish(&volume).await;
        }
        swarm.node_publish(&volume).await;
        assert!(is_mount(&shown), "it reaches the host");
        let written = Path::new(&shown).join("data");
        assert!(task == 0 || fs::read(&written).unwrap() == [task - 1]);
        write(&written, &[task]);
        // The manager may come first: what is in use stays.
        check(swarm.controller_unpublish(&volume).await, Code::FailedPrecondition);
        swarm.node_unpublish(&volume).await;
        assert!(!Path::new(&shown).exists(), "it is gone from the host");
        for _ in 0..2 {
            check(swarm.controller_unpublish(&volume).await, Code::Ok);
        }
    }
    // A dockerd that was started anew has forgotten what it staged, and does unstage.
    swarm.node_unpublish(&volume).await;
    swarm.node_unstage(&volume).await;
    swarm.delete(&volume).await;
    ground.account();
}

/// The right is given, and taken back, without a word in between, while the stage stays: the next one copes with it.
#[tokio::test]
async fn a_stage_that_nobody_took_away() {
    let ground = ground();
    let plugin = Plugin::install(&ground);
    let mut swarm = Swarm::start(plugin.start().await).await;
    let how = mount_with(Mode::SingleNodeWriter, "ext4", &[]);
    let volume = swarm.created("b0c9d8e7f6g5h4i3j2k1l0m9n", Swarm::create("db", 16, &how)).await;
    swarm.controller_publish(&volume).await;
    swarm.node_publish(&volume).await;
    write(&Path::new(&plugin.shown(volume.swarm_id)).join("data"), b"content");
    swarm.node_unpublish(&volume).await;
    // The same task comes back before the manager has done anything.
    swarm.node_publish(&volume).await;
    assert_eq!(fs::read(Path::new(&plugin.shown(volume.swarm_id)).join("data")).unwrap(), b"content");
    // dockerd restarts its plugins, and takes their namespace with it; what was shown to the host stays there.
    swarm.daemon.kill();
    let mut swarm = Swarm::start(plugin.start().await).await;
    swarm.node_unpublish(&volume).await;
    swarm.node_unstage(&volume).await;
    swarm.controller_publish(&volume).await;
    swarm.node_publish(&volume).await;
    assert_eq!(fs::read(Path::new(&plugin.shown(volume.swarm_id)).join("data")).unwrap(), b"content");
    swarm.node_unpublish(&volume).await;
    check(swarm.controller_unpublish(&volume).await, Code::Ok);
    swarm.delete(&volume).await;
    ground.account();
}

/// `--type block`, which the command line takes for granted; and a volume made without a type at all.
#[tokio::test]
async fn raw_volumes_and_those_of_no_type() {
    let ground = ground();
    let plugin = Plugin::install(&ground);
    let mut swarm = Swarm::start(plugin.start().await).await;
    let how = block(Mode::SingleNodeWriter);
    let raw = swarm.created("r2w5zt8k1q4x7v0n3m6b9c2d5", Swarm::create("raw", 8, &how)).await;
    swarm.controller_publish(&raw).await;
    swarm.node_publish(&raw).await;
    let shown = plugin.shown(raw.swarm_id);
    assert!(fs::metadata(&shown).unwrap().file_type().is_block_device());
    assert_eq!(run("blockdev", &["--getsize64", &shown]).trim(), (8 * MIB).to_string());
    swarm.node_unpublish(&raw).await;
    check(swarm.controller_unpublish(&raw).await, Code::Ok);
    swarm.delete(&raw).await;
    let mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
    let bare = VolumeCapability { access_mode: mode, access_type: None };
    let untyped = Swarm::create("untyped", 16, &bare);
    let said = check(swarm.daemon.controller.create_volume(untyped.clone()).await, Code::InvalidArgument);
    assert!(said.contains("fstype"), "{said}");
    let typed = CreateVolumeRequest { parameters: [("fstype".into(), "ext4".into())].into(), ..untyped };
    let volume = swarm.created("u3n6t9y2p5e8d1v4o7l0u3m6e", typed).await;
    swarm.controller_publish(&volume).await;
    swarm.node_publish(&volume).await;
    write(&Path::new(&plugin.shown(volume.swarm_id)).join("data"), b"content");
    swarm.node_unpublish(&volume).await;
    check(swarm.controller_unpublish(&volume).await, Code::Ok);
    swarm.delete(&volume).await;
    ground.account();
}
