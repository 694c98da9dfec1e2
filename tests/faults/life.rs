//! The calls of a volume's life: what each needs before it, and what is undone after it. `attempt` makes them, `effects` says
//! what must be there then, as seen from outside.

use std::{fs, path::Path};

use lagan::proto::{VolumeCapability, VolumeGroupSnapshot, volume_capability::access_mode::Mode};

use crate::{
    requests::{block, create_with, ungroup},
    rig::{Daemon, Ground, MIB, filesystem, random, write},
};
use attempt::{grow_to, uncut};

mod attempt;
mod effects;

/// What a volume is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Raw,
    /// A raw one, shown read-only.
    Face,
}

/// What a new volume begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Nothing,
    /// A filesystem of a length that is asked for the first time, so that a program makes it.
    Maker,
    /// One that is asked for the second time, so that it is checked and kept as well.
    MakerAndChecker,
    /// One that is kept.
    Template(Kind),
    /// A raw volume that nobody uses.
    Volume,
    /// One that is mounted.
    Used,
    Snapshot,
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create(From),
    Cut,
    CutUsed,
    Uncut,
    Group,
    Ungroup,
    Grant,
    Ungrant,
    Stage(Kind),
    Unstage(Kind),
    Show(Kind),
    Hide(Kind),
    Stats,
    Grow,
    GrowUsed,
    GrowNode(Kind),
    Delete,
    List,
    ListSnapshots,
    Capacity,
    Get,
    /// One that must be refused: the volume is shown.
    UnstageShown(Kind),
    UngrantShown(Kind),
}

use Operation::{
    Capacity, Create, Cut, CutUsed, Delete, Get, Grant, Group, Grow, GrowNode, GrowUsed, Hide, List,
    ListSnapshots, Show, Stage, Stats, Uncut, Ungrant, UngrantShown, Ungroup, Unstage, UnstageShown,
};

const ALL: [Operation; 40] = [
    Create(From::Nothing),
    Create(From::Maker),
    Create(From::MakerAndChecker),
    Create(From::Template(Kind::Ext4)),
    Create(From::Template(Kind::Xfs)),
    Create(From::Volume),
    Create(From::Used),
    Create(From::Snapshot),
    Cut,
    CutUsed,
    Uncut,
    Group,
    Ungroup,
    Grant,
    Stage(Kind::Ext4),
    Stage(Kind::Xfs),
    Stage(Kind::Raw),
    Show(Kind::Ext4),
    Show(Kind::Raw),
    Show(Kind::Face),
    Stats,
    Grow,
    GrowUsed,
    GrowNode(Kind::Ext4),
    GrowNode(Kind::Xfs),
    UnstageShown(Kind::Ext4),
    UngrantShown(Kind::Ext4),
    Hide(Kind::Ext4),
    UnstageShown(Kind::Raw),
    UngrantShown(Kind::Raw),
    Hide(Kind::Raw),
    Hide(Kind::Face),
    Unstage(Kind::Ext4),
    Unstage(Kind::Raw),
    Ungrant,
    Delete,
    List,
    ListSnapshots,
    Capacity,
    Get,
];

/// Whose calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Volumes,
    Snapshots,
    Node,
}

/// Those that can be made on this host.
pub(crate) fn every(of: Of) -> impl Iterator<Item = Operation> {
    let here = |it: &Operation| *it != GrowNode(Kind::Ext4) || lagan::sys::host::may_grow_ext4();
    ALL.into_iter().filter(move |it| it.of() == of).filter(here)
}

/// Those of them that OPERATIONS names, where it names some.
pub(crate) fn all(of: Of) -> impl Iterator<Item = Operation> {
    let named = |operation: &Operation| {
        let Ok(wanted) = std::env::var("OPERATIONS") else { return true };
        let name = format!("{operation:?}").to_lowercase();
        wanted.split_whitespace().any(|word| name.starts_with(word))
    };
    every(of).filter(named)
}

impl Operation {
    fn of(self) -> Of {
        match self {
            Create(_) | Grant | Ungrant | Grow | Delete | List | Capacity | Get => Of::Volumes,
            Cut | CutUsed | Uncut | Group | Ungroup | ListSnapshots => Of::Snapshots,
            Stage(_) | Unstage(_) | Show(_) | Hide(_) | Stats | GrowUsed | GrowNode(_) => Of::Node,
            UnstageShown(_) | UngrantShown(_) => Of::Node,
        }
    }
}

