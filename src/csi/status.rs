//! The one table from what went wrong to what gRPC says. Nothing else makes a status.

use std::error::Error as StdError;

use tonic::{Code, Status, TimeoutExpired};

use crate::error::{Chain, Error, ErrorKind, innermost};

/// The code for a kind of error. The right column of what each code makes an orchestrator do is in ARCHITECTURE.md.
#[must_use]
pub const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Mismatch => Code::AlreadyExists,
        ErrorKind::InUse => Code::FailedPrecondition,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::NotOffered => Code::Unimplemented,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Busy => Code::Aborted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Unsettled => Code::DeadlineExceeded,
        ErrorKind::Broken => Code::Internal,
    }
}

/// Longest message in bytes. It stands in the head of an answer, where most bytes may take three, and clients take a head of
/// 16 KiB: beyond that they would see no answer at all.
const MESSAGE_LIMIT: usize = 2048;

/// As much of a text as a message may hold.
fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_LIMIT {
        text.truncate(text.floor_char_boundary(MESSAGE_LIMIT - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// Logs an error, here where it is handled, and turns it into the answer: a message that is never empty, and never
/// any details.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub(crate) fn status(error: Error) -> Status {
    let message = Chain(&error).to_string();
    let code = code(error.kind());
    match error.kind() {
        ErrorKind::Broken | ErrorKind::Unsettled => tracing::error!(error = message, ?code, "call failed"),
        ErrorKind::Unavailable | ErrorKind::NoSpace => tracing::warn!(error = message, ?code, "call failed"),
        _ => tracing::info!(error = message, ?code, "call refused"),
    }
    #[expect(clippy::disallowed_methods, reason = "this is the one place that makes statuses")]
    Status::new(code, cut(message))
}

/// The answer of another host as our own: what it said, or that it could not say it. Whether a call was carried out is not
/// known where its answer was lost.
pub(crate) fn passed_on(host: &dyn std::fmt::Display, said: &Status) -> Status {
    let Some(kind) = kind(said.code()).filter(|_| said.source().is_none()) else {
        let late = said.source().is_some_and(|cause| cause.is::<TimeoutExpired>());
        let kind =
            if late || said.source().is_none() { ErrorKind::Unsettled } else { ErrorKind::Unavailable };
        return status(Error::new(kind, format!("host {host} has not answered: {}", innermost(said))));
    };
    // It was logged where it was handled.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that makes statuses")]
    Status::new(code(kind), cut(said.message().to_owned()))
}

/// The kind that a code stands for; `None` for one that none of ours gives.
fn kind(said: Code) -> Option<ErrorKind> {
    ErrorKind::ALL.into_iter().find(|kind| code(*kind) == said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_code() {
        let table = [
            (ErrorKind::Invalid, Code::InvalidArgument),
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::Mismatch, Code::AlreadyExists),
            (ErrorKind::InUse, Code::FailedPrecondition),
            (ErrorKind::OutOfRange, Code::OutOfRange),
            (ErrorKind::Denied, Code::PermissionDenied),
            (ErrorKind::NotOffered, Code::Unimplemented),
            (ErrorKind::NoSpace, Code::ResourceExhausted),
            (ErrorKind::Busy, Code::Aborted),
            (ErrorKind::Unavailable, Code::Unavailable),
            (ErrorKind::Unsettled, Code::DeadlineExceeded),
            (ErrorKind::Broken, Code::Internal),
        ];
        for (kind, expected) in table {
            let status = status(Error::new(kind, "what was tried").because(std::io::Error::other("why not")));
            assert_eq!(status.code(), expected);
            assert_eq!(status.message(), "what was tried: why not");
            assert!(status.details().is_empty());
        }
    }

    #[test]
    fn a_message_has_an_end() {
        let long = |length| status(Error::new(ErrorKind::Invalid, "\u{1F4A7}".repeat(length)));
        assert_eq!(long(512).message().len(), MESSAGE_LIMIT);
        for length in [513, 5000] {
            let status = long(length);
            assert!(status.message().len() <= MESSAGE_LIMIT && status.message().ends_with('…'), "{status}");
        }
    }
}
