//! A schedule: hosts, routers and callers, and the one who decides what comes next.

use std::collections::VecDeque;

use tokio::runtime::Runtime;
use tonic::Code;

use crate::{
    book::Book,
    chance::Chance,
    machine::{self, Machine, Process, look, run, runtime},
    shared::{Life, Shared},
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
    pub(crate) cut_off: Vec<bool>,
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

    pub(crate) fn of(mut chance: Chance, hosts: usize, routers: usize, traced: bool) -> Self {
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
    pub(crate) fn after(&mut self) {
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

    pub(crate) fn down(&self) -> bool {
        self.machines.iter().any(|machine| machine.process.is_none())
            || self.routers.iter().any(Option::is_none)
    }

    /// Not every process is up and knows of every other.
    pub(crate) fn is_ill(&self) -> bool {
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

    pub(crate) fn restart(&mut self) {
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

    pub(crate) fn cut_power(&mut self) {
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

    pub(crate) fn look(&mut self, router: usize, host: usize) {
        let cut_off = self.cut_off[host];
        let machine = &self.machines[host];
        let Some(process) = self.routers[router].as_mut() else { return };
        let met = look(process, machine, cut_off);
        self.met[router][host] = machine.process.as_ref().filter(|_| met).map(|process| process.life);
        self.note(|| format!("router {router} looks at n{host}: {}", if met { "up" } else { "down" }));
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.note(|| format!("{seconds} s pass"));
        let hosts = self.machines.iter().filter_map(|machine| machine.process.as_ref());
        for process in hosts.chain(self.routers.iter().flatten()) {
            let passes = async { tokio::time::sleep(std::time::Duration::from_secs(seconds)).await };
            process.runtime.block_on(passes);
        }
        self.book.trouble = self.now;
    }

    pub(crate) fn write(&mut self) {
        if let Some(line) = self.book.write(&mut self.chance, &self.machines, self.now) {
            self.note(|| line);
        }
    }

    pub(crate) fn busy(&mut self) {
        if let Some(line) = self.book.occupy(&mut self.chance, &self.machines, self.now) {
            self.note(|| line);
        }
    }
}

pub(crate) fn is_vague(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled)
}
