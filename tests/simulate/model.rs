//! The reference: what the specification allows as an answer. For each name it holds every state that the thing of this name may
//! be in, as far as anybody outside can know, with the calls that are on their way; a call takes effect at one instant between
//! its beginning and its end, or, where nobody was told how it ended, at some time or never. An answer that fits none of these
//! states is wrong, and one that fits some leaves only those.

use std::collections::BTreeSet;

use tonic::Code;

/// A volume, snapshot or group, as its orchestrator sees it. Ids are counted in the order in which they became known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Thing {
    /// `None` where it was made and nobody was told.
    pub(crate) id: Option<u32>,
    /// The request that made it.
    pub(crate) spec: String,
    pub(crate) asked: i64,
    /// `None` where nobody was told, as with a copy.
    pub(crate) size: Option<i64>,
    /// Granted to its node, to read only or to write.
    pub(crate) grant: Option<bool>,
    pub(crate) staged: bool,
    /// Shown at each of two paths, to read only or to write.
    pub(crate) shown: [Option<bool>; 2],
}

/// A call, as far as it concerns one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// `size` is known of what begins empty; what is asked for may also be met by a thing that has grown.
    Make {
        spec: String,
        asked: i64,
        size: Option<i64>,
        from: Vec<u32>,
    },
    Delete {
        id: u32,
    },
    Read {
        id: u32,
    },
    Grow {
        id: u32,
        size: i64,
    },
    Grant {
        id: u32,
        reads: bool,
    },
    Revoke {
        id: u32,
    },
    Stage {
        id: u32,
    },
    Unstage {
        id: u32,
    },
    Show {
        id: u32,
        at: usize,
        reads: bool,
    },
    Hide {
        id: u32,
        at: usize,
    },
    /// Statistics, or the growth of a filesystem, at a path.
    Use {
        id: u32,
        at: usize,
    },
}

/// What an answer says beside its code.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) id: Option<u32>,
    pub(crate) size: Option<i64>,
    pub(crate) granted: Option<bool>,
}

/// One possibility: the thing, and the calls that have taken effect and were not answered yet, with what they will say.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Possible {
    thing: Option<Thing>,
    done: Vec<(u32, Code2, Seen)>,
}

/// A code that can be ordered.
type Code2 = i32;

/// All that may be of one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Name {
    possible: BTreeSet<Possible>,
    pending: Vec<(u32, Op)>,
}

impl Op {
    /// Every way in which it can take effect.
    fn apply(&self, thing: Option<&Thing>, deleted: &BTreeSet<u32>) -> Vec<(Option<Thing>, Code, Seen)> {
        let known = thing.filter(|thing| self.id().is_none_or(|id| thing.id == Some(id)));
        let plain = |code: Code| vec![(thing.cloned(), code, Seen::default())];
        let changed = |change: &dyn Fn(&mut Thing)| {
            let mut thing = known.cloned();
            thing.iter_mut().for_each(change);
            let size = thing.as_ref().and_then(|thing| thing.size);
            vec![(thing, Code::Ok, Seen { id: None, size, granted: None })]
        };
        match (self, known) {
            (Self::Make { .. }, _) => self.make(thing, deleted),
            (Self::Delete { .. } | Self::Revoke { .. } | Self::Unstage { .. } | Self::Hide { .. }, None) => {
                plain(Code::Ok)
            }
            (_, None) => plain(Code::NotFound),
            (Self::Delete { .. }, Some(it)) if it.grant.is_some() => plain(Code::FailedPrecondition),
            (Self::Delete { .. }, Some(_)) => vec![(None, Code::Ok, Seen::default())],
            (Self::Read { .. }, Some(it)) => {
                let seen = Seen { id: it.id, size: it.size, granted: Some(it.grant.is_some()) };
                vec![(thing.cloned(), Code::Ok, seen)]
            }
            (Self::Grow { size, .. }, Some(_)) => {
                changed(&|thing| thing.size = thing.size.map(|now| now.max(*size)))
            }
            (Self::Grant { reads, .. }, Some(it)) => match it.grant {
                None => changed(&|thing| thing.grant = Some(*reads)),
                Some(same) if same == *reads => plain(Code::Ok),
                Some(_) => plain(Code::AlreadyExists),
            },
            (Self::Revoke { .. }, Some(it)) if it.grant.is_none() => plain(Code::Ok),
            (Self::Revoke { .. } | Self::Unstage { .. }, Some(it)) if it.shown != [None; 2] => {
                plain(Code::FailedPrecondition)
            }
            (Self::Revoke { .. }, Some(_)) => changed(&|thing| (thing.staged, thing.grant) = (false, None)),
            (Self::Unstage { .. }, Some(_)) => changed(&|thing| thing.staged = false),
            (Self::Stage { .. } | Self::Show { .. }, Some(it)) if it.grant.is_none() => {
                plain(Code::FailedPrecondition)
            }
            (Self::Stage { .. }, Some(_)) => changed(&|thing| thing.staged = true),
            (Self::Show { .. }, Some(it)) if !it.staged => plain(Code::FailedPrecondition),
            (Self::Show { at, reads, .. }, Some(it)) => {
                let reads = *reads || it.grant == Some(true);
                match it.shown[*at] {
                    None => changed(&|thing| thing.shown[*at] = Some(reads)),
                    Some(same) if same == reads => plain(Code::Ok),
                    Some(_) => plain(Code::AlreadyExists),
                }
            }
            (Self::Hide { at, .. }, Some(_)) => changed(&|thing| thing.shown[*at] = None),
            (Self::Use { at, .. }, Some(it)) if it.shown[*at].is_none() => plain(Code::NotFound),
            (Self::Use { .. }, Some(_)) => plain(Code::Ok),
        }
    }

