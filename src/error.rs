//! What can go wrong, in the terms that a caller acts on. One kind of error for the whole crate: what was being
//! tried on which object, and the cause. `csi/status.rs` alone turns a kind into a gRPC code.

use std::{error::Error as StdError, fmt, io, sync::Arc};

use rustix::io::Errno;

/// What a caller may believe and do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is malformed, incomplete or asks for what is not supported. Nothing happened.
    Invalid,
    /// The object does not exist. Nothing happened.
    NotFound,
    /// The same name or target exists with other content. Nothing happened.
    Mismatch,
    /// The object is attached, staged, open or depended on. Nothing happened.
    InUse,
    /// A size that is impossible here. Nothing happened.
    OutOfRange,
    /// The caller may not do this. Nothing happened.
    Denied,
    /// A call that is not served here.
    NotOffered,
    /// No room; what was begun has been undone.
    NoSpace,
    /// Another operation holds the object, or a paging token is stale.
    Busy,
    /// A pool, device or tool cannot be reached; or we are shutting down.
    Unavailable,
    /// The outcome is not known: work goes on, or could not be undone.
    Unsettled,
    /// A bug, or a failure that was fully undone.
    Broken,
}

impl ErrorKind {
    /// Each of them.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::NotFound,
        Self::Mismatch,
        Self::InUse,
        Self::OutOfRange,
        Self::Denied,
        Self::NotOffered,
        Self::NoSpace,
        Self::Busy,
        Self::Unavailable,
        Self::Unsettled,
        Self::Broken,
    ];
}

/// A failure: one line saying what was tried on which object, and what stood in the way.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    cause: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What the crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure with no deeper cause.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), cause: None }
    }

    /// A failure of the operating system while `what` was tried; the kind follows from the error number.
    pub fn io(what: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        Self { kind: kind_of(&cause), what: what.into(), cause: Some(Arc::new(cause)) }
    }

    /// The same failure seen from one step further out.
    #[must_use]
    pub fn within(self, what: impl Into<String>) -> Self {
        Self { kind: self.kind, what: what.into(), cause: Some(Arc::new(self)) }
    }

    /// The same failure under another kind, where the caller knows better what it means.
    #[must_use]
    pub fn as_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// The same failure after something was changed that stays changed: a kind that says nothing happened, or that all was
    /// undone, would be a lie.
    #[must_use]
    pub fn half_done(self) -> Self {
        match self.kind {
            ErrorKind::InUse | ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Unsettled => self,
            _ => self.as_kind(ErrorKind::Unsettled),
        }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// What a caller may believe.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// What an error is about below all its layers, of which some libraries have many that say nothing.
#[must_use]
pub fn innermost(error: &dyn StdError) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

/// What an error of the operating system means where nobody knows better.
#[must_use]
pub fn kind_of(cause: &io::Error) -> ErrorKind {
    match Errno::from_io_error(cause) {
        Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::NoSpace,
        Some(Errno::ROFS | Errno::IO | Errno::NODEV | Errno::NXIO | Errno::STALE | Errno::NOTCONN) => {
            ErrorKind::Unavailable
        }
        // We are short of something, not the pool: it passes, and says nothing of what was done before it.
        Some(Errno::NFILE | Errno::MFILE | Errno::NOMEM) => ErrorKind::Unavailable,
        Some(Errno::BUSY | Errno::TXTBSY) => ErrorKind::InUse,
        Some(Errno::AGAIN | Errno::INTR) => ErrorKind::Busy,
        Some(Errno::TIMEDOUT) => ErrorKind::Unsettled,
        Some(Errno::FBIG) => ErrorKind::OutOfRange,
        // A link where none is followed, or a name that no filesystem takes: only a path that was asked for has them.
        Some(Errno::LOOP | Errno::NAMETOOLONG) => ErrorKind::Invalid,
        // What was read cannot be what is there.
        None if matches!(cause.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Broken,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, Chain(self))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn StdError + 'static))
    }
}

/// Prints an error with all its causes, outermost first. Used where an error leaves the program: the log, the
/// status message, the terminal.
pub struct Chain<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

/// Says what was being tried when the operating system refused.
pub trait Doing<T> {
    /// Turns the system's error into ours; `what` is called only on failure.
    ///
    /// # Errors
    /// The error that was there, with what was being tried.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::io(what(), cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_prints_its_causes_outermost_first() {
        let failed: Result<()> = Err(Errno::NOSPC).doing(|| "write record of volume v1");
        let error = failed.unwrap_err().within("create volume v1");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(
            Chain(&error).to_string(),
            "create volume v1: write record of volume v1: No space left on device (os error 28)"
        );
    }
}
