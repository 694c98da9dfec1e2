//! Volumes grown while they are in use.

use std::{fs, path::Path};

use lagan::{
    proto::{
        CapacityRange, ControllerExpandVolumeRequest, NodeExpandVolumeRequest,
        volume_capability::access_mode::Mode,
    },
    sys::host,
};
use tonic::Code;

use crate::{
    requests::{block, check},
    rig::{Daemon, Ground, Kind, MIB, filesystem, least, random, run, write},
};

async fn grow(daemon: &mut Daemon, id: &str, mib: i64) -> bool {
    let request = ControllerExpandVolumeRequest {
        volume_id: id.into(),
        capacity_range: Some(CapacityRange { required_bytes: mib * MIB, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    };
    let answer = daemon.controller.controller_expand_volume(request).await.unwrap().into_inner();
    assert_eq!(answer.capacity_bytes, mib * MIB);
    answer.node_expansion_required
}

fn expand(id: &str, path: &str) -> NodeExpandVolumeRequest {
    NodeExpandVolumeRequest {
        volume_id: id.into(),
        volume_path: path.into(),
        ..NodeExpandVolumeRequest::default()
    }
}

fn size(path: &str) -> i64 {
    run("df", &["--output=size", "-B1", path]).lines().last().unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn mounted_filesystems_grow() {
    for kind in [Kind::Image, Kind::On("ext4")] {
        let ground = Ground::new(kind);
        let mut daemon = ground.start().await;
        for name in ["ext4", "xfs", "btrfs"] {
            let how = filesystem(name);
            let id = daemon.create(name, least(name), &how).await.volume_id;
            let target = daemon.show(&ground, &id, name, &how).await;
            let content = random(1 << 20);
            write(&Path::new(&target).join("data"), &content);
            assert!(grow(&mut daemon, &id, 700).await, "the node has to do its part");
            if name == "ext4" && !host::may_grow_ext4() {
                let said = check(
                    daemon.node.node_expand_volume(expand(&id, &target)).await,
                    Code::FailedPrecondition,
                );
                assert!(said.contains("CAP_SYS_RESOURCE"), "{said}");
            } else {
                for _ in 0..2 {
                    daemon.node.node_expand_volume(expand(&id, &target)).await.unwrap();
                }
                assert!(size(&target) > 600 * MIB, "{name} on {kind:?}: {}", size(&target));
            }
            assert!(fs::read(Path::new(&target).join("data")).unwrap() == content);
            daemon.hide(&ground, &id, name).await;
            daemon.delete(&id).await;
        }
        ground.account();
    }
}

#[tokio::test]
async fn raw_devices_grow_at_once() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeMultiWriter);
    let id = daemon.create("raw", 8, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "raw", &how).await;
    let length = || run("blockdev", &["--getsize64", &target]).trim().parse::<i64>().unwrap();
    assert_eq!(length(), 8 * MIB);
    assert!(!grow(&mut daemon, &id, 16).await, "nothing is left for the node");
    assert_eq!(length(), 16 * MIB);
    check(daemon.node.node_expand_volume(expand(&id, &target)).await, Code::Ok);
    daemon.hide(&ground, &id, "raw").await;
    ground.account();
}

#[tokio::test]
async fn trimmed_space_goes_back_to_the_pool() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 256, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    let used = || {
        fs::metadata(ground.file_of(&id)).map(|m| std::os::unix::fs::MetadataExt::blocks(&m) * 512).unwrap()
    };
    let data = Path::new(&target).join("data");
    write(&data, &random(64 << 20));
    let full = used();
    assert!(full > 64 << 20, "{full}");
    fs::remove_file(&data).unwrap();
    run("sync", &["-f", &target]);
    let trimmed = ground.lagan(&["volume", "trim", &id]);
    assert!(trimmed.status.success(), "{trimmed:?}");
    assert!(used() < full - (60 << 20), "{} of {full} are still taken", used());
    daemon.hide(&ground, &id, "a").await;
    let unmounted = ground.lagan(&["volume", "trim", &id]);
    assert!(String::from_utf8_lossy(&unmounted.stderr).contains("not mounted"), "{unmounted:?}");
}