    fn make(&self, thing: Option<&Thing>, deleted: &BTreeSet<u32>) -> Vec<(Option<Thing>, Code, Seen)> {
        let Self::Make { spec, asked, size, from } = self else { return Vec::new() };
        match thing {
            Some(it) if it.spec == *spec && (it.asked == *asked || it.size >= Some(*asked)) => {
                vec![(thing.cloned(), Code::Ok, Seen { id: it.id, size: it.size, granted: None })]
            }
            Some(_) => vec![(thing.cloned(), Code::AlreadyExists, Seen::default())],
            None => {
                let new = Thing { spec: spec.clone(), asked: *asked, size: *size, ..Thing::default() };
                let mut ways = vec![(Some(new), Code::Ok, Seen { size: *size, ..Seen::default() })];
                if from.iter().any(|id| deleted.contains(id)) {
                    ways.push((None, Code::NotFound, Seen::default()));
                }
                ways
            }
        }
    }

    /// What it may leave where it ends half-way.
    fn half(&self, thing: &Thing) -> Option<Thing> {
        match self {
            Self::Revoke { id } | Self::Unstage { id }
                if thing.id == Some(*id) && thing.shown == [None; 2] && thing.staged =>
            {
                Some(Thing { staged: false, ..thing.clone() })
            }
            _ => None,
        }
    }

    pub(crate) const fn makes(&self) -> bool {
        matches!(self, Self::Make { .. })
    }

    fn id(&self) -> Option<u32> {
        match self {
            Self::Make { .. } => None,
            Self::Delete { id }
            | Self::Read { id }
            | Self::Grow { id, .. }
            | Self::Grant { id, .. }
            | Self::Revoke { id }
            | Self::Stage { id }
            | Self::Unstage { id }
            | Self::Show { id, .. }
            | Self::Hide { id, .. }
            | Self::Use { id, .. } => Some(*id),
        }
    }
}

impl Name {
    /// One that nothing has.
    pub(crate) fn new() -> Self {
        Self { possible: BTreeSet::from([Possible::default()]), pending: Vec::new() }
    }

    /// How many calls may still take effect.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// A call is on its way.
    pub(crate) fn sent(&mut self, call: u32, op: Op, deleted: &BTreeSet<u32>) {
        self.pending.push((call, op));
        self.close(deleted);
    }

    /// Adds every state that the calls on their way can lead to.
    fn close(&mut self, deleted: &BTreeSet<u32>) {
        let mut new: Vec<Possible> = self.possible.iter().cloned().collect();
        while let Some(possible) = new.pop() {
            for (call, op) in &self.pending {
                if possible.done.iter().any(|(done, ..)| done == call) {
                    continue;
                }
                let mut reached = Vec::new();
                for (thing, code, seen) in op.apply(possible.thing.as_ref(), deleted) {
                    let mut done = possible.done.clone();
                    done.push((*call, code.into(), seen));
                    done.sort();
                    reached.push(Possible { thing, done });
                }
                if let Some(half) = possible.thing.as_ref().and_then(|thing| op.half(thing)) {
                    reached.push(Possible { thing: Some(half), done: possible.done.clone() });
                }
                new.extend(reached.into_iter().filter(|it| self.possible.insert(it.clone())));
            }
        }
    }

