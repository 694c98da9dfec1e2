//! What locks and joins promise, one small story each. Threads are few and steps short: every order of them is tried.

use std::task::Poll;

use loom::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::spawn,
};

use crate::{
    blocking::block_on,
    digest::Digest,
    engine::{
        locks::{Key, Locks, Mode},
        work::{Task, Work},
    },
    error::{ErrorKind, Result},
};

/// Each promise, and its story.
pub(crate) const ALL: &[(&str, fn())] = &[
    ("of two calls on one object at most one runs at a time", exclusive),
    ("readers share, and exclude a writer", shared),
    ("all locks are taken, or none is kept", all_or_none),
    ("the identical call joins or begins, and both have an answer", identical),
    ("what only joins begins nothing, and misses no answer", only_joins),
    ("whoever has an answer does not meet the locks of its work", answered),
    ("a panic is answered, and gives everything back", panicked),
    ("a drain ends, with nothing running, and nothing begins after it", drained),
    ("a drain waits for work whose callers are gone, and hears the last of two", drained_of_two),
    ("no more run than the limit says, and room comes back", limited),
];

/// A place where only so many may be at a time.
#[derive(Debug, Default)]
struct Room(AtomicUsize);

impl Room {
    fn visit(&self, most: usize) {
        assert!(self.0.fetch_add(1, SeqCst) < most, "too many at a time");
        self.0.fetch_sub(1, SeqCst);
    }
}

fn key(name: &str) -> Key {
    Key::VolumeName(name.to_owned())
}

fn task(call: &'static str, name: &str) -> Task {
    Task {
        call,
        subject: name.to_owned(),
        fingerprint: Digest::of([call.as_bytes(), name.as_bytes()]),
        locks: vec![(key(name), Mode::Exclusive)],
    }
}

/// Runs a task that visits `room`.
fn run(work: &Work, task: Task, room: &Arc<Room>) -> Result<()> {
    let room = Arc::clone(room);
    block_on(work.run(task, |_| async move {
        room.visit(1);
        Ok(())
    }))
}

/// Done, or told to come back; never anything else.
#[track_caller]
fn ran(answer: &Result<()>) -> bool {
    match answer {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            false
        }
    }
}

#[track_caller]
fn all_is_free(work: &Work, names: &[&str]) {
    assert!(work.running().is_empty());
    for name in names {
        assert!(block_on(work.join::<()>(&task("look", name))).is_none(), "{name} is still held");
    }
}

fn exclusive() {
    let (work, room) = (Work::new(8), Arc::<Room>::default());
    let other = spawn({
        let (work, room) = (work.clone(), Arc::clone(&room));
        move || run(&work, task("delete", "a"), &room)
    });
    let mine = run(&work, task("create", "a"), &room);
    let theirs = other.join().unwrap();
    assert!(ran(&mine) | ran(&theirs), "each was told that the other runs");
    all_is_free(&work, &["a"]);
}

fn shared() {
    let (locks, writers) = (std::sync::Arc::<Locks>::default(), Arc::<Room>::default());
    let reader = || {
        let (locks, writers) = (std::sync::Arc::clone(&locks), Arc::clone(&writers));
        spawn(move || {
            let held = locks.try_acquire(&[(key("a"), Mode::Shared)]);
            assert!(held.is_err() || writers.0.load(SeqCst) == 0, "read while it is written");
            held.is_ok()
        })
    };
    let readers = [reader(), reader()];
    let wrote = locks.try_acquire(&[(key("a"), Mode::Exclusive)]).map(|_guard| writers.visit(1)).is_ok();
    let read = readers.map(|reader| reader.join().unwrap());
    assert!(wrote || read == [true; 2], "a reader was sent away by another one");
    assert!(locks.try_acquire(&[(key("a"), Mode::Exclusive)]).is_ok(), "still held");
}

fn all_or_none() {
    let locks = std::sync::Arc::<Locks>::default();
    let rooms = Arc::new([Room::default(), Room::default(), Room::default()]);
    let take_two = |first: usize| {
        let (locks, rooms) = (std::sync::Arc::clone(&locks), Arc::clone(&rooms));
        move || {
            let two = [first, (first + 1) % 3];
            let keys = two.map(|number| (key(["a", "b", "c"][number]), Mode::Exclusive));
            let held = locks.try_acquire(&keys);
            if held.is_ok() {
                two.iter().for_each(|number| rooms[*number].visit(1));
            }
            held.is_ok()
        }
    };
    let others = [spawn(take_two(1)), spawn(take_two(2))];
    let mine = take_two(0)();
    let theirs = others.map(|other| other.join().unwrap());
    assert!(mine || theirs.contains(&true), "each stood in the way of another");
    let all = ["a", "b", "c"].map(|name| (key(name), Mode::Exclusive));
    assert!(locks.try_acquire(&all).is_ok(), "something was kept");
}

