//! The part of docs/recovery.md about thin pools, followed to the letter.

use std::{fs, fs::File, os::unix::fs::FileExt, path::Path, process::Command};

use crate::{
    disks::Disk,
    group::VG,
    guardian::{pool, remove},
    rig::{Ground, filesystem, random, run, write},
};

/// Where no udev runs, dmsetup has to make its nodes itself.
const WITHOUT_UDEV: &str = "dmsetup() { command dmsetup --noudevsync --noudevrules --verifyudev \"$@\"; }\n";
const SIZE_MIB: i64 = 64;
/// What comes before the records.
const HEADER: usize = 2 * 4096;

/// A pool that is to be recovered from, how the page begins with it, and what it is to be told.
struct Lost<'g> {
    ground: &'g Ground,
    begin: &'static str,
    end: &'static str,
    told: Vec<(&'static str, String)>,
    /// Where its records are: a device, and from which byte on.
    records: (String, u64),
}

impl Lost<'_> {
    /// Runs the commands of these parts of the page; what they print.
    #[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
    fn follow(&self, parts: &[&str], more: &[(&str, &str)]) -> String {
        let page =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recovery.md")).unwrap();
        let part = |title: &&str| {
            let (_, rest) = page.split_once(&format!("\n### {title}\n")).expect("the page has changed");
            let rest = rest.split("\n##").next().unwrap();
            rest.split("```bash\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
        };
        let commands = WITHOUT_UDEV.to_owned() + &parts.iter().map(part).collect::<String>();
        let done = Command::new("bash")
            .args(["-xeuo", "pipefail", "-c", &commands])
            .envs(self.told.iter().map(|(name, value)| (*name, value.as_str())))
            .envs(more.iter().copied())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// Gets a volume back, once by its record, and once without any.
    async fn recover(&self) {
        let mut daemon = self.ground.start().await;
        let how = filesystem("ext4");
        let id = daemon.create("precious", SIZE_MIB, &how).await.volume_id;
        let shown = daemon.show(self.ground, &id, "precious", &how).await;
        let content = random(3 << 20);
        write(&Path::new(&shown).join("data"), &content);
        daemon.hide(self.ground, &id, "precious").await;
        daemon.kill();
        self.stop();

        let out = self.ground.path("recovered");
        let data = Path::new(&out).join("data");
        let told = [("NAME", "precious"), ("OUT", out.as_str())];
        self.follow(&[self.begin, "Which thin device it is", "Its bytes", self.end], &told);
        assert!(fs::read(&data).unwrap() == content);
        run("umount", &[&out]);

        let kept = self.overwrite(&vec![0; (64 << 20) - HEADER]);
        let listed = self.follow(&[self.begin, "Which it could be, without records", self.end], &told);
        let size = (SIZE_MIB << 20).to_string();
        let mut found = 0;
        // LVM may say something before.
        for (thin, end) in listed.lines().filter_map(|line| line.trim().split_once(' ')) {
            let Ok(end) = end.parse::<i64>() else { continue };
            assert!(end <= SIZE_MIB << 20, "{listed}");
            let told = [("THIN", thin), ("SIZE", &size), ("OUT", &out)];
            self.follow(&[self.begin, "Its bytes", self.end], &told);
            // Templates of filesystems are there too, and empty.
            found += usize::from(data.exists() && fs::read(&data).unwrap() == content);
            run("umount", &[&out]);
        }
        assert_eq!(found, 1, "{listed}");
        self.overwrite(&kept);

        let mut daemon = self.ground.start().await;
        daemon.delete(&id).await;
        self.ground.account();
        daemon.kill();
    }

    /// What a pool on a disk needs before the page is followed.
    fn stop(&self) {
        if self.begin != LVM {
            let stopped = self.ground.lagan(&["pool", "stop", "--device", &self.records.0]);
            assert!(stopped.status.success(), "{stopped:?}");
        }
    }

    /// Overwrites the records, but for what says where they are; what was there.
    fn overwrite(&self, with: &[u8]) -> Vec<u8> {
        let (path, offset) = &self.records;
        let device = File::options().read(true).write(true).open(path).unwrap();
        let (mut kept, offset) = (vec![0; with.len()], offset + HEADER as u64);
        device.read_exact_at(&mut kept, offset).unwrap();
        device.write_all_at(with, offset).unwrap();
        device.sync_all().unwrap();
        kept
    }
}

const LVM: &str = "On LVM";

#[tokio::test]
async fn without_lagan() {
    let ground = pool("lost-pool", "256m", "8m");
    let told = vec![("VG", VG.to_owned()), ("POOL", "lost-pool".to_owned())];
    let records = (format!("/dev/mapper/{VG}-lost--pool_lagan"), 0);
    // The part of the page that ends it has nothing to do here.
    Lost { ground: &ground, begin: LVM, end: LVM, told, records }.recover().await;
    remove(&ground, "lost-pool");
}

#[tokio::test]
async fn without_lagan_on_a_disk() {
    let (disk, ground) = Disk::with_pool(1024);
    let told = vec![("DISK", disk.node.to_owned())];
    let (begin, end) = ("On a disk of its own", "Afterwards, on a disk of its own");
    Lost { ground: &ground, begin, end, told, records: (disk.node.to_owned(), 1 << 20) }.recover().await;
    disk.retire(&ground);
}
