//! A schedule: hosts, routers and callers, and the one who decides what comes next.

use std::collections::VecDeque;

use http_body_util::{BodyExt, Full};
use lagan::trace::Trace;
use tokio::{runtime::Runtime, sync::oneshot};
use tonic::{Code, body::Body, codegen::http};

use crate::{
    book::{Book, Flight},
    chance::Chance,
    machine::{self, Machine, Process, look, run, runtime},
    shared::{Answer, Life, Packet, Place, Shared, Step, lost},
};

/// Which faults a schedule has: a few at a time find more than all at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Calls and answers are lost.
    pub(crate) loss: bool,
    /// Calls come twice.
    pub(crate) doubles: bool,
    /// Callers go away.
    pub(crate) cancels: bool,
    /// Processes are killed, between steps and in system calls.
    pub(crate) kills: bool,
    /// The power is cut.
    pub(crate) power: bool,
    /// The disk is full, or fails.
    pub(crate) disk: bool,
    /// System calls fail.
    pub(crate) calls: bool,
    /// Programs keep files open; filesystems are written back late.
    pub(crate) busy: bool,
    /// Hosts are cut off from routers.
    pub(crate) cuts: bool,
}

/// What is to become of a step that a schedule was written for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Planned {
    Fails(rustix::io::Errno),
    /// Its process is killed before it.
    Kill,
}

pub(crate) struct World {
    /// Steps by name, of which the first one is waited for.
    pub(crate) plan: VecDeque<(&'static str, Planned)>,
    pub(crate) chance: Chance,
    pub(crate) shared: Shared,
    pub(crate) faults: Faults,
    pub(crate) machines: Vec<Machine>,
    pub(crate) routers: Vec<Option<Process>>,
    /// The life of each host that each router has met last.
    met: Vec<Vec<Option<Life>>>,
    cut_off: Vec<bool>,
    pub(crate) callers: Runtime,
    pub(crate) book: Book,
    lives: Life,
    /// Events so far.
    pub(crate) now: u64,
    pub(crate) trace: Option<Vec<String>>,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Call,
    Packet,
    Answer,
    Step,
    Cancel,
    Kill,
    Restart,
    Power,
    Write,
    Busy,
    Look,
    CutOff,
    Time,
}

impl World {
    /// One drawn by lot.
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut chance = Chance::new(seed);
        let (hosts, routers) = chance.pick(&[(1, 0), (1, 0), (1, 0), (2, 1), (2, 2), (3, 2)]);
        let faults = Faults {
            loss: chance.once_in(3),
            doubles: chance.once_in(4),
            cancels: chance.once_in(3),
            kills: chance.once_in(2),
            power: chance.once_in(3),
            disk: chance.once_in(3),
            calls: chance.once_in(3),
            busy: chance.once_in(4),
            cuts: routers > 0 && chance.once_in(2),
        };
        let mut world = Self::of(chance, hosts, routers, traced);
        world.note(|| format!("{hosts} hosts, {routers} routers, {faults:?}"));
        world.faults = faults;
        let mut state = world.shared.lock();
        state.calls_fail = if faults.calls { 25 } else { 0 };
        state.calls_kill = if faults.kills { 60 } else { 0 };
        drop(state);
        world
    }

    /// One in which nothing happens by itself.
    pub(crate) fn quiet(hosts: usize) -> Self {
        Self::of(Chance::new(0), hosts, 0, true)
    }

