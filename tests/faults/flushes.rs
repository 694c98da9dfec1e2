//! What is answered is on disk. SIGKILL cannot show that, since the kernel remembers what was not flushed: so the order of the
//! system calls is looked at. Cuts of the power at each flush are in tests/power.

use crate::{coverage::recorded, tracer::Call};

/// Whether a call changes a name or a record in a pool. Templates and notes of pauses may be lost.
fn changes_pool(call: &Call) -> bool {
    let ours = !call.about.contains("/templates/") && !call.about.contains("/pauses/");
    let named = [".raw", ".group"].iter().any(|suffix| call.about.ends_with(suffix));
    let done = call.answer >= 0;
    done && match call.kind.as_str() {
        "fsetxattr" => ours,
        "linkat" | "unlinkat" => ours && named,
        _ => false,
    }
}

/// The names and records that were changed and not flushed when the call was answered.
fn not_flushed(calls: &[Call]) -> Vec<String> {
    // In the directory of pauses names come and go between the two requests to the minder, and are as long.
    let paused = |at: usize| {
        calls[..at].iter().any(|call| call.about.contains("/pauses")) && calls[at].kind == "unlinkat"
    };
    let mut left = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        let flushed = calls[at..]
            .iter()
            .any(|later| matches!(later.kind.as_str(), "fsync" | "fdatasync") && later.answer == 0);
        if changes_pool(call) && !flushed && !paused(at) {
            left.push(format!("{} {}", call.kind, call.about));
        }
    }
    left
}

#[tokio::test]
async fn what_is_answered_was_flushed() {
    let mut changed = 0;
    for (kind, operation, calls) in recorded().await {
        assert_eq!(not_flushed(calls), [""; 0], "{operation:?} on {kind:?}");
        changed += calls.iter().filter(|call| changes_pool(call)).count();
    }
    println!("{changed} changes of names and records, each flushed before the answer");
    assert!(changed > 30, "{changed} changes were seen");
}

#[test]
fn a_missing_flush_is_seen() {
    let call = |kind: &str, about: &str| Call { kind: kind.into(), nth: 1, about: about.into(), answer: 0 };
    let link = call("linkat", "07a2858f.raw");
    assert_eq!(not_flushed(std::slice::from_ref(&link)), ["linkat 07a2858f.raw"]);
    assert_eq!(not_flushed(&[call("fsync", "/pool/volumes"), link.clone()]), ["linkat 07a2858f.raw"]);
    assert_eq!(not_flushed(&[link, call("fsync", "/pool/volumes")]), [""; 0]);
}
