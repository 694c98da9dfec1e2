//! What ties the spans of one call together that several processes work on: the trace id of W3C's Trace Context, in the
//! header `traceparent`.

use std::fmt;

use uuid::Uuid;

/// Name of the header, and of the metadata beside a call.
pub const TRACEPARENT: &str = "traceparent";

/// The id of a trace: that of the caller, or a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace(Uuid);

impl Trace {
    /// The trace that a header names; a new one where there is none, or one of another form.
    #[must_use]
    pub fn of(header: Option<&str>) -> Self {
        Self(header.and_then(parse).unwrap_or_else(Uuid::new_v4))
    }

    /// The header for the next process.
    #[must_use]
    pub fn header(self) -> String {
        let parent = Uuid::new_v4().as_u64_pair().0;
        format!("00-{self}-{parent:016x}-01")
    }
}

/// `version-trace-parent-flags`, of which only the second is needed here.
fn parse(header: &str) -> Option<Uuid> {
    let id = header.split('-').nth(1).filter(|id| id.len() == 32)?;
    Uuid::try_parse(id).ok().filter(|id| !id.is_nil())
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_goes_on_and_nonsense_begins_a_new_one() {
        let trace = Trace::of(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert_eq!(trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(Trace::of(Some(&trace.header())), trace);
        let zeros = format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16));
        for nonsense in [None, Some(""), Some("00-xyz-1-01"), Some(zeros.as_str())] {
            assert_ne!(Trace::of(nonsense), Trace::of(nonsense), "{nonsense:?}");
        }
    }

    #[test]
    fn hostile_input() {
        let header = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        crate::hostile::feed("traces", &[header], |input| {
            let trace = Trace::of(Some(&String::from_utf8_lossy(input)));
            assert_eq!(trace.to_string().len(), 32);
        });
    }
}
