//! What is on its way: calls, answers, and steps that wait for their turn.

use http_body_util::{BodyExt, Full};
use lagan::trace::Trace;
use tokio::sync::oneshot;
use tonic::{body::Body, codegen::http};

use crate::{
    book::Flight,
    machine::{Process, run},
    shared::{Answer, Life, Packet, Place, Reply, Step, lost},
    world::World,
};

impl World {
    pub(crate) fn call(&mut self) {
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

    pub(crate) fn process_at(&mut self, place: Place) -> Option<&mut Process> {
        match place {
            Place::Host(at) => self.machines[at].process.as_mut(),
            Place::Peers(at) => self.machines[at].process.as_mut(),
            Place::Router(at) => self.routers[at].as_mut(),
        }
    }

    pub(crate) fn some_packet(&mut self) {
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

    pub(crate) fn double(&mut self, packet: Packet, call: u32) {
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

    pub(crate) fn deliver(&mut self, mut packet: Packet) {
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
    pub(crate) fn answer_to(&mut self, from: Option<Life>, back: oneshot::Sender<Reply>, reply: Reply) {
        drop(back.send(reply));
        match from {
            None => run(&self.callers),
            Some(life) => {
                let waiting = self.routers.iter().flatten().find(|router| router.life == life);
                waiting.iter().for_each(|router| run(&router.runtime));
            }
        }
    }

    pub(crate) fn some_answer(&mut self) {
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
    pub(crate) fn hear(&mut self) {
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
            trace.iter().for_each(|line| eprintln!("{line}"));
        }
        panic!("{wrong}");
    }

    pub(crate) fn cancel(&mut self) {
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

    pub(crate) fn some_step(&mut self) {
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

    pub(crate) fn take(&mut self, step: Step, outcome: std::io::Result<()>) {
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
}

/// The trace of a call, by which it is known where a router passes it on.
fn trace_of(call: u32) -> Trace {
    Trace::of(Some(&format!("00-{:032x}-{:016x}-01", call, 1)))
}
