//! A driver that is followed, what its operations work on, neighbours that must not notice, and one trial on it.

use std::{
    fs,
    time::{Duration, Instant},
};

use tonic::{Code, Status};

use crate::{
    life::{Life, Operation},
    memory::{Beside, Memory, beside},
    requests::block,
    rig::{Daemon, Ground, Kind, filesystem, random, try_run},
    table,
    tracer::{Act, Seen, Shot, Tracer},
    world::World,
    writer::Writer,
};

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(30);

/// A driver on a pool, with neighbours.
pub(crate) struct Stage {
    pub(crate) ground: Ground,
    daemon: Option<Daemon>,
    tracer: Tracer,
    life: Life,
    writer: Writer,
    /// A raw volume that nobody is to touch.
    still: String,
    content: Vec<u8>,
    beside: String,
    /// From the start of a driver to its first answer, after a kill.
    pub(crate) longest_restart: Duration,
    /// Below everything, and so the last to go.
    _memory: Memory,
    _apart: Beside,
    /// The operation that everything is prepared for, and how everything is.
    ready: Option<(Operation, World)>,
}

/// How a trial went.
#[derive(Debug, Default)]
pub(crate) struct Trial {
    /// The faults that came to pass.
    pub(crate) fired: usize,
    /// What the driver answered.
    pub(crate) code: Option<Code>,
    /// What is wrong with that.
    pub(crate) wrong: Vec<String>,
}

impl Stage {
    pub(crate) async fn new(kind: Kind) -> Self {
        let apart = beside();
        let memory = Memory::new();
        let mut ground = Ground::within(memory.path(), kind, 4096);
        ground.pool_settings.push_str("freeze_limit = \"1s\"\n");
        let mut daemon = ground.start().await;
        let beside = daemon.create("beside", 16, &filesystem("ext4")).await.volume_id;
        let shown = daemon.show(&ground, &beside, "beside", &filesystem("ext4")).await;
        let writer = Writer::on(&shown);
        let raw = block(lagan::proto::volume_capability::access_mode::Mode::SingleNodeWriter);
        let still = daemon.create("still", 1, &raw).await.volume_id;
        let content = random(1 << 20);
        fs::write(ground.file_of(&still), &content).unwrap();
        let life = Life::begin(&ground, &mut daemon).await;
        let tracer = follow(&daemon);
        Self {
            ground,
            daemon: Some(daemon),
            tracer,
            life,
            writer,
            still,
            content,
            beside,
            longest_restart: Duration::ZERO,
            _memory: memory,
            _apart: apart,
            ready: None,
        }
    }

    /// Takes everything away: nothing may be left, and the neighbours are as they were.
    pub(crate) async fn end(self) {
        let Self { _apart, _memory, ground, daemon, life, writer, still, content, beside, .. } = self;
        let mut daemon = daemon.unwrap();
        writer.resumes();
        writer.end();
        assert!(
            fs::read(ground.file_of(&still)).unwrap() == content,
            "a volume that nobody used was changed"
        );
        daemon.hide(&ground, &beside, "beside").await;
        life.end(&ground, &mut daemon).await;
        ground.account();
        assert!(!daemon.said().contains("panicked"), "the driver panicked");
    }

    /// Gives up after a trial that went wrong: what it left may be anything.
    pub(crate) fn abandon(self) {
        let Self { _apart, _memory, ground, daemon, writer, .. } = self;
        drop(daemon);
        // It may be frozen for a while yet.
        writer.resumes();
        writer.end();
        let begun = Instant::now();
        while ground.mounts().iter().any(|point| point.starts_with(&ground.path(""))) {
            assert!(begun.elapsed() < PATIENCE, "not unmounted: {:?}", ground.mounts());
            for point in ground.mounts().iter().rev() {
                drop(try_run("umount", &[point]));
            }
        }
    }

    /// The system calls that an operation makes.
    pub(crate) async fn record(&mut self, operation: Operation) -> Seen {
        self.ready = None;
        let daemon = self.daemon.as_mut().unwrap();
        let mut seen = Seen::default();
        // The first times find less of what is remembered: a filesystem is kept when its length is asked for again.
        for _ in 0..3 {
            self.life.prepare(&self.ground, daemon, operation).await;
            self.tracer.begin(&[]);
            self.life.attempt(&self.ground, daemon, operation).await.unwrap();
            seen = self.tracer.end();
            self.life.check(&self.ground, operation).unwrap();
        }
        seen
    }