    /// A call was answered for good. `false` where that is impossible.
    pub(crate) fn answered(&mut self, call: u32, code: Code, seen: &Seen, deleted: &BTreeSet<u32>) -> bool {
        // Something may have been deleted meanwhile that it is made from.
        self.close(deleted);
        let before = self.possible.clone();
        let known = ids(&before);
        let mut after = BTreeSet::new();
        for mut possible in before {
            let Some(at) = possible.done.iter().position(|(done, ..)| *done == call) else { continue };
            let (_, said, expected) = possible.done.remove(at);
            if said == i32::from(code) && possible.learn(&expected, seen, &known) {
                after.insert(possible);
            }
        }
        if after.is_empty() {
            return false;
        }
        self.possible = after;
        self.pending.retain(|(pending, _)| *pending != call);
        true
    }

    /// A call was refused before it did anything.
    pub(crate) fn refused(&mut self, call: u32) -> bool {
        self.possible.retain(|possible| possible.done.iter().all(|(done, ..)| *done != call));
        self.pending.retain(|(pending, _)| *pending != call);
        !self.possible.is_empty()
    }

    /// Nothing is on its way any more: what was not answered has taken effect or never will.
    pub(crate) fn settled(&mut self) {
        self.pending.clear();
        let things = std::mem::take(&mut self.possible).into_iter();
        self.possible = things.map(|it| Possible { thing: it.thing, done: Vec::new() }).collect();
    }

    /// It was looked at while nothing was on its way. `false` where it cannot be what was found: an id where it was told, a
    /// length, whether it is granted.
    pub(crate) fn observed(&mut self, found: Option<(Option<u32>, Option<i64>, Option<bool>)>) -> bool {
        self.possible.retain(|possible| match (&possible.thing, found) {
            (None, None) => true,
            (Some(thing), Some((id, size, granted))) => {
                thing.id == id
                    && (thing.size.is_none() || size.is_none() || thing.size == size)
                    && granted.is_none_or(|granted| granted == thing.grant.is_some())
            }
            _ => false,
        });
        !self.possible.is_empty()
    }

    /// The host of it was started anew.
    pub(crate) fn rebooted(&mut self) {
        let all = std::mem::take(&mut self.possible).into_iter();
        self.possible = all
            .map(|mut possible| {
                if let Some(thing) = &mut possible.thing {
                    (thing.staged, thing.shown) = (false, [None; 2]);
                }
                possible
            })
            .collect();
    }

    /// A call may still take effect.
    pub(crate) fn waits_for(&self, call: u32) -> bool {
        self.pending.iter().any(|(pending, _)| *pending == call)
    }

    /// What is possible, for people.
    pub(crate) fn describe(&self) -> String {
        format!("{:?}, with {:?} on their way", self.possible, self.pending)
    }

    /// Everything that it may be.
    pub(crate) fn things(&self) -> impl Iterator<Item = Option<&Thing>> {
        self.possible.iter().map(|possible| possible.thing.as_ref())
    }
}

fn ids(of: &BTreeSet<Possible>) -> BTreeSet<u32> {
    of.iter().filter_map(|possible| possible.thing.as_ref()?.id).collect()
}

impl Possible {
    /// Takes what an answer says into account; `false` where it cannot be.
    fn learn(&mut self, expected: &Seen, seen: &Seen, known: &BTreeSet<u32>) -> bool {
        if let Some(id) = seen.id {
            match expected.id {
                Some(expected) if expected != id => return false,
                Some(_) => {}
                // What nobody was told of is none of those that somebody was told of.
                None if known.contains(&id) => return false,
                None => self.name(id),
            }
        }
        if let Some(size) = seen.size {
            match expected.size {
                Some(expected) if expected != size => return false,
                // Another call that is not answered yet may have changed it since.
                None if self.done.is_empty() => self.measure(size),
                Some(_) | None => {}
            }
        }
        seen.granted.is_none() || seen.granted == expected.granted
    }

    fn name(&mut self, id: u32) {
        if let Some(thing) = self.thing.as_mut().filter(|thing| thing.id.is_none()) {
            thing.id = Some(id);
        }
        for (_, code, seen) in &mut self.done {
            if *code == i32::from(Code::Ok) && seen.id.is_none() {
                seen.id = Some(id);
            }
        }
    }

    fn measure(&mut self, size: i64) {
        if let Some(thing) = self.thing.as_mut().filter(|thing| thing.size.is_none()) {
            thing.size = Some(size);
        }
    }
}
