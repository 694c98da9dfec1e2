//! The end of a schedule: no fault any more, everything is retried to success, and what there is is what must be.

use lagan::{
    engine::accountant::{Facts, audit},
    pool::{Listing, Pool, fake::FakePool},
};

use crate::{
    book::Kind,
    calls::{list_snapshots, list_volumes},
    machine::{Machine, run},
    model::{Op, Thing},
    shared::{Place, Way},
    world::World,
};

impl World {
    /// Ends a schedule.
    pub(crate) fn end(&mut self) {
        self.calm();
        self.compare();
        self.check_contents();
        for subject in 0..self.book.subjects.len() {
            if self.chance.once_in(2) { self.finish(subject) } else { self.remove(subject) }
        }
        self.check_contents();
        let before = self.room();
        (0..self.machines.len()).for_each(|host| self.kill(host));
        self.calm();
        self.compare();
        // What a failure has left goes at the next start at the latest.
        self.check_accounts();
        let after = self.room();
        if before != after {
            self.fail(&format!("room was {before:?}, and is {after:?} after a restart"));
        }
    }

    /// Makes one call and lets it come to its end. No fault is left that could excuse anything.
    pub(crate) fn must(&mut self, subject: usize, op: Op) {
        self.now += 1;
        let (call, op) = self.book.on(subject, op);
        let flight = self.book.flight(subject, call, op, self.routers.len(), self.now);
        self.send(flight);
        self.calm();
    }

    /// Makes a thing as it usually is, of these.
    pub(crate) fn begin(&mut self, subject: usize, from: &[u32]) {
        self.now += 1;
        let (call, op) = self.book.usual(subject, from);
        let flight = self.book.flight(subject, call, op, self.routers.len(), self.now);
        self.send(flight);
        self.calm();
    }

    pub(crate) fn last_id(&self, subject: usize) -> u32 {
        self.book.subjects[subject].ids.last().copied().unwrap()
    }

    /// Brings a name to what it is for.
    fn finish(&mut self, subject: usize) {
        let Some(id) = self.told(subject) else { return };
        if self.book.subjects[subject].kind != Kind::Volume {
            return self.must(subject, Op::Read { id });
        }
        // What an interrupted call may have left at a path where nothing is shown.
        for at in 0..2 {
            if self.thing(subject).is_none_or(|thing| thing.shown[at].is_none()) {
                self.must(subject, Op::Hide { id, at });
            }
        }
        let reads = self.thing(subject).and_then(|thing| thing.grant).unwrap_or(false);
        let shown = self.thing(subject).and_then(|thing| thing.shown[0]).unwrap_or(false);
        self.must(subject, Op::Grant { id, reads });
        self.must(subject, Op::Stage { id });
        self.must(subject, Op::Show { id, at: 0, reads: shown });
        self.must(subject, Op::Grow { id, size: 4 << 30 });
        self.must(subject, Op::Use { id, at: 0 });
        let is = self.thing(subject).unwrap_or_default();
        if is.grant.is_none() || !is.staged || is.shown[0].is_none() {
            self.fail(&format!("{is:?} cannot be brought to use"));
        }
    }

    /// Takes a name away with all that was made of it.
    fn remove(&mut self, subject: usize) {
        let Some(id) = self.told(subject) else { return };
        if self.book.subjects[subject].kind == Kind::Volume {
            for at in 0..2 {
                self.must(subject, Op::Hide { id, at });
            }
            self.must(subject, Op::Unstage { id });
            self.must(subject, Op::Revoke { id });
        }
        self.must(subject, Op::Delete { id });
        self.must(subject, Op::Read { id });
        if let Some(left) = self.thing(subject) {
            self.fail(&format!("{left:?} cannot be deleted"));
        }
    }

    /// The id of what is there; where nobody was told it, the same is asked for once more.
    fn told(&mut self, subject: usize) -> Option<u32> {
        let there = self.thing(subject)?;
        if there.id.is_some() {
            return there.id;
        }
        let makes = self.book.subjects[subject].makes.values().map(|(_, op)| op);
        let same = |op: &&Op| matches!(op, Op::Make { spec, asked, .. } if (spec, asked) == (&there.spec, &there.asked));
        let op = makes.into_iter().find(same).cloned()?;
        self.must(subject, op);
        self.thing(subject).and_then(|thing| thing.id)
    }

    /// What a name is, of which no doubt is left.
    fn thing(&self, subject: usize) -> Option<Thing> {
        let things: Vec<_> = self.book.subjects[subject].model.things().collect();
        things.first().copied().flatten().cloned()
    }

    /// Holds what is in the pools against what may be there, and what the driver says of it against both.
    pub(crate) fn compare(&mut self) {
        let mut listings: Vec<Listing> = Vec::new();
        for host in 0..self.machines.len() {
            let listing = self.compare_lists(host);
            if !listing.damaged.is_empty() {
                self.fail(&format!("{:?}", listing.damaged));
            }
            listings.push(listing);
        }
        for subject in 0..self.book.subjects.len() {
            let home = self.book.subjects[subject].home;
            let found =
                found(&listings[home], self.book.subjects[subject].name, self.book.subjects[subject].kind);
            let elsewhere = listings.iter().enumerate().filter(|(host, _)| *host != home);
            let (name, kind) = (self.book.subjects[subject].name, self.book.subjects[subject].kind);
            let stray = elsewhere.flat_map(|(_, listing)| self::found(listing, name, kind)).count();
            if found.len() > 1 || stray > 0 {
                self.fail(&format!("{name} is there {} times, and {stray} times elsewhere", found.len()));
            }
            if let Some(wrong) = self.book.observe(subject, found.first()) {
                self.fail(&format!("{name} is {found:?} on the disk, which cannot be: {wrong}"));
            }
        }
    }

