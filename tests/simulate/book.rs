//! What the callers know: names, ids, calls on their way, what users wrote, and what may be true of each name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use lagan::sys::kernel::{Attributes, Kernel, Seen as At};
use tokio::{runtime::Runtime, task::AbortHandle};
use tonic::{Code, Status};

use crate::{
    calls::{Call, Said},
    chance::Chance,
    invent::target_of,
    machine::Machine,
    model::{Name, Op, Seen},
    shared::{Place, Shared, Way},
    world::is_vague,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Volume,
    Snapshot,
    Group,
}

/// A name, and what is done with it.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The host that it is on.
    pub(crate) home: usize,
    pub(crate) raw: bool,
    pub(crate) model: Name,
    /// How each thing of this name was asked for.
    pub(crate) makes: BTreeMap<String, (Call, Op)>,
    /// Ids that callers were told, the last one last.
    pub(crate) ids: Vec<u32>,
    /// Since when what has the name may have been made.
    making_since: u64,
}

/// What is known of an id.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) text: String,
    pub(crate) subject: usize,
    pub(crate) members: Vec<String>,
    pub(crate) raw: bool,
    /// What was in it, and from when.
    pub(crate) writes: Vec<(u64, u64)>,
}

/// A call on its way.
pub(crate) struct Flight {
    pub(crate) subject: usize,
    pub(crate) op: Op,
    pub(crate) call: Call,
    pub(crate) to: Place,
    pub(crate) began: u64,
    /// Since when trouble excuses it: it may join the same call that came before it.
    pub(crate) excused: u64,
    /// Nothing else was on its way at any time since it began.
    pub(crate) alone: bool,
    pub(crate) packet: Option<u32>,
    pub(crate) abort: Option<AbortHandle>,
}

type Heard = Arc<Mutex<Vec<(u32, Result<Said, Status>)>>>;

pub(crate) struct Book {
    pub(crate) subjects: Vec<Subject>,
    pub(crate) known: Vec<Known>,
    pub(crate) flights: BTreeMap<u32, Flight>,
    /// Calls of which something may still be on its way.
    sent: BTreeMap<u32, (usize, Op, u64)>,
    /// Ids that somebody has asked to delete.
    pub(crate) deleted: BTreeSet<u32>,
    heard: Heard,
    /// When something last went wrong that a caller may notice.
    pub(crate) trouble: u64,
    /// Something is held in use.
    busy: bool,
    last_busy: u64,
    tokens: u64,
}

impl Book {
    pub(crate) fn new(chance: &mut Chance, hosts: usize) -> Self {
        let names = [
            ("a", Kind::Volume, false),
            ("b", Kind::Volume, false),
            ("c", Kind::Volume, true),
            ("s", Kind::Snapshot, false),
            ("t", Kind::Snapshot, false),
            ("g", Kind::Group, false),
        ];
        let subject = |(name, kind, raw)| Subject {
            name,
            kind,
            home: chance.below(hosts),
            raw,
            model: Name::new(),
            makes: BTreeMap::new(),
            ids: Vec::new(),
            making_since: 0,
        };
        Self {
            subjects: names.into_iter().map(subject).collect(),
            known: Vec::new(),
            flights: BTreeMap::new(),
            sent: BTreeMap::new(),
            deleted: BTreeSet::new(),
            heard: Heard::default(),
            trouble: 0,
            busy: false,
            last_busy: 0,
            tokens: 0,
        }
    }

    /// Most calls that may still take effect on one name.
    pub(crate) fn crowd(&self) -> usize {
        self.subjects.iter().map(|subject| subject.model.pending()).max().unwrap_or_default()
    }

    // ---- calls

    /// Sends a call.
    pub(crate) fn begin(&mut self, number: u32, mut flight: Flight, shared: &Shared, callers: &Runtime) {
        flight.alone = self.flights.is_empty() && self.sent.is_empty();
        self.flights.values_mut().for_each(|other| other.alone = false);
        let same = self.sent.values().filter(|(of, op, _)| (*of, op) == (flight.subject, &flight.op));
        flight.excused = same.map(|(.., began)| *began).min().unwrap_or(flight.began).min(flight.began);
        let subject = &mut self.subjects[flight.subject];
        match &flight.op {
            Op::Make { spec, .. } => {
                let idle = !self.sent.values().any(|(of, op, _)| *of == flight.subject && op.makes());
                if idle && subject.model.things().all(|thing| thing.is_none()) {
                    subject.making_since = flight.began;
                }
                subject.makes.insert(spec.clone(), (flight.call.clone(), flight.op.clone()));
            }
            Op::Delete { id } => {
                self.deleted.insert(*id);
            }
            _ => {}
        }
        subject.model.sent(number, flight.op.clone(), &self.deleted);
        self.sent.insert(number, (flight.subject, flight.op.clone(), flight.excused));
        let way = Way { shared: shared.clone(), to: flight.to, call: Some(number), from: None };
        let (heard, call) = (Arc::clone(&self.heard), flight.call.clone());
        let task = callers.spawn(async move {
            let answer = call.send(way).await;
            heard.lock().unwrap_or_else(PoisonError::into_inner).push((number, answer));
        });
        flight.abort = Some(task.abort_handle());
        self.flights.insert(number, flight);
    }