    fn of(mut chance: Chance, hosts: usize, routers: usize, traced: bool) -> Self {
        let mut ids = Chance::new(chance.next());
        lagan::id::foretell(move || {
            uuid::Builder::from_random_bytes(
                (u128::from(ids.next()) << 64 | u128::from(ids.next())).to_be_bytes(),
            )
            .into_uuid()
        });
        let shared = Shared::new(Chance::new(chance.next()));
        let machines: Vec<Machine> = (0..hosts).map(Machine::new).collect();
        let book = Book::new(&mut chance, hosts);
        let mut world = Self {
            chance,
            shared,
            faults: Faults::default(),
            plan: VecDeque::new(),
            machines,
            routers: Vec::new(),
            met: vec![vec![None; hosts]; routers],
            cut_off: vec![false; hosts],
            callers: runtime(),
            book,
            lives: 0,
            now: 0,
            trace: traced.then(Vec::new),
        };
        (0..routers).for_each(|_| world.routers.push(None));
        world.calm();
        world.book.trouble = 0;
        world
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:4} {}", self.now, line()));
        }
    }

    /// Lets so many things happen.
    pub(crate) fn go_on(&mut self, events: usize) {
        for _ in 0..events {
            self.now += 1;
            if self.book.crowd() >= 5 {
                self.rest();
            }
            let event = self.choose();
            self.happen(event);
            self.after();
        }
    }

    fn choose(&mut self) -> Event {
        let (packets, answers, steps) = {
            let state = self.shared.lock();
            (state.packets.len(), state.answers.len(), state.steps.len())
        };
        let (down, faults) = (self.down(), self.faults);
        let on = |fault: bool, weight: usize| if fault { weight } else { 0 };
        let room = self.book.flights.len() < 4 && self.book.crowd() < 5;
        let events = [
            (on(room, 12), Event::Call),
            (on(packets > 0, 25), Event::Packet),
            (on(answers > 0, 25), Event::Answer),
            (on(steps > 0, 60), Event::Step),
            (on(faults.cancels && !self.book.flights.is_empty(), 2), Event::Cancel),
            (on(faults.kills, 1), Event::Kill),
            (on(down, 8), Event::Restart),
            (on(faults.power, 1), Event::Power),
            (3, Event::Write),
            (on(faults.busy, 2), Event::Busy),
            (on(!self.routers.is_empty(), 3), Event::Look),
            (on(faults.cuts, 1), Event::CutOff),
            (1, Event::Time),
        ];
        self.chance.weigh(&events).unwrap_or(Event::Time)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Call => self.call(),
            Event::Packet => self.some_packet(),
            Event::Answer => self.some_answer(),
            Event::Step => self.some_step(),
            Event::Cancel => self.cancel(),
            Event::Kill => {
                let which = self.chance.below(self.machines.len() + self.routers.len());
                self.kill(which);
            }
            Event::Restart => self.restart(),
            Event::Power => self.cut_power(),
            Event::Write => self.write(),
            Event::Busy => self.busy(),
            Event::Look => {
                let (router, host) =
                    (self.chance.below(self.routers.len()), self.chance.below(self.machines.len()));
                self.look(router, host);
            }
            Event::CutOff => {
                let host = self.chance.below(self.machines.len());
                self.cut_off[host] = !self.cut_off[host];
                let how = self.cut_off[host];
                self.note(|| format!("n{host} is {}", if how { "cut off" } else { "back" }));
            }
            Event::Time => {
                let seconds = self.chance.pick(&[1, 3, 6]);
                self.pass(seconds);
            }
        }
    }

    /// What follows from whatever happened.
    fn after(&mut self) {
        let died: Vec<Life> = self.shared.lock().died.iter().copied().collect();
        for machine in 0..self.machines.len() {
            let process = self.machines[machine].process.as_ref();
            // Whoever has lost a flush is started anew before anybody believes it again.
            if process.is_some_and(|process| died.contains(&process.life) || process.is_broken()) {
                self.kill(machine);
            }
        }
        let happened = std::mem::take(&mut self.shared.lock().happened);
        if !happened.is_empty() {
            self.book.trouble = self.now;
        }
        happened.into_iter().for_each(|line| self.note(|| line));
        if self.is_ill() {
            self.book.trouble = self.now;
        }
        self.hear();
    }

    fn down(&self) -> bool {
        self.machines.iter().any(|machine| machine.process.is_none())
            || self.routers.iter().any(Option::is_none)
    }

    /// Not every process is up and knows of every other.
    fn is_ill(&self) -> bool {
        let lives: Vec<Option<Life>> = self
            .machines
            .iter()
            .map(|machine| machine.process.as_ref().filter(|it| it.is_ready()).map(|it| it.life))
            .collect();
        lives.contains(&None)
            || self.down()
            || self.met.iter().any(|met| *met != lives)
            || self.cut_off.contains(&true)
    }

    // ---- calls and answers

    fn call(&mut self) {
        let routers = self.routers.len();
        let Some(flight) = self.book.invent(&mut self.chance, routers, self.now) else { return };
        self.send(flight);
    }

    /// Makes an orchestrator's call.
    pub(crate) fn send(&mut self, flight: Flight) -> u32 {
        let number = self.shared.lock().number();
        self.note(|| format!("call {number} to {:?}: {:?}", flight.to, flight.call));
        self.book.begin(number, flight, &self.shared, &self.callers);
        run(&self.callers);
        number
    }

    fn process_at(&mut self, place: Place) -> Option<&mut Process> {
        match place {
            Place::Host(at) => self.machines[at].process.as_mut(),
            Place::Peers(at) => self.machines[at].process.as_mut(),
            Place::Router(at) => self.routers[at].as_mut(),
        }
    }

    fn some_packet(&mut self) {
        let count = self.shared.lock().packets.len();
        let at = self.chance.below(count);
        let packet = self.shared.lock().packets.remove(at);
        if self.faults.loss && self.chance.once_in(12) {
            self.note(|| format!("packet of call {:?} is lost", packet.call));
            self.book.trouble = self.now;
            return self.answer_to(packet.from, packet.back, Err(lost()));
        }
        if self.faults.doubles
            && self.chance.once_in(8)
            && let Some(call) = packet.call
        {
            return self.double(packet, call);
        }
        self.deliver(packet);
    }

    fn double(&mut self, packet: Packet, call: u32) {
        self.note(|| format!("packet of call {call} comes twice"));
        let Packet { to, request, back, from, .. } = packet;
        let (parts, body) = request.into_parts();
        let body = self.callers.block_on(body.collect()).unwrap().to_bytes();
        let again = |parts: &http::request::Parts| {
            let mut request = http::Request::new(Body::new(Full::new(body.clone())));
            *request.uri_mut() = parts.uri.clone();
            *request.method_mut() = parts.method.clone();
            *request.headers_mut() = parts.headers.clone();
            request
        };
        let mut state = self.shared.lock();
        let (first, second) = (state.number(), state.number());
        let (nobody, _) = oneshot::channel();
        let late =
            Packet { number: second, call: Some(call), to, request: again(&parts), back: nobody, from: None };
        state.packets.push(late);
        drop(state);
        self.book.doubled(call, second);
        self.deliver(Packet { number: first, call: Some(call), to, request: again(&parts), back, from });
    }

    fn deliver(&mut self, mut packet: Packet) {
        let cut = matches!(packet.to, Place::Peers(host) if self.cut_off[host]);
        let (to, call, number) = (packet.to, packet.call, packet.number);
        let shared = self.shared.clone();
        match self.process_at(to).filter(|process| process.is_ready() && !cut) {
            Some(process) => {
                if let Some(call) = call {
                    packet.request.extensions_mut().insert(trace_of(call));
                }
                let from = packet.from;
                process.serve(&shared, packet);
                self.note(|| format!("call {call:?} arrives at {to:?}"));
                if from.is_none()
                    && let Some(call) = call
                {
                    self.book.arrived(call, number);
                }
            }
            None => {
                self.note(|| format!("call {call:?}: nobody at {to:?}"));
                self.book.trouble = self.now;
                self.answer_to(packet.from, packet.back, Err(lost()));
            }
        }
    }

    /// Hands a reply to whoever waits for it.
    fn answer_to(
        &mut self,
        from: Option<Life>,
        back: oneshot::Sender<crate::shared::Reply>,
        reply: crate::shared::Reply,
    ) {
        drop(back.send(reply));
        match from {
            None => run(&self.callers),
            Some(life) => {
                let waiting = self.routers.iter().flatten().find(|router| router.life == life);
                waiting.iter().for_each(|router| run(&router.runtime));
            }
        }
    }

    fn some_answer(&mut self) {
        let count = self.shared.lock().answers.len();
        let at = self.chance.below(count);
        let Answer { number, reply, back, from } = self.shared.lock().answers.remove(at);
        let reply = if self.faults.loss && self.chance.once_in(8) {
            self.note(|| format!("answer {number} is lost"));
            self.book.trouble = self.now;
            Err(lost())
        } else {
            reply
        };
        self.answer_to(from, back, reply);
    }

    /// Hears what the calls of orchestrators have come to.
    fn hear(&mut self) {
        for (number, answer) in self.book.heard() {
            let said = match &answer {
                Ok(said) => format!("OK {said:?}"),
                Err(status) => format!("{:?}", status.code()),
            };
            self.note(|| format!("call {number}: {said}"));
            let wrong = self.book.judge(number, answer, &self.machines, self.now);
            if let Some(wrong) = wrong {
                self.fail(&wrong);
            }
        }
    }

    pub(crate) fn fail(&mut self, wrong: &str) -> ! {
        if let Some(trace) = &self.trace {
            eprintln_all(trace);
        }
        panic!("{wrong}");
    }

    fn cancel(&mut self) {
        let Some((call, packet, to)) = self.book.cancel(&mut self.chance) else { return };
        self.note(|| format!("the caller of {call} goes away"));
        self.book.trouble = self.now;
        self.shared.lock().packets.retain(|waiting| waiting.call != Some(call) || waiting.from.is_some());
        if let Some(packet) = packet
            && let Some(process) = self.process_at(to)
        {
            process.hang_up(packet);
        }
        run(&self.callers);
    }

    // ---- steps

    fn some_step(&mut self) {
        let count = self.shared.lock().steps.len();
        let at = self.chance.below(count);
        let step = self.shared.lock().steps.remove(at);
        let outcome = if self.faults.disk && self.chance.once_in(30) {
            let errors = [rustix::io::Errno::NOSPC, rustix::io::Errno::IO];
            Err(self.chance.pick(&errors).into())
        } else {
            Ok(())
        };
        self.take(step, outcome);
    }

    fn take(&mut self, step: Step, outcome: std::io::Result<()>) {
        let life = step.life;
        self.note(|| match &outcome {
            Ok(()) => format!("life {life}: {}", step.name),
            Err(error) => format!("life {life}: {} fails: {error}", step.name),
        });
        if outcome.is_err() {
            self.book.trouble = self.now;
        }
        drop(step.go.send(outcome));
        let all = self.machines.iter().filter_map(|machine| machine.process.as_ref());
        if let Some(process) = all.into_iter().find(|process| process.life == life) {
            run(&process.runtime);
        }
    }

    // ---- processes and machines

    pub(crate) fn kill(&mut self, which: usize) {
        let hosts = self.machines.len();
        let process = match self.machines.get_mut(which) {
            Some(machine) => machine.process.take(),
            None => self.routers[which - hosts].take(),
        };
        let Some(process) = process else { return };
        let life = process.life;
        self.note(|| format!("life {life} ends"));
        self.book.trouble = self.now;
        drop(process);
        let mut state = self.shared.lock();
        state.died.remove(&life);
        state.steps.retain(|step| step.life != life);
        state.packets.retain(|packet| packet.from != Some(life));
        state.answers.retain(|answer| answer.from != Some(life));
        drop(state);
        run(&self.callers);
        self.routers.iter().flatten().for_each(|router| run(&router.runtime));
    }

    fn restart(&mut self) {
        self.lives += 1;
        let life = self.lives;
        if let Some(machine) = self.machines.iter_mut().find(|machine| machine.process.is_none()) {
            machine.start(&self.shared, life);
            let number = machine.number;
            self.note(|| format!("life {life} begins on n{number}"));
        } else if let Some(at) = self.routers.iter().position(Option::is_none) {
            self.routers[at] = Some(machine::router(&self.shared, life, &self.machines));
            self.met[at].fill(None);
            self.note(|| format!("life {life} begins as router {at}"));
        }
    }

    fn cut_power(&mut self) {
        let host = self.chance.below(self.machines.len());
        let mut chance = self.chance.clone();
        self.chance.next();
        self.lose_power(host, |ways| chance.below(ways));
    }

    pub(crate) fn lose_power(&mut self, host: usize, choose: impl FnMut(usize) -> usize) {
        self.kill(host);
        self.note(|| format!("the power of n{host} is cut"));
        self.machines[host].kernel.reboot();
        self.machines[host].disk.power_cut(choose);
        self.book.rebooted(host);
    }

    fn look(&mut self, router: usize, host: usize) {
        let cut_off = self.cut_off[host];
        let machine = &self.machines[host];
        let Some(process) = self.routers[router].as_mut() else { return };
        let met = look(process, machine, cut_off);
        self.met[router][host] = machine.process.as_ref().filter(|_| met).map(|process| process.life);
        self.note(|| format!("router {router} looks at n{host}: {}", if met { "up" } else { "down" }));
    }

    fn pass(&mut self, seconds: u64) {
        self.note(|| format!("{seconds} s pass"));
        let hosts = self.machines.iter().filter_map(|machine| machine.process.as_ref());
        for process in hosts.chain(self.routers.iter().flatten()) {
            let passes = async { tokio::time::sleep(std::time::Duration::from_secs(seconds)).await };
            process.runtime.block_on(passes);
        }
        self.book.trouble = self.now;
    }

    // ---- users

    fn write(&mut self) {
        if let Some(line) = self.book.write(&mut self.chance, &self.machines, self.now) {
            self.note(|| line);
        }
    }

    fn busy(&mut self) {
        if let Some(line) = self.book.occupy(&mut self.chance, &self.machines, self.now) {
            self.note(|| line);
        }
    }

    // ---- calm

    /// Lets all come to rest, and goes on as before.
    fn rest(&mut self) {
        let faults = self.faults;
        let (calls_fail, calls_kill) = {
            let state = self.shared.lock();
            (state.calls_fail, state.calls_kill)
        };
        self.calm();
        self.faults = faults;
        let mut state = self.shared.lock();
        (state.calls_fail, state.calls_kill) = (calls_fail, calls_kill);
    }

    /// No fault any more: every process is up, and everything that is on its way arrives.
    pub(crate) fn calm(&mut self) {
        self.faults = Faults::default();
        self.cut_off.fill(false);
        {
            let mut state = self.shared.lock();
            (state.calls_fail, state.calls_kill) = (0, 0);
        }
        self.book.idle(&self.machines, self.now);
        for round in 0.. {
            assert!(round < 10_000, "it does not come to rest");
            self.now += 1;
            self.after();
            if self.down() {
                self.restart();
            } else if !self.drain_one() {
                if !self.meet() {
                    break;
                }
            }
        }
        self.book.settled();
    }

    /// Lets the oldest thing that waits go on.
    fn drain_one(&mut self) -> bool {
        let mut state = self.shared.lock();
        if !state.steps.is_empty() {
            let step = state.steps.remove(0);
            drop(state);
            let planned = self.plan.front().filter(|(name, _)| *name == step.name).map(|(_, it)| *it);
            if planned.is_some() {
                self.plan.pop_front();
            }
            match planned {
                None => self.take(step, Ok(())),
                Some(Planned::Fails(error)) => self.take(step, Err(error.into())),
                Some(Planned::Kill) => {
                    let of =
                        |machine: &Machine| machine.process.as_ref().is_some_and(|it| it.life == step.life);
                    let at = self.machines.iter().position(of);
                    at.into_iter().for_each(|at| self.kill(at));
                }
            }
        } else if !state.answers.is_empty() {
            let Answer { reply, back, from, .. } = state.answers.remove(0);
            drop(state);
            self.answer_to(from, back, reply);
        } else if !state.packets.is_empty() {
            let packet = state.packets.remove(0);
            drop(state);
            self.deliver(packet);
        } else {
            return false;
        }
        true
    }

    /// Lets routers meet the hosts that they do not know, or time pass where somebody waits for it; `false` where all is well.
    fn meet(&mut self) -> bool {
        if self.is_ill() {
            for router in 0..self.routers.len() {
                (0..self.machines.len()).for_each(|host| self.look(router, host));
            }
            return self.is_ill();
        }
        if !self.book.flights.is_empty() {
            self.pass(6);
            return true;
        }
        false
    }
}

fn eprintln_all(lines: &[String]) {
    for line in lines {
        eprintln!("{line}");
    }
}

/// The trace of a call, by which it is known where a router passes it on.
fn trace_of(call: u32) -> Trace {
    Trace::of(Some(&format!("00-{:032x}-{:016x}-01", call, 1)))
}

pub(crate) fn is_vague(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled)
}
