//! What must be there after each call.

use std::{fs, os::unix::fs::FileExt, path::Path};

use super::{
    From, Kind, Level, Life,
    Operation::{
        self, Create, Cut, CutUsed, Delete, Grant, Group, Grow, GrowNode, GrowUsed, Hide, Show, Stage, Uncut,
        Ungrant, UngrantShown, Ungroup, Unstage, UnstageShown,
    },
};
use crate::{
    rig::Ground,
    world::{loop_devices, record_of},
};

fn expect(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

impl Life {
    /// What must be there once the call was answered with success; the reason where it is not.
    pub(crate) fn check(&mut self, ground: &Ground, operation: Operation) -> Result<(), String> {
        let snapshot_file = |id: &str| {
            let directory = ground.volumes().parent().unwrap().join("snapshots");
            directory.join(format!("{}.raw", id.rsplit('.').next().unwrap()))
        };
        let made = || self.made.clone().ok_or("no id was answered");
        let victim = self.victim.as_mut();
        match operation {
            Create(from) => self.check_content(&ground.file_of(&made()?), from)?,
            Cut => expect(
                fs::read(snapshot_file(&made()?)).is_ok_and(|it| it == self.content),
                "content of the cut",
            )?,
            CutUsed => expect(self.holds_page(&snapshot_file(&made()?)), "content of the cut")?,
            Uncut => {
                expect(!snapshot_file(self.doomed.as_ref().unwrap()).exists(), "the snapshot is still there")?
            }
            Group => {
                let group = self.made_group.as_ref().ok_or("no group was answered")?;
                let all = group.snapshots.iter().all(|it| self.holds_page(&snapshot_file(&it.snapshot_id)));
                expect(all && group.snapshots.len() == 2, "content of the group")?;
            }
            Ungroup => {
                let group = self.doomed_group.as_ref().unwrap();
                let gone = group.snapshots.iter().all(|it| !snapshot_file(&it.snapshot_id).exists());
                expect(gone, "members are still there")?;
            }
            Grow | GrowUsed => {
                let victim = victim.unwrap();
                let is = fs::metadata(ground.file_of(&victim.id)).map_or(0, |it| it.len());
                expect(i64::try_from(is).unwrap() >= victim.size, "the length of the file")?;
                let size = format!("\"size\":{}", victim.size);
                expect(record_of(&ground.file_of(&victim.id)).contains(&size), "the length in the record")?;
            }
            Delete => {
                let gone = !ground.file_of(&victim.unwrap().id).exists();
                expect(gone, "the file is still there")?;
                self.victim = None;
            }
            _ => self.check_node(ground, operation)?,
        }
        Ok(())
    }

    /// The same of grants, mounts and devices.
    fn check_node(&mut self, ground: &Ground, operation: Operation) -> Result<(), String> {
        let mounted = |path: &str| ground.mounts().iter().any(|point| point == path);
        let granted = |id: &str| record_of(&ground.file_of(id)).contains("\"n1\"");
        let Some(victim) = self.victim.as_mut() else { return Ok(()) };
        match operation {
            Grant | Ungrant => {
                victim.level = if operation == Grant { Level::Granted } else { Level::Made };
                expect(granted(&victim.id) == (operation == Grant), "the grant in the record")?;
            }
            Stage(kind) | Unstage(kind) => {
                let up = matches!(operation, Stage(_));
                victim.level = if up { Level::Staged } else { Level::Granted };
                let raw = matches!(kind, Kind::Raw | Kind::Face);
                expect(mounted(&Self::staging(ground)) == (up && !raw), "the mount at the staging path")?;
                let devices = loop_devices(&ground.file_of(&victim.id));
                expect(devices.len() == usize::from(up), &format!("devices: {devices:?}"))?;
            }
            Show(_) | Hide(_) => {
                let up = matches!(operation, Show(_));
                victim.level = if up { Level::Shown } else { Level::Staged };
                expect(mounted(&Self::target(ground)) == up, "the mount at the target path")?;
                expect(up || !Path::new(&Self::target(ground)).exists(), "the target path")?;
            }
            GrowNode(_) => {
                let room = rustix::fs::statvfs(Self::target(ground)).map_err(|error| error.to_string())?;
                let is = i64::try_from(room.f_blocks * room.f_frsize).unwrap();
                expect(is * 10 > victim.size * 7, &format!("the filesystem spans {is}"))?;
            }
            UnstageShown(_) | UngrantShown(_) => {
                expect(!self.allowed, "it had to be refused")?;
                expect(mounted(&Self::target(ground)), "the mount at the target path")?;
                expect(granted(&victim.id), "the grant in the record")?;
            }
            _ => {}
        }
        Ok(())
    }

    fn check_content(&self, file: &Path, from: From) -> Result<(), String> {
        let holds = match from {
            From::Nothing => fs::read(file).is_ok_and(|it| it == vec![0; 4 << 20]),
            From::Maker | From::MakerAndChecker => magic(file, Kind::Ext4),
            From::Template(kind) => magic(file, kind),
            From::Volume | From::Snapshot => fs::read(file).is_ok_and(|it| it.starts_with(&self.content)),
            From::Used => magic(file, Kind::Ext4) && self.holds_page(file),
        };
        if holds { Ok(()) } else { Err(format!("content of {}", file.display())) }
    }

    /// Whether the page that lies in a used volume lies in this copy of it.
    fn holds_page(&self, file: &Path) -> bool {
        let content = fs::read(file).unwrap_or_default();
        content.chunks_exact(4096).any(|page| page == self.page)
    }
}

/// Whether a file bears the mark of a filesystem.
fn magic(file: &Path, kind: Kind) -> bool {
    let (mark, at): (&[u8], _) = if kind == Kind::Xfs { (b"XFSB", 0) } else { (&[0x53, 0xef], 1080) };
    let mut found = vec![0; mark.len()];
    fs::File::open(file).is_ok_and(|file| file.read_exact_at(&mut found, at).is_ok()) && found == mark
}