/// How far a volume is on its way to a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Made,
    Granted,
    Staged,
    Shown,
}

/// A volume that operations are tried on, and how far it is.
#[derive(Clone, Debug)]
struct Victim {
    id: String,
    kind: Kind,
    level: Level,
    size: i64,
}

/// What the operations work on.
pub(crate) struct Life {
    /// A raw volume that nobody uses, and what it holds.
    quiet: String,
    content: Vec<u8>,
    /// Two that are mounted; in the first one lies a page of known content.
    used: [String; 2],
    page: Vec<u8>,
    /// Of the quiet one.
    snapshot: String,
    victim: Option<Victim>,
    /// A snapshot or group that is to be removed.
    doomed: Option<String>,
    doomed_group: Option<VolumeGroupSnapshot>,
    /// What a call has made.
    made: Option<String>,
    made_group: Option<VolumeGroupSnapshot>,
    /// A length that was never asked for yet.
    fresh: i64,
    /// What had to be refused was not.
    allowed: bool,
}

/// The length of what is made with a filesystem.
fn length(kind: Kind) -> i64 {
    match kind {
        Kind::Xfs => 300 * MIB,
        Kind::Ext4 | Kind::Raw | Kind::Face => 16 * MIB,
    }
}

fn capability(kind: Kind) -> VolumeCapability {
    match kind {
        Kind::Ext4 => filesystem("ext4"),
        Kind::Xfs => filesystem("xfs"),
        Kind::Raw | Kind::Face => block(Mode::SingleNodeMultiWriter),
    }
}

impl Life {
    /// Makes what operations work on.
    pub(crate) async fn begin(ground: &Ground, daemon: &mut Daemon) -> Self {
        let (content, page) = (random(4 << 20), random(4096));
        let quiet = daemon.create("quiet", 4, &capability(Kind::Raw)).await.volume_id;
        fs::write(ground.file_of(&quiet), &content).unwrap();
        let mut used = Vec::new();
        for name in ["used", "used-too"] {
            let id = daemon.create(name, 16, &filesystem("ext4")).await.volume_id;
            let shown = daemon.show(ground, &id, name, &filesystem("ext4")).await;
            write(&Path::new(&shown).join("page"), &page);
            used.push(id);
        }
        // So that lengths have their templates.
        for kind in [Kind::Ext4, Kind::Xfs, Kind::Xfs] {
            let id = daemon.create("once", length(kind) / MIB, &capability(kind)).await.volume_id;
            daemon.delete(&id).await;
        }
        let snapshot = daemon.snapshot(&quiet, "before").await.unwrap().snapshot_id;
        Self {
            quiet,
            content,
            used: used.try_into().unwrap(),
            page,
            snapshot,
            victim: None,
            doomed: None,
            doomed_group: None,
            made: None,
            made_group: None,
            fresh: 20 * MIB,
            allowed: false,
        }
    }

    /// Takes it all away.
    pub(crate) async fn end(mut self, ground: &Ground, daemon: &mut Daemon) {
        self.settle(ground, daemon, None).await;
        for (id, name) in self.used.iter().zip(["used", "used-too"]) {
            daemon.hide(ground, id, name).await;
            daemon.delete(id).await;
        }
        daemon.delete(&self.quiet).await;
        uncut(daemon, &self.snapshot).await.unwrap();
    }

    /// The kind of volume, and how far it must be before an operation.
    fn needs(operation: Operation) -> Option<(Kind, Level)> {
        Some(match operation {
            Grant => (Kind::Ext4, Level::Made),
            Ungrant => (Kind::Ext4, Level::Granted),
            Stage(kind) => (kind, Level::Granted),
            Unstage(kind) | Show(kind) => (kind, Level::Staged),
            Hide(kind) | GrowNode(kind) | UnstageShown(kind) | UngrantShown(kind) => (kind, Level::Shown),
            Stats | GrowUsed => (Kind::Ext4, Level::Shown),
            Grow | Delete => (Kind::Raw, Level::Made),
            _ => return None,
        })
    }

