//! Mistakes of an administrator: what serves the pool cannot be removed, whether a volume is staged or not.

use crate::{
    group::{self, POOL, VG, lvm, try_lvm},
    requests::block,
    rig::{Ground, Kind},
};
use lagan::proto::volume_capability::access_mode::Mode;

#[tokio::test]
async fn nothing_of_the_pool_can_be_removed() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let mut daemon = ground.start().await;
    let id = daemon.create("unstaged", 64, &block(Mode::SingleNodeWriter)).await.volume_id;
    let pool = format!("{VG}/{POOL}");
    let listed = || lvm(&["lvs", "-a", "--noheadings", "-o", "lv_name,lv_size,transaction_id", VG]);
    let before = listed();
    let refused = |command: &[&str]| {
        let (well, said) = try_lvm(command);
        let held = ["in use", "used by another device"].iter().any(|why| said.contains(why));
        assert!(!well && held, "{command:?}: {said}");
        assert_eq!(listed(), before, "{command:?}");
    };
    refused(&["lvremove", "-fy", &pool]);
    daemon.kill();
    // Nobody has anything of it open now, but for the keeper.
    let parts = ["_lagan", "_anchor"].map(|part| pool.clone() + part);
    refused(&["lvremove", "-fy", &pool]);
    refused(&["lvremove", "-fy", &parts[0]]);
    refused(&["lvremove", "-fy", &parts[1]]);
    refused(&["vgremove", "-fy", VG]);
    refused(&["vgchange", "-an", VG]);
    let mut daemon = ground.start().await;
    daemon.delete(&id).await;
    ground.account();
}