    /// Holds what ListVolumes and ListSnapshots say, page by page, of one host and through each router against its disk, which
    /// is looked at when the driver has read it: a start that failed is made up for by the first call.
    fn compare_lists(&mut self, host: usize) -> Listing {
        let page = self.chance.pick(&[0, 1, 2, 5]);
        let volumes = self.ask(Place::Host(host), move |way| list_volumes(way, page));
        let snapshots = self.ask(Place::Host(host), move |way| list_snapshots(way, page));
        let listing = listing(&self.callers, &self.machines[host]);
        let expected = listing.volumes.iter();
        let mut expected: Vec<_> =
            expected.map(|it| (it.id.to_string(), it.size.signed(), !it.grants.is_empty())).collect();
        expected.sort();
        if volumes != expected {
            self.fail(&format!("ListVolumes says {volumes:?}, the disk has {expected:?}"));
        }
        let mut expected: Vec<_> =
            listing.snapshots.iter().map(|it| (it.id.to_string(), it.volume.to_string())).collect();
        expected.sort();
        if snapshots != expected {
            self.fail(&format!("ListSnapshots says {snapshots:?}, the disk has {expected:?}"));
        }
        for router in 0..self.routers.len() {
            let all = self.ask(Place::Router(router), move |way| list_volumes(way, page));
            if volumes.iter().any(|volume| !all.contains(volume)) {
                self.fail(&format!("router {router} lists {all:?}, n{host} has {volumes:?}"));
            }
        }
        listing
    }

    /// Asks a question of many calls, in peace.
    fn ask<T, F>(&mut self, to: Place, question: impl FnOnce(Way) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = Result<T, tonic::Status>> + Send + 'static,
    {
        let way = Way { shared: self.shared.clone(), to, call: None, from: None };
        let answer = self.callers.spawn(question(way));
        run(&self.callers);
        while !answer.is_finished() {
            self.calm();
        }
        let answer = self.callers.block_on(answer).unwrap();
        answer.unwrap_or_else(|status| self.fail(&format!("{to:?}: {status}")))
    }

    /// What users wrote is there, and nothing else.
    pub(crate) fn check_contents(&mut self) {
        let mut wrong = None;
        for known in &self.book.known {
            let subject = &self.book.subjects[known.subject];
            let machine = &self.machines[subject.home];
            let found = match subject.kind {
                Kind::Volume => machine.read(&known.text),
                Kind::Snapshot => machine.read_snapshot(&known.text),
                Kind::Group => None,
            };
            let expected = known.writes.last().map(|(_, token)| *token);
            if found.is_some() && found != expected {
                wrong = Some(format!("{} holds {found:?}, not {expected:?}", known.text));
            }
        }
        if let Some(wrong) = wrong {
            self.fail(&wrong);
        }
    }

    /// Every object against the records.
    pub(crate) fn check_accounts(&mut self) {
        for host in 0..self.machines.len() {
            let machine = &self.machines[host];
            let listing = listing(&self.callers, machine);
            let pool = FakePool::new(machine.disk.clone(), machine.kernel.clone());
            let devices = self.callers.block_on(pool.devices()).unwrap();
            let mounts = |number| {
                use lagan::sys::kernel::Kernel;
                machine.kernel.mounts_of(&[number]).unwrap().len()
            };
            let devices = devices.into_iter().map(|(uuid, attached)| {
                let count = mounts(attached.device.number);
                (uuid, attached, count)
            });
            let facts = Facts { listing, devices: devices.collect(), troubles: Vec::new() };
            let findings = audit(&facts);
            if !findings.is_empty() {
                self.fail(&format!("the accountant finds on n{host}: {findings:?}"));
            }
        }
    }

    /// The room of each host.
    fn room(&mut self) -> Vec<i64> {
        let all: Vec<usize> = (0..self.machines.len()).collect();
        all.into_iter().map(|host| self.ask(Place::Host(host), crate::calls::capacity)).collect()
    }
}

fn listing(runtime: &tokio::runtime::Runtime, machine: &Machine) -> Listing {
    let pool = FakePool::new(machine.disk.clone(), machine.kernel.clone());
    runtime.block_on(pool.list()).unwrap()
}

/// What has a name: id, length, and whether it is granted.
type Found = (String, Option<i64>, Option<bool>);

fn found(listing: &Listing, name: &str, kind: Kind) -> Vec<Found> {
    match kind {
        Kind::Volume => {
            let named = listing.volumes.iter().filter(|it| it.name == name);
            named.map(|it| (it.id.to_string(), Some(it.size.signed()), Some(!it.grants.is_empty()))).collect()
        }
        Kind::Snapshot => {
            let named = listing.snapshots.iter().filter(|it| it.name == name && it.group.is_none());
            named.map(|it| (it.id.to_string(), Some(it.size.signed()), None)).collect()
        }
        Kind::Group => {
            let named = listing.groups.iter().filter(|it| it.name == name);
            named.map(|it| (it.id.to_string(), None, None)).collect()
        }
    }
}