    /// Brings everything to where an operation begins.
    pub(crate) async fn prepare(&mut self, ground: &Ground, daemon: &mut Daemon, operation: Operation) {
        self.settle(ground, daemon, Some(operation)).await;
        if let Some((kind, level)) = Self::needs(operation) {
            if self.victim.is_none() {
                let how = capability(kind);
                let id = daemon.create("victim", length(kind) / MIB, &how).await.volume_id;
                self.victim = Some(Victim { id, kind, level: Level::Made, size: length(kind) });
            }
            self.bring(ground, daemon, level).await;
        }
        match operation {
            Create(From::Maker) => self.fresh += 4096,
            Create(From::MakerAndChecker) => {
                self.fresh += 4096;
                let request = create_with("once", self.fresh, &filesystem("ext4"));
                let once =
                    daemon.controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
                daemon.delete(&once.volume_id).await;
            }
            Uncut => self.doomed = Some(daemon.snapshot(&self.quiet, "doomed").await.unwrap().snapshot_id),
            Ungroup => {
                let used: Vec<_> = self.used.iter().map(String::as_str).collect();
                self.doomed_group = Some(daemon.group(&used, "doomed").await.unwrap());
            }
            Grow | GrowUsed => self.victim.as_mut().unwrap().size += 16 * MIB,
            // A refusal that came late has taken the stage away.
            UnstageShown(kind) | UngrantShown(kind) => {
                self.attempt(ground, daemon, Stage(kind)).await.unwrap();
            }
            GrowNode(_) => {
                let victim = self.victim.as_mut().unwrap();
                victim.size += 16 * MIB;
                daemon.controller.controller_expand_volume(grow_to(&victim.id, victim.size)).await.unwrap();
            }
            _ => {}
        }
    }

    /// What the files have in their names that come and go with each trial.
    pub(crate) fn passing(&self) -> Vec<String> {
        let members = self.doomed_group.iter().flat_map(|group| {
            let snapshots = group.snapshots.iter().map(|it| it.snapshot_id.clone());
            snapshots.chain([group.group_snapshot_id.clone()])
        });
        let ids =
            self.victim.iter().map(|victim| victim.id.clone()).chain(self.doomed.clone()).chain(members);
        ids.filter_map(|id| id.rsplit('.').next().map(str::to_owned)).collect()
    }

    /// Removes what the operation before made, and the victim where the next one needs none like it.
    async fn settle(&mut self, ground: &Ground, daemon: &mut Daemon, next: Option<Operation>) {
        match self.made.take() {
            Some(id) if id.starts_with("s.") => uncut(daemon, &id).await.unwrap(),
            Some(id) => daemon.delete(&id).await,
            None => {}
        }
        if let Some(group) = self.made_group.take() {
            daemon.groups.delete_volume_group_snapshot(ungroup(&group)).await.unwrap();
        }
        (self.doomed, self.doomed_group) = (None, None);
        let wanted = next.and_then(Self::needs);
        if let Some(victim) = &self.victim
            && (wanted.is_none_or(|(kind, _)| kind != victim.kind)
                || victim.size > length(victim.kind) + 800 * MIB)
        {
            self.bring(ground, daemon, Level::Made).await;
            daemon.delete(&self.victim.take().unwrap().id).await;
        }
    }

    fn staging(ground: &Ground) -> String {
        ground.path("victim-staging")
    }

    fn target(ground: &Ground) -> String {
        ground.path("victim")
    }

    async fn bring(&mut self, ground: &Ground, daemon: &mut Daemon, to: Level) {
        let victim = self.victim.clone().unwrap();
        let mut level = victim.level;
        while level != to {
            let kind = victim.kind;
            let (operation, next) = match (level, level < to) {
                (Level::Made, _) => (Grant, Level::Granted),
                (Level::Granted, true) => (Stage(kind), Level::Staged),
                (Level::Granted, false) => (Ungrant, Level::Made),
                (Level::Staged, true) => (Show(kind), Level::Shown),
                (Level::Staged, false) => (Unstage(kind), Level::Granted),
                (Level::Shown, _) => (Hide(kind), Level::Staged),
            };
            self.attempt(ground, daemon, operation).await.unwrap();
            level = next;
        }
        self.victim.as_mut().unwrap().level = to;
    }
}
