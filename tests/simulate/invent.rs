//! What callers might ask for next.

use std::collections::BTreeSet;

use lagan::{csi::Topology, proto::TopologyRequirement};

use crate::{
    book::{Book, Flight, Kind, Subject},
    calls::{Call, From},
    chance::Chance,
    machine::DRIVER,
    model::Op,
    shared::Place,
};

pub(crate) const GIB: i64 = 1 << 30;

impl Book {
    /// A call that somebody might make now.
    pub(crate) fn invent(&self, chance: &mut Chance, routers: usize, now: u64) -> Option<Flight> {
        let subject = chance.pick(&[0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5]);
        let (call, op) = match self.subjects[subject].kind {
            Kind::Volume => self.invent_for_volume(chance, subject)?,
            Kind::Snapshot => self.invent_for_cut(chance, subject, 1)?,
            Kind::Group => self.invent_for_cut(chance, subject, 2)?,
        };
        let to = self.place_for(&call, subject, routers, chance);
        Some(Flight {
            subject,
            op,
            call,
            to,
            began: now,
            excused: now,
            alone: true,
            packet: None,
            abort: None,
        })
    }

    /// A call as a caller would make it that is decided already.
    pub(crate) fn flight(&self, subject: usize, call: Call, op: Op, routers: usize, now: u64) -> Flight {
        let to = self.place_for(&call, subject, routers, &mut Chance::new(now));
        Flight { subject, op, call, to, began: now, excused: now, alone: true, packet: None, abort: None }
    }

    fn place_for(&self, call: &Call, subject: usize, routers: usize, chance: &mut Chance) -> Place {
        let home = Place::Host(self.subjects[subject].home);
        let of_node = matches!(
            call,
            Call::Stage { .. }
                | Call::Unstage { .. }
                | Call::Show { .. }
                | Call::Hide { .. }
                | Call::Stats { .. }
                | Call::GrowAt { .. }
        );
        if of_node || routers == 0 || chance.once_in(8) { home } else { Place::Router(chance.below(routers)) }
    }

    /// The id of a name that is used now, or one that was.
    fn some_id(&self, chance: &mut Chance, subject: usize) -> Option<u32> {
        let ids = &self.subjects[subject].ids;
        let last = ids.last().copied()?;
        Some(if chance.once_in(10) { chance.pick(ids) } else { last })
    }

    fn invent_for_volume(&self, chance: &mut Chance, subject: usize) -> Option<(Call, Op)> {
        let Some(id) = self.some_id(chance, subject).filter(|_| !chance.once_in(10)) else {
            return Some(self.make_volume(chance, subject));
        };
        let (at, reads) = (chance.below(2), chance.once_in(5));
        let grow = Op::Grow { id, size: GIB * chance.pick(&[1, 2, 3]) };
        // What leads on is asked for more often than what must fail.
        let thing = self.subjects[subject].model.things().flatten().find(|thing| thing.id == Some(id));
        let (granted, staged) = thing.map_or((false, false), |thing| (thing.grant.is_some(), thing.staged));
        let shown = thing.is_some_and(|thing| thing.shown != [None; 2]);
        let often = |leads_on: bool| if leads_on { 8 } else { 1 };
        let which = chance.weigh(&[
            (often(thing.is_some() && !granted) / 4, 0),
            (2, 1),
            (2, 2),
            (often(!granted), 3),
            (often(granted && !staged) / 2, 4),
            (often(granted && !staged), 5),
            (often(staged && !shown) / 2, 6),
            (often(staged), 7),
            (often(shown), 8),
            (often(shown) / 2, 9),
        ])?;
        let op = match which {
            0 => Op::Delete { id },
            1 => Op::Read { id },
            2 => grow,
            3 => Op::Grant { id, reads },
            4 => Op::Revoke { id },
            5 => Op::Stage { id },
            6 => Op::Unstage { id },
            7 => Op::Show { id, at, reads },
            8 => Op::Hide { id, at },
            _ => Op::Use { id, at },
        };
        Some(match self.on(subject, op) {
            (Call::Stats { id, target }, op) if reads => (Call::GrowAt { id, target }, op),
            other => other,
        })
    }

    fn make_volume(&self, chance: &mut Chance, subject: usize) -> (Call, Op) {
        let Subject { home, raw, .. } = self.subjects[subject];
        let sources: Vec<(From, u32)> = (0..u32::try_from(self.known.len()).unwrap())
            .filter_map(|id| {
                let known = &self.known[usize::try_from(id).unwrap()];
                let (text, of) = (&known.text, &self.subjects[known.subject]);
                let fits = of.home == home && known.raw == raw;
                match of.kind {
                    Kind::Volume if fits && of.name != self.subjects[subject].name => {
                        Some((From::Volume(text.clone()), id))
                    }
                    Kind::Snapshot if fits => Some((From::Snapshot(text.clone()), id)),
                    _ => None,
                }
            })
            .collect();
        let (from, ids) = match sources.len() {
            0 => (From::Nothing, Vec::new()),
            _ if !chance.once_in(3) => (From::Nothing, Vec::new()),
            count => {
                let (from, id) = sources[chance.below(count)].clone();
                (from, vec![id])
            }
        };
        let plain = from == From::Nothing;
        let asked = if plain && chance.once_in(6) { 2 * GIB } else { GIB };
        let spec = format!("{raw} {from:?}");
        let place = place_of(home);
        let name = self.subjects[subject].name.to_owned();
        let op = Op::Make { spec, asked, size: plain.then_some(asked), from: ids };
        (Call::Create { name, size: asked, raw, from, place }, op)
    }

