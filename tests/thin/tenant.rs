//! A tenant who writes what the host looks for, a physical volume of the host's own group, a RAID, a btrfs, a partition
//! table, into raw volumes: nothing of the host picks it up, with udev and without.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
};

use lagan::proto::volume_capability::access_mode::Mode;

use crate::{
    disk::{text, try_run},
    group::{self, POOL, VG, lvm, try_lvm},
    requests::block,
    rig::{Daemon, Ground, Kind, run},
};

const LENGTH_MIB: i64 = 144;
/// The filesystem that the tenant makes.
const BTRFS: &str = "6c616761-6e2d-4274-a266-732d74657374";

/// What a tenant may write.
#[derive(Clone, Copy, Debug)]
enum Forgery {
    /// A group of the host's name.
    Group,
    /// The very header of the host's disk.
    Copy,
    Raid,
    Btrfs,
    Partitions,
}

const ALL: [Forgery; 5] = [Forgery::Group, Forgery::Copy, Forgery::Raid, Forgery::Btrfs, Forgery::Partitions];

/// The name of a device behind its node.
fn device_of(target: &str) -> String {
    let number = run("stat", &["-c", "%Hr:%Lr", target]);
    let path = fs::read_link(format!("/sys/dev/block/{}", number.trim())).unwrap();
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Writes it, as a program in a container would.
fn forge(ground: &Ground, target: &str, what: Forgery) {
    let device = format!("/dev/{}", device_of(target));
    match what {
        Forgery::Group => {
            // In a machine of the tenant's own nothing else is seen.
            let nodes = ground.root.join("dev");
            run("mkdir", &["-p", &text(&nodes)]);
            run("cp", &["-a", &device, &text(&nodes)]);
            let (nodes, device) = (text(&nodes), text(&nodes.join(device_of(target))));
            let only = format!(
                "devices{{dir=\"{nodes}\" scan=\"{nodes}\" filter=\"a|.*|\"}} activation{{udev_sync=0}}"
            );
            run("lvm", &["vgcreate", "--config", &only, "-y", VG, &device]);
            let make = ["-y", "-an", "-Zn", "-Wn", "-L", "8m", "-n", "trojan", VG];
            run("lvm", &[&["lvcreate", "--config", &only], &make[..]].concat());
        }
        Forgery::Copy => write(target, &read(&group::disk().unwrap(), 1 << 20)),
        Forgery::Raid => {
            let make = ["--create", "/dev/md77", "--run", "--force", "--level=1", "--raid-devices=1"];
            run("mdadm", &[&make[..], &["--metadata=1.2", "--homehost=any", &device]].concat());
            run("mdadm", &["--stop", "/dev/md77"]);
        }
        Forgery::Btrfs | Forgery::Partitions => {
            let image = ground.root.join("image");
            File::create(&image).unwrap().set_len(u64::try_from(LENGTH_MIB << 20).unwrap()).unwrap();
            if let Forgery::Btrfs = what {
                run("mkfs.btrfs", &["-q", "-U", BTRFS, &text(&image)]);
            } else {
                run("sh", &["-c", &format!("echo ',,' | sfdisk -q -X gpt {}", text(&image))]);
            }
            write(target, &fs::read(&image).unwrap());
            fs::remove_file(image).unwrap();
        }
    }
}

fn read(path: &str, length: u64) -> Vec<u8> {
    let mut content = Vec::new();
    File::open(path).unwrap().take(length).read_to_end(&mut content).unwrap();
    content
}

fn write(target: &str, content: &[u8]) {
    let device = File::options().write(true).open(target).unwrap();
    device.write_all_at(content, 0).unwrap();
    device.sync_all().unwrap();
}

/// Nobody on the host has looked at a device.
fn untouched(device: &str, what: Forgery) {
    let arrays = fs::read_to_string("/proc/mdstat").unwrap();
    assert!(!arrays.lines().any(|line| line.starts_with("md")), "{what:?}: {arrays}");
    let parts = fs::read_to_string("/proc/partitions").unwrap();
    assert!(!parts.lines().any(|line| line.ends_with(&format!(" {device}p1"))), "{what:?}: {parts}");
    assert!(!run("dmesg", &[]).contains(BTRFS), "{what:?}: the kernel was told of a btrfs");
    assert!(!run("dmsetup", &["ls"]).contains("trojan"), "{what:?}: LVM has activated a volume of it");
    let held = fs::read_dir(format!("/sys/block/{device}/holders")).unwrap().count();
    assert_eq!(held, 0, "{what:?}: somebody holds {device}");
    if group::has_udev() {
        let known = run("udevadm", &["info", "--query=property", &format!("/dev/{device}")]);
        assert!(known.contains("SYSTEMD_READY=0"), "{what:?}: {known}");
        assert!(!known.contains("ID_FS_") && !known.contains("ID_PART_"), "{what:?}: {known}");
        assert!(!Path::new("/dev/disk/by-uuid").join(BTRFS).exists(), "{what:?}");
    }
}

/// Everything that a host does when devices come and go.
fn stir() {
    if group::has_udev() {
        for action in ["change", "add"] {
            run("udevadm", &["trigger", "--subsystem-match=block", &format!("--action={action}")]);
            run("udevadm", &["settle", "--timeout=120"]);
        }
    }
}

async fn forged(ground: &Ground, daemon: &mut Daemon) -> Vec<(String, String, String, Forgery)> {
    let how = block(Mode::SingleNodeWriter);
    let mut made = Vec::new();
    for what in ALL {
        let name = format!("{what:?}");
        let id = daemon.create(&name, LENGTH_MIB, &how).await.volume_id;
        let target = daemon.show(ground, &id, &name, &how).await;
        forge(ground, &target, what);
        made.push((id, device_of(&target), name, what));
    }
    made
}

async fn nobody_reads_it(kind: Kind) {
    group::ensure(3072);
    let ground = Ground::new(kind);
    let mut daemon = ground.start().await;
    let made = forged(&ground, &mut daemon).await;
    stir();
    // A host whose LVM is not told to look at its own disks stumbles: that is what the page on operations warns of.
    let naive = ["lvcreate", "-y", "-an", "-Wn", "-Zn", "-L", "4m", "-n", "naive", VG];
    assert!(!try_run("lvm", &naive).0, "what is written here does no harm to anybody");
    // One that is told so goes on, as does Lagan, which needs no such settings.
    lvm(&["lvcreate", "-y", "-V", "4m", "-n", "fine", "--thinpool", &format!("{VG}/{POOL}")]);
    lvm(&["lvremove", "-fy", &format!("{VG}/fine")]);
    daemon.kill();
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeWriter);
    let other = daemon.create("other", 16, &how).await.volume_id;
    daemon.delete(&other).await;
    for (id, device, name, what) in &made {
        untouched(device, *what);
        daemon.hide(&ground, id, name).await;
        daemon.delete(id).await;
    }
    ground.account();
    daemon.kill();
    let (well, said) = try_lvm(&["vgs", VG]);
    assert!(well, "{said}");
}

#[tokio::test]
async fn in_thin_volumes() {
    nobody_reads_it(Kind::Lvm(VG, POOL)).await;
}

#[tokio::test]
async fn in_files() {
    nobody_reads_it(Kind::Image).await;
}