    /// An operation with faults: what it answers fits, the same request succeeds once they are over, and nothing is left.
    pub(crate) async fn trial(&mut self, operation: Operation, shots: &[Shot]) -> Trial {
        let mut trial = Trial::default();
        let before = self.prepared(operation).await;
        let mut passing = self.life.passing();
        let mut daemon = self.daemon.take().unwrap();
        self.tracer.begin(shots);
        let answer = timed(self.life.attempt(&self.ground, &mut daemon, operation)).await;
        let seen = self.tracer.end();
        trial.fired = seen.fired.len();
        let kill = shots.iter().position(|shot| matches!(shot.act, Act::KillBefore | Act::KillAfter));
        let killed = kill.is_some_and(|place| trial.fired > place);
        trial.code = Some(answer.as_ref().map_or_else(Status::code, |()| Code::Ok));
        match &answer {
            Ok(()) => self.judge(&mut trial, operation, "answered OK under the fault, but"),
            Err(_) if killed => {}
            Err(status) => {
                let mut allowed: Vec<_> = shots.iter().flat_map(|shot| table::expected(shot.act)).collect();
                allowed.push(&Code::DeadlineExceeded);
                if trial.fired > 0 && !allowed.contains(&&status.code()) {
                    trial.wrong.push(format!("answered {:?}: {}", status.code(), status.message()));
                }
                if table::says_nothing_happened(status.code()) {
                    let mut left = before.differences(&World::seen(&self.ground, &daemon));
                    // What is noted of a pause is overwritten by the next one, where two faults have left it.
                    left.retain(|it| shots.len() == 1 || !it.contains("/pauses/"));
                    trial.wrong.extend(left.iter().map(|it| format!("{:?}, but {it}", status.code())));
                }
            }
        }
        let broken = matches!(&answer, Err(status) if status.message().contains("restart the driver"))
            || matches!(&answer, Err(status) if status.message().contains("flush the pool's disk"));
        if killed || broken {
            if killed && !daemon.was_killed() {
                trial.wrong.push("it was not killed".into());
            }
            daemon = self.restart(daemon).await;
        }
        if answer.is_err() {
            match self.retry(&mut daemon, operation).await {
                Ok(()) => self.judge(&mut trial, operation, "the same request answered OK, but"),
                Err(status) => {
                    let what = format!("the same request: {:?}: {}", status.code(), status.message());
                    trial.wrong.push(what);
                }
            }
        }
        self.daemon = Some(daemon);
        if killed || broken {
            let checked = self.ground.lagan(&["doctor", "--check"]);
            if !checked.status.success() {
                trial.wrong.push(format!("the accountant: {}", String::from_utf8_lossy(&checked.stdout)));
            }
        }
        if trial.wrong.is_empty() {
            let (mut after, restarted) = self.settled(operation, &before, shots.len() > 1).await;
            passing.extend(self.life.passing());
            if killed || broken || restarted {
                after.open_as_in(&before);
            }
            let left = before.differences(&after).into_iter();
            let left = left.filter(|it| shots.len() == 1 || !it.contains("/pauses/"));
            let left = left.filter(|it| !passing.iter().any(|name| it.contains(name)));
            trial.wrong.extend(left.map(|it| format!("once all was over, {it}")));
            self.ready = Some((operation, World::seen(&self.ground, self.daemon.as_ref().unwrap())));
        }
        trial
    }

    /// The same once all is over, and whether it took a restart: what a second fault kept from being undone, the next start
    /// undoes.
    async fn settled(&mut self, operation: Operation, before: &World, twice: bool) -> (World, bool) {
        let after = self.collected(operation, before).await;
        if !twice || !before.differences(&after).iter().any(|it| it.contains(".group has come")) {
            return (after, false);
        }
        let daemon = self.daemon.take().unwrap();
        self.daemon = Some(self.restart(daemon).await);
        (self.collected(operation, before).await, true)
    }

    /// The same once programs that were killed have been collected, which takes them a moment.
    async fn collected(&mut self, operation: Operation, before: &World) -> World {
        let begun = Instant::now();
        loop {
            let world = self.prepared(operation).await;
            if world.programs <= before.programs || begun.elapsed() > Duration::from_secs(5) {
                return world;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How everything is where an operation begins.
    async fn prepared(&mut self, operation: Operation) -> World {
        if let Some((ready, world)) = self.ready.take()
            && ready == operation
        {
            return world;
        }
        let daemon = self.daemon.as_mut().unwrap();
        self.life.prepare(&self.ground, daemon, operation).await;
        World::seen(&self.ground, daemon)
    }

    /// Makes the same request as an orchestrator does: again, where the answer says that something may be running.
    async fn retry(&mut self, daemon: &mut Daemon, operation: Operation) -> Result<(), Status> {
        let begun = Instant::now();
        loop {
            let answer = timed(self.life.attempt(&self.ground, daemon, operation)).await;
            match &answer {
                Err(status) if table::asks_again(status.code()) && begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                _ => return answer,
            }
        }
    }

    async fn restart(&mut self, daemon: Daemon) -> Daemon {
        daemon.kill();
        let begun = Instant::now();
        let daemon = self.ground.start().await;
        self.longest_restart = self.longest_restart.max(begun.elapsed());
        self.tracer = follow(&daemon);
        daemon
    }

    fn judge(&mut self, trial: &mut Trial, operation: Operation, what: &str) {
        if let Err(missing) = self.life.check(&self.ground, operation) {
            trial.wrong.push(format!("{what} {missing}"));
        }
    }
}

fn follow(daemon: &Daemon) -> Tracer {
    Tracer::attach(daemon.pid().as_raw_nonzero().get())
}

/// A call that must not hang.
async fn timed(call: impl Future<Output = Result<(), Status>>) -> Result<(), Status> {
    tokio::time::timeout(PATIENCE, call).await.expect("a call hangs")
}