    /// A snapshot of one volume, or a group of up to so many.
    fn invent_for_cut(&self, chance: &mut Chance, subject: usize, most: usize) -> Option<(Call, Op)> {
        let id = self.some_id(chance, subject).filter(|_| !chance.once_in(3));
        Some(match id {
            Some(id) if chance.once_in(2) => self.on(subject, Op::Delete { id }),
            Some(id) => self.on(subject, Op::Read { id }),
            None => {
                let volumes = self.volumes_at(self.subjects[subject].home);
                if volumes.is_empty() {
                    return None;
                }
                let all: BTreeSet<u32> = (0..most).map(|_| volumes[chance.below(volumes.len())]).collect();
                self.usual(subject, &all.into_iter().collect::<Vec<_>>())
            }
        })
    }

    /// The call that makes a thing as it usually is: an empty volume, a snapshot of one, a group of several.
    pub(crate) fn usual(&self, subject: usize, from: &[u32]) -> (Call, Op) {
        let Subject { kind, home, raw, .. } = self.subjects[subject];
        let name = self.subjects[subject].name.to_owned();
        let of: Vec<String> = from.iter().map(|id| self.text(*id)).collect();
        let made = |asked: i64, size| {
            let spec =
                if kind == Kind::Volume { format!("{raw} {:?}", From::Nothing) } else { format!("{of:?}") };
            Op::Make { spec, asked, size, from: from.to_vec() }
        };
        match kind {
            Kind::Volume => {
                let (from, place) = (From::Nothing, place_of(home));
                (Call::Create { name, size: GIB, raw, from, place }, made(GIB, Some(GIB)))
            }
            Kind::Snapshot => (Call::Cut { name, volume: of.concat() }, made(0, None)),
            Kind::Group => (Call::CutGroup { name, volumes: of.clone() }, made(0, None)),
        }
    }

    /// The last known ids of volumes on a host.
    fn volumes_at(&self, home: usize) -> Vec<u32> {
        let there = self.subjects.iter().filter(|it| it.kind == Kind::Volume && it.home == home);
        there.filter_map(|it| it.ids.last().copied()).collect()
    }

    pub(crate) fn text(&self, id: u32) -> String {
        self.known[usize::try_from(id).unwrap()].text.clone()
    }

    /// The call for what is to be done with an id.
    pub(crate) fn on(&self, subject: usize, op: Op) -> (Call, Op) {
        let Subject { name, kind, home, raw, .. } = &self.subjects[subject];
        let (node, raw) = (format!("n{home}"), *raw);
        let (staging, target) = (staging_of(name), |at: &usize| target_of(name, *at));
        let text = |id: &u32| self.text(*id);
        let members = |id: &u32| self.known[usize::try_from(*id).unwrap()].members.clone();
        let call = match (&op, kind) {
            (Op::Make { spec, .. }, _) => self.subjects[subject].makes[spec].0.clone(),
            (Op::Delete { id }, Kind::Volume) => Call::Delete { id: text(id) },
            (Op::Delete { id }, Kind::Snapshot) => Call::DeleteSnapshot { id: text(id) },
            (Op::Delete { id }, Kind::Group) => Call::DeleteGroup { id: text(id), members: members(id) },
            (Op::Read { id }, Kind::Volume) => Call::Get { id: text(id) },
            (Op::Read { id }, Kind::Snapshot) => Call::GetSnapshot { id: text(id) },
            (Op::Read { id }, Kind::Group) => Call::GetGroup { id: text(id), members: members(id) },
            (Op::Grow { id, size }, _) => Call::Grow { id: text(id), size: *size },
            (Op::Grant { id, reads }, _) => Call::Grant { id: text(id), node, raw, reads: *reads },
            (Op::Revoke { id }, _) => Call::Revoke { id: text(id), node },
            (Op::Stage { id }, _) => Call::Stage { id: text(id), path: staging, raw },
            (Op::Unstage { id }, _) => Call::Unstage { id: text(id), path: staging },
            (Op::Show { id, at, reads }, _) => {
                Call::Show { id: text(id), staging, target: target(at), raw, reads: *reads }
            }
            (Op::Hide { id, at }, _) => Call::Hide { id: text(id), target: target(at) },
            (Op::Use { id, at }, _) => Call::Stats { id: text(id), target: target(at) },
        };
        (call, op)
    }
}

/// Only on one host.
fn place_of(home: usize) -> TopologyRequirement {
    let place = Topology::new(DRIVER, &format!("n{home}").parse().unwrap()).accessible();
    TopologyRequirement { requisite: vec![place.clone()], preferred: vec![place] }
}

pub(crate) fn staging_of(name: &str) -> String {
    format!("/t/stage-{name}")
}

pub(crate) fn target_of(name: &str, at: usize) -> String {
    format!("/t/pods/{name}-{at}")
}