fn identical() {
    let (work, room, runs) = (Work::new(8), Arc::<Room>::default(), Arc::<AtomicUsize>::default());
    let call = || {
        let (work, room, runs) = (work.clone(), Arc::clone(&room), Arc::clone(&runs));
        move || {
            block_on(work.run(task("create", "a"), |_| async move {
                room.visit(1);
                Ok(runs.fetch_add(1, SeqCst))
            }))
        }
    };
    let other = spawn(call());
    let mine = call()().unwrap();
    let theirs = other.join().unwrap().unwrap();
    match runs.load(SeqCst) {
        1 => assert_eq!((mine, theirs), (0, 0), "one ran, both have its answer"),
        2 => assert_eq!(mine + theirs, 1, "each has its own"),
        more => panic!("{more} ran"),
    }
    all_is_free(&work, &["a"]);
}

fn only_joins() {
    let (work, room) = (Work::new(8), Arc::<Room>::default());
    let other = spawn({
        let work = work.clone();
        move || {
            let same = block_on(work.join::<()>(&task("create", "a")));
            let different = block_on(work.join::<()>(&task("delete", "a")));
            (same, different)
        }
    });
    // It must not be in the way of what begins.
    run(&work, task("create", "a"), &room).unwrap();
    let (same, different) = other.join().unwrap();
    assert!(matches!(same, None | Some(Ok(()))), "{same:?}");
    assert!(different.is_none_or(|answer| !ran(&answer)), "nothing was begun");
    all_is_free(&work, &["a"]);
}

fn answered() {
    let (work, room) = (Work::new(1), Arc::<Room>::default());
    let other = spawn({
        let work = work.clone();
        // Whoever looks on may meet the second.
        move || block_on(work.join::<()>(&task("create", "a"))).is_none_or(|answer| ran(&answer))
    });
    run(&work, task("create", "a"), &room).unwrap();
    run(&work, task("delete", "a"), &room).unwrap();
    other.join().unwrap();
}

fn panicked() {
    let work = Work::new(1);
    let call = |work: &Work| {
        let answer: Result<()> = block_on(work.run(task("create", "a"), |_| async {
            // Without the message of a panic, a thousand times.
            std::panic::resume_unwind(Box::new("on purpose"))
        }));
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Broken);
    };
    let other = spawn({
        let work = work.clone();
        move || call(&work)
    });
    call(&work);
    other.join().unwrap();
    block_on(work.drain());
    all_is_free(&work, &["a"]);
}

/// Begins a task, if it may still, and waits for it.
fn begin(work: &Work, name: &'static str, room: &Arc<Room>) -> loom::thread::JoinHandle<()> {
    let (work, room) = (work.clone(), Arc::clone(room));
    spawn(move || {
        let answer = block_on(work.run(task("create", name), |_| async move {
            room.visit(2);
            Ok(())
        }));
        assert!(answer.is_ok_and(|()| true) || block_on(closed(&work)));
    })
}

async fn closed(work: &Work) -> bool {
    let refused: Result<()> = work.run(task("create", "late"), |_| async { Ok(()) }).await;
    refused.is_err_and(|error| error.kind() == ErrorKind::Unavailable)
}

fn drained() {
    let (work, room) = (Work::new(8), Arc::<Room>::default());
    let other = begin(&work, "a", &room);
    block_on(work.drain());
    assert_eq!(room.0.load(SeqCst), 0, "one still runs");
    assert!(block_on(closed(&work)), "one began after the end");
    other.join().unwrap();
    all_is_free(&work, &["a"]);
}

fn drained_of_two() {
    let work = Work::new(8);
    for name in ["a", "b"] {
        // A caller that goes away at once; its work does not.
        let mut call = Box::pin(work.run(task("create", name), |_| async { Ok(()) }));
        drop(block_on(std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context)))));
    }
    block_on(work.drain());
    all_is_free(&work, &["a", "b"]);
}

fn limited() {
    let (work, room) = (Work::new(1), Arc::<Room>::default());
    let other = spawn({
        let (work, room) = (work.clone(), Arc::clone(&room));
        move || run(&work, task("create", "b"), &room)
    });
    let mine = run(&work, task("create", "a"), &room);
    let theirs = other.join().unwrap();
    assert!(ran(&mine) | ran(&theirs), "each was told that the other runs");
    block_on(work.run(task("create", "c"), |_| async { Ok(()) })).unwrap();
    all_is_free(&work, &["a", "b", "c"]);
}