    /// A call has come to a process, in so many words.
    pub(crate) fn arrived(&mut self, call: u32, packet: u32) {
        if let Some(flight) = self.flights.get_mut(&call) {
            flight.packet = Some(packet);
        }
    }

    /// A call will be carried out a second time, of which nobody hears.
    pub(crate) fn doubled(&mut self, call: u32, second: u32) {
        if let Some((subject, op, began)) = self.sent.get(&call).cloned() {
            self.subjects[subject].model.sent(second, op.clone(), &self.deleted);
            self.sent.insert(second, (subject, op, began));
        }
        self.flights.values_mut().for_each(|flight| flight.alone = false);
    }

    /// One of the callers goes away.
    pub(crate) fn cancel(&mut self, chance: &mut Chance) -> Option<(u32, Option<u32>, Place)> {
        let numbers: Vec<u32> = self.flights.keys().copied().collect();
        let number = chance.pick(&numbers);
        let flight = self.flights.remove(&number)?;
        flight.abort.as_ref()?.abort();
        Some((number, flight.packet, flight.to))
    }

    /// What was heard since.
    pub(crate) fn heard(&self) -> Vec<(u32, Result<Said, Status>)> {
        let mut heard = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        heard.sort_by_key(|(number, _)| *number);
        heard
    }

    /// Holds an answer against what is possible; what is wrong with it.
    pub(crate) fn judge(
        &mut self,
        number: u32,
        answer: Result<Said, Status>,
        machines: &[Machine],
        now: u64,
    ) -> Option<String> {
        let flight = self.flights.remove(&number)?;
        let troubled = self.trouble >= flight.excused;
        let busy = self.busy || self.last_busy >= flight.excused;
        let (possible, why) = match answer {
            Ok(said) => {
                if let Some(wrong) = self.learn(&flight, &said, machines, now) {
                    return Some(wrong);
                }
                let seen = self.seen(&flight, &said);
                let model = &mut self.subjects[flight.subject].model;
                (model.answered(number, Code::Ok, &seen, &self.deleted), format!("{said:?}"))
            }
            Err(status) => {
                let (code, why) = (status.code(), format!("{:?}: {}", status.code(), status.message()));
                let model = &mut self.subjects[flight.subject].model;
                let possible = match code {
                    Code::Internal => false,
                    Code::Aborted => (troubled || !flight.alone) && model.refused(number),
                    Code::ResourceExhausted if flight.op.makes() => troubled && model.refused(number),
                    Code::ResourceExhausted => troubled,
                    Code::FailedPrecondition if busy => true,
                    _ if is_vague(code) => troubled,
                    _ => model.answered(number, code, &Seen::default(), &self.deleted),
                };
                (possible, why)
            }
        };
        if possible {
            if !self.subjects[flight.subject].model.waits_for(number) {
                self.sent.remove(&number);
            }
            return None;
        }
        let before = self.subjects[flight.subject].model.describe();
        Some(format!(
            "call {number}, {:?}, was answered {why}, which cannot be; possible was {before}",
            flight.call
        ))
    }

    fn seen(&self, flight: &Flight, said: &Said) -> Seen {
        let id = said.id.as_ref().and_then(|text| self.known.iter().position(|known| known.text == *text));
        let id = id.map(|id| u32::try_from(id).unwrap());
        match flight.op {
            Op::Make { .. } => Seen { id, size: said.size, granted: None },
            Op::Read { .. } => Seen { id, size: said.size, granted: said.granted },
            Op::Grow { .. } => Seen { size: said.size, ..Seen::default() },
            _ => Seen::default(),
        }
    }

    /// Takes note of what is on the disk now that nothing is on its way; what is wrong with it.
    pub(crate) fn observe(
        &mut self,
        subject: usize,
        found: Option<&(String, Option<i64>, Option<bool>)>,
    ) -> Option<String> {
        let known = found.map(|(text, size, granted)| {
            let id = self.known.iter().position(|known| known.text == *text);
            (id.map(|id| u32::try_from(id).unwrap()), *size, *granted)
        });
        let model = &mut self.subjects[subject].model;
        let before = model.describe();
        (!model.observed(known)).then_some(before)
    }

    // ---- contents

