//! Rest: no fault any more, until nothing is on its way.

use crate::{
    machine::Machine,
    shared::Answer,
    world::{Faults, Planned, World},
};

impl World {
    /// Lets all come to rest, and goes on as before.
    pub(crate) fn rest(&mut self) {
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
            } else if !self.drain_one() && !self.meet() {
                break;
            }
        }
        self.book.settled();
    }

    /// Lets the oldest thing that waits go on.
    pub(crate) fn drain_one(&mut self) -> bool {
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
    pub(crate) fn meet(&mut self) -> bool {
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
