//! How full a pool is, and from when on that is a trouble.

use super::{Severity, Trouble};
use crate::bytes::Bytes;

/// Per cent from which on a pool is said to fill up, each worse than the one before.
pub const LEVELS: [u32; 3] = [80, 90, 95];

/// What of a pool may run full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The space of volumes.
    Data,
    /// What a thin pool keeps about it.
    Metadata,
}

impl Part {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Metadata => "metadata",
        }
    }
}

/// How full a part of a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Which part.
    pub part: Part,
    /// What is taken.
    pub used: Bytes,
    /// All there is.
    pub total: Bytes,
}

impl Fill {
    /// The highest level that is reached, in per cent; 0 below all of them.
    #[must_use]
    pub fn level(&self) -> u32 {
        LEVELS.into_iter().rfind(|level| self.used >= self.total.percent(*level)).unwrap_or(0)
    }

    /// What there is to say against it.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        let level = Some(self.level()).filter(|level| *level > 0)?;
        let reason = match self.part {
            Part::Data => "PoolNearlyFull",
            Part::Metadata => "PoolMetadataNearlyFull",
        };
        let (part, used, total) = (self.part.name(), self.used, self.total);
        let message = format!("{part} of the pool: {used} of {total} are used, over {level} %");
        Some(Trouble { severity: Severity::Degraded, reason, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_told_from_when_they_are_reached() {
        let fill = |used| Fill { part: Part::Data, used: Bytes::mib(used), total: Bytes::mib(1000) };
        let levels = [0, 799, 800, 899, 900, 949, 950, 1000].map(|used| fill(used).level());
        assert_eq!(levels, [0, 0, 80, 80, 90, 90, 95, 95]);
        assert_eq!(fill(799).trouble(), None);
        assert!(fill(950).trouble().unwrap().message.contains("95 %"));
    }
}
