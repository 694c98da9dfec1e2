//! Schedules that failed once, written out: a seed means another schedule as soon as one more thing may happen, these stay what
//! they are. Each says what it found.

use rustix::io::Errno;

use crate::{
    model::Op,
    world::{Planned, World},
};

/// A volume of each name that there is, and what is on it.
const A: usize = 0;
const RAW: usize = 2;
const S: usize = 3;
const G: usize = 5;

fn world() -> (lagan::blocking::Together, World) {
    (lagan::blocking::together(), World::quiet(1))
}

impl World {
    fn volume(&mut self) -> u32 {
        self.begin(A, &[]);
        self.last_id(A)
    }

    fn fails(&mut self, step: &'static str, times: usize) {
        (0..times).for_each(|_| self.plan.push_back((step, Planned::Fails(Errno::IO))));
    }

    /// What it is now is what must be, and stays so.
    fn holds(&mut self) {
        self.compare();
        self.check_contents();
        self.kill(0);
        self.calm();
        self.compare();
        self.check_accounts();
    }
}

/// The name was looked for in an index without the pool, which could not be read; then the pool was read, and the name was not
/// looked for again: a second volume of it was made.
#[test]
fn a_name_is_looked_for_once_its_pool_is_read() {
    let (_together, mut world) = world();
    world.volume();
    world.kill(0);
    // At the start, and when the name is looked for.
    world.fails("list", 2);
    world.begin(A, &[]);
    world.holds();
}

/// The record was stored, the device could not be told, and lists went on to show the old length.
#[test]
fn a_grow_that_fails_late_is_seen_as_far_as_it_came() {
    let (_together, mut world) = world();
    let id = world.volume();
    world.fails("grow_volume: devices", 1);
    world.must(A, Op::Grow { id, size: 3 << 30 });
    world.compare();
    world.must(A, Op::Grow { id, size: 2 << 30 });
    world.holds();
}

/// Half of it was gone, all of it was listed; and the retry was answered without the rest being removed.
#[test]
fn a_group_that_is_half_removed_is_removed_by_the_retry() {
    let (_together, mut world) = world();
    let volume = world.volume();
    world.begin(G, &[volume]);
    let id = world.last_id(G);
    world.fails("delete_group: member: name", 1);
    world.must(G, Op::Delete { id });
    world.compare();
    world.must(G, Op::Delete { id });
    world.check_accounts();
    world.holds();
}

/// A process was killed between a change and its flush. The next one found the change, took it for done, and nobody flushed it
/// before the power was cut: the start has to.
#[test]
fn what_a_killed_process_did_not_flush_is_flushed_by_the_next() {
    let steps = ["create_volume: flush the name", "create_snapshot: flush the name", "update_volume: flush"];
    for step in steps {
        let (_together, mut world) = world();
        world.plan.push_back((step, Planned::Kill));
        // The second time is the retry, which finds it.
        (0..2).for_each(|_| world.begin(A, &[]));
        let id = world.last_id(A);
        (0..2).for_each(|_| world.begin(S, &[id]));
        (0..2).for_each(|_| world.must(A, Op::Grant { id, reads: false }));
        // As far as that is possible, nothing is written by itself.
        world.lose_power(0, |_| 0);
        world.calm();
        world.must(A, Op::Read { id });
        world.holds();
    }
}

/// A right that is forgotten first is not there any more when the call is repeated whose device stayed: nobody takes it away.
#[test]
fn a_right_to_a_volume_goes_after_its_device() {
    let (_together, mut world) = world();
    world.begin(RAW, &[]);
    let id = world.last_id(RAW);
    world.must(RAW, Op::Grant { id, reads: false });
    world.must(RAW, Op::Stage { id });
    world.fails("detach", 1);
    (0..2).for_each(|_| world.must(RAW, Op::Revoke { id }));
    world.holds();
}