    /// Takes note of an id that was told for the first time, and of what is in it.
    fn learn(&mut self, flight: &Flight, said: &Said, machines: &[Machine], now: u64) -> Option<String> {
        let text = said.id.clone().filter(|_| flight.op.makes())?;
        if self.known.iter().any(|known| known.text == text) {
            return None;
        }
        let id = u32::try_from(self.known.len()).unwrap();
        let (kind, raw, since) = {
            let subject = &mut self.subjects[flight.subject];
            subject.ids.push(id);
            (subject.kind, subject.raw, subject.making_since)
        };
        let Op::Make { from, .. } = &flight.op else { return None };
        let raw = from.first().filter(|_| kind != Kind::Volume).map_or(raw, |from| self.known_of(*from).raw);
        let machine = &machines[self.subjects[flight.subject].home];
        let member = |of: &u32| {
            let of = &self.known_of(*of).text;
            let (member, _) = said.members.iter().find(|(_, volume)| volume == of)?;
            machine.read_snapshot(member)
        };
        let held: Vec<u64> = match kind {
            Kind::Volume => machine.read(&text).into_iter().collect(),
            Kind::Snapshot => machine.read_snapshot(&text).into_iter().collect(),
            Kind::Group => from.iter().filter_map(member).collect(),
        };
        let wrong = self.check_copy(from, &held, kind, since, now);
        let writes = held.first().map(|token| (now, *token)).into_iter().collect();
        let members = said.members.iter().map(|(member, _)| member.clone()).collect();
        let subject = flight.subject;
        self.known.push(Known { text: text.clone(), subject, members, raw, writes });
        wrong.map(|wrong| format!("{text}, {:?}: {wrong}", flight.call))
    }

    fn known_of(&self, id: u32) -> &Known {
        &self.known[usize::try_from(id).unwrap()]
    }

    /// Whether copies hold what their sources held at one instant, while they may have been cut.
    fn check_copy(&self, from: &[u32], held: &[u64], kind: Kind, since: u64, now: u64) -> Option<String> {
        let expected = if kind == Kind::Group { from.len() } else { 1 };
        if held.len() != expected {
            return Some(format!("{} of {expected} are there", held.len()));
        }
        if from.is_empty() {
            return (held != [0]).then(|| format!("a new volume holds {held:?}"));
        }
        // When each held what its copy has.
        let mut at_once = (since, now);
        for (source, held) in from.iter().zip(held) {
            let writes = &self.known_of(*source).writes;
            let Some(at) = writes.iter().position(|(_, token)| token == held) else {
                return Some(format!("it holds {held}, of {writes:?}"));
            };
            let until = writes.get(at + 1).map_or(u64::MAX, |(next, _)| *next);
            at_once = (at_once.0.max(writes[at].0), at_once.1.min(until));
        }
        (at_once.0 > at_once.1).then(|| "it was not cut at one instant of the call".to_owned())
    }

    /// A user writes through one of the paths where a volume is shown.
    pub(crate) fn write(&mut self, chance: &mut Chance, machines: &[Machine], now: u64) -> Option<String> {
        let subject = &self.subjects[chance.below(3)];
        let machine = &machines[subject.home];
        let at = machine.kernel.locate(&target_of(subject.name, chance.below(2))).unwrap();
        let At::Mount(mount) = machine.kernel.look(&at).unwrap() else { return None };
        let devices = machine.kernel.devices(None);
        let (device, fake) = devices.into_iter().find(|(device, _)| device.number == mount.device)?;
        if device.read_only || mount.attributes.contains(Attributes::READ_ONLY) {
            return None;
        }
        let id = format!("v.{}.{}", machine.disk.pool(), fake.owner.simple());
        let known = self.known.iter_mut().find(|known| known.text == id)?;
        self.tokens += 1;
        known.writes.push((now, self.tokens));
        machine.disk.write(Machine::volume_id(&id), &self.tokens.to_le_bytes());
        Some(format!("{} is written to in {}", self.tokens, subject.name))
    }

    // ---- use

    /// Somebody opens a file, or closes it, or the kernel takes long to write back.
    pub(crate) fn occupy(&mut self, chance: &mut Chance, machines: &[Machine], now: u64) -> Option<String> {
        let subject = &self.subjects[chance.below(3)];
        let kernel = &machines[subject.home].kernel;
        (self.busy, self.last_busy) = (true, now);
        if chance.once_in(3) {
            kernel.linger_next();
            return Some("the next unmount takes long".into());
        }
        let (path, used) = (target_of(subject.name, chance.below(2)), chance.once_in(2));
        kernel.set_used(&path, used);
        Some(format!("{path} is {}", if used { "in use" } else { "left alone" }))
    }

    /// Nobody uses anything any more.
    pub(crate) fn idle(&mut self, machines: &[Machine], now: u64) {
        if std::mem::take(&mut self.busy) {
            self.last_busy = now;
        }
        for subject in self.subjects.iter().filter(|subject| subject.kind == Kind::Volume) {
            let kernel = &machines[subject.home].kernel;
            (0..2).for_each(|at| kernel.set_used(&target_of(subject.name, at), false));
            kernel.settle();
        }
    }

    /// Nothing is on its way any more.
    pub(crate) fn settled(&mut self) {
        self.sent.clear();
        self.subjects.iter_mut().for_each(|subject| subject.model.settled());
    }

    pub(crate) fn rebooted(&mut self, host: usize) {
        let there = self.subjects.iter_mut().filter(|subject| subject.home == host);
        there.for_each(|subject| subject.model.rebooted());
    }
}
