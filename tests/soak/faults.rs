//! What goes wrong, and is set right again some seconds later.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use lagan::proto::ListVolumesRequest;
use rustix::{
    fs::FallocateFlags,
    process::{Signal, kill_process},
};

use crate::{
    life::State,
    requests::{block, create_with, delete},
    rig::{Daemon, Ground, MIB, run, text},
};
use lagan::proto::volume_capability::access_mode::Mode;

/// How long a fault lasts that does not end by itself.
const LASTS: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// SIGKILL, and a new daemon.
    Killed,
    /// A new daemon, for which mkfs.xfs fails; then one for which it does not.
    ToolFails,
    /// SIGSTOP, later SIGCONT.
    Stopped,
    /// Nothing is left in the pool.
    Full,
    /// Clients that connect and say nothing, or half of it.
    ClientsHang,
    /// Calls whose callers go away.
    ConnectionsDropped,
    /// Nothing can be written to the log.
    LogFull,
}

/// All of them; those that end the daemon first.
const ALL: [Fault; 7] = [
    Fault::Killed,
    Fault::ToolFails,
    Fault::Stopped,
    Fault::Full,
    Fault::ClientsHang,
    Fault::ConnectionsDropped,
    Fault::LogFull,
];

impl Fault {
    /// The fault whose turn it is.
    pub(crate) fn number(count: usize, ending: bool) -> Self {
        let some = if ending { &ALL[..] } else { &ALL[2..] };
        some[count % some.len()]
    }
}

/// The log on a disk of its own, which can be filled.
pub(crate) fn log_on_a_small_disk(ground: &Ground) {
    let disk = text(&ground.root.join("logs"));
    fs::create_dir(&disk).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=128m", "tmpfs", &disk]);
    std::os::unix::fs::symlink(format!("{disk}/log"), ground.log()).unwrap();
}

pub(crate) struct Injector<'g> {
    pub(crate) ground: &'g Ground,
    state: &'g State,
    pub(crate) daemon: Daemon,
    /// Faults so far.
    pub(crate) count: usize,
}

impl<'g> Injector<'g> {
    pub(crate) fn new(ground: &'g Ground, state: &'g State, daemon: Daemon) -> Self {
        Self { ground, state, daemon, count: 0 }
    }

    pub(crate) async fn inject(&mut self, fault: Fault) {
        self.count += 1;
        self.state.troubled.store(true, SeqCst);
        match fault {
            Fault::Killed => self.replace(|ground| ground.spawn(&["--log-level", "info"])).await,
            Fault::ToolFails => {
                self.replace(spawn_without_mkfs).await;
                tokio::time::sleep(LASTS).await;
                self.replace(|ground| ground.spawn(&["--log-level", "info"])).await;
            }
            Fault::Stopped => {
                kill_process(self.daemon.pid(), Signal::STOP).unwrap();
                tokio::time::sleep(LASTS).await;
                kill_process(self.daemon.pid(), Signal::CONT).unwrap();
            }
            Fault::Full => self.fill_pool().await,
            Fault::ClientsHang => self.hang().await,
            Fault::ConnectionsDropped => self.drop_calls().await,
            Fault::LogFull => {
                let filler = self.ground.root.join("logs/filler");
                fill(&filler);
                tokio::time::sleep(LASTS).await;
                fs::remove_file(filler).unwrap();
            }
        }
        self.state.troubled.store(false, SeqCst);
        // The disk of the log is small.
        let log = File::options().write(true).open(self.ground.log()).unwrap();
        if log.metadata().unwrap().len() > 32 << 20 {
            log.set_len(0).unwrap();
        }
    }

    /// Kills the daemon, and starts another one.
    async fn replace(&mut self, spawn: impl FnOnce(&Ground) -> Child) {
        rustix::process::kill_process(self.daemon.pid(), Signal::KILL).unwrap();
        assert!(self.daemon.was_killed());
        self.daemon = self.ground.connect(spawn(self.ground)).await;
    }

    async fn fill_pool(&self) {
        self.state.full.fetch_add(1, SeqCst);
        let filler = self.ground.pool().join("fs/filler");
        fill(&filler);
        tokio::time::sleep(LASTS).await;
        fs::remove_file(filler).unwrap();
        // What is in the middle of something has seen it.
        self.state.full.fetch_add(1, SeqCst);
    }

    async fn hang(&self) {
        let connect = |_| UnixStream::connect(&self.daemon.socket).unwrap();
        let mut clients: Vec<_> = (0..200).map(connect).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            // Nothing, or a part of what a client of HTTP/2 begins with.
            client.write_all(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"[..number % 27]).unwrap();
        }
        tokio::time::sleep(LASTS).await;
    }

    async fn drop_calls(&self) {
        let how = block(Mode::SingleNodeWriter);
        for number in 0_u64..100 {
            let (mut controller, request) =
                (self.daemon.controller.clone(), create_with(&format!("dropped-{number}"), MIB, &how));
            let call = controller.create_volume(request);
            // Late enough to have begun, early enough not to be done: or the other way round.
            drop(tokio::time::timeout(Duration::from_micros(number * 50), call).await);
        }
        let mut controller = self.daemon.controller.clone();
        for number in 0..100 {
            // Asked again it is found, or made: and then it can go.
            let request = create_with(&format!("dropped-{number}"), MIB, &how);
            let made = loop {
                match controller.create_volume(request.clone()).await {
                    Ok(made) => break made.into_inner().volume.unwrap(),
                    Err(status) => assert_eq!(status.code(), tonic::Code::Aborted, "{status:?}"),
                }
            };
            controller.delete_volume(delete(&made.volume_id)).await.unwrap();
        }
        controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
    }
}

/// Takes all that is left, to the last block.
fn fill(path: &std::path::Path) {
    let file = File::create(path).unwrap();
    let mut at = 0;
    for piece in [1 << 30, 64 << 20, 1 << 20, 64 << 10, 4 << 10] {
        while rustix::fs::fallocate(&file, FallocateFlags::empty(), at, piece).is_ok() {
            at += piece;
        }
    }
    assert!(at > 0, "there was nothing to take");
}

/// A daemon that sees another mkfs.xfs than everybody else.
#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
fn spawn_without_mkfs(ground: &Ground) -> Child {
    let log = File::options().create(true).append(true).open(ground.log()).unwrap();
    let config = text(&ground.root.join("lagan.toml"));
    // Only the mount of the root is kept to itself: what is mounted below ours goes on to be seen by all.
    let prelude =
        "mount --make-private / && mount --bind /bin/false /usr/sbin/mkfs.xfs && exec \"$0\" \"$@\"";
    Command::new("unshare")
        .args(["--mount", "--propagation", "unchanged", "sh", "-c", prelude, &ground.program])
        .args(["--config", &config, "serve", "--log-level", "info"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}
