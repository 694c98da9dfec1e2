//! A number of bytes: the only form in which a size crosses a function.
//! Knows nothing of disks; rounding units are passed in.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A size or an amount in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);
    /// The largest amount that the CSI protocol (a signed 64-bit number) can carry.
    pub const MAX: Self = Self(i64::MAX.cast_unsigned());

    /// `count` bytes; anything above [`Bytes::MAX`] becomes [`Bytes::MAX`].
    #[must_use]
    pub const fn new(count: u64) -> Self {
        if count > Self::MAX.0 { Self::MAX } else { Self(count) }
    }

    /// `count` mebibytes.
    #[must_use]
    pub const fn mib(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// `count` gibibytes.
    #[must_use]
    pub const fn gib(count: u32) -> Self {
        Self((count as u64) << 30)
    }

    /// The plain number, for a system call or a message on the wire.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as CSI carries it.
    #[must_use]
    pub const fn signed(self) -> i64 {
        self.0.cast_signed()
    }

    /// The sum, held at [`Bytes::MAX`].
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self::new(self.0.saturating_add(other.0))
    }

    /// The difference, held at zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// This many per cent of the amount; `percent` may be above 100.
    #[must_use]
    pub fn percent(self, percent: u32) -> Self {
        let part = u128::from(self.0) * u128::from(percent) / 100;
        u64::try_from(part).map_or(Self::MAX, Self::new)
    }

    /// The next multiple of `unit`, or `None` past [`Bytes::MAX`].
    #[must_use]
    pub fn round_up(self, unit: Self) -> Option<Self> {
        self.0.checked_next_multiple_of(unit.0).filter(|&sum| sum <= Self::MAX.0).map(Self)
    }

    /// The multiple of `unit` at or below this amount; `unit` zero leaves it as it is.
    #[must_use]
    pub const fn round_down(self, unit: Self) -> Self {
        if unit.0 == 0 { self } else { Self(self.0 - self.0 % unit.0) }
    }
}

/// A size that is negative, malformed or too large.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a size: expected a whole number of bytes or one with a unit, such as 10GiB")]
pub struct BadSize(String);

impl TryFrom<i64> for Bytes {
    type Error = BadSize;

    fn try_from(count: i64) -> Result<Self, BadSize> {
        u64::try_from(count).map(Self).map_err(|_negative| BadSize(count.to_string()))
    }
}

impl FromStr for Bytes {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = || BadSize(text.to_owned());
        let size: bytesize::ByteSize = text.parse().map_err(|_unreadable| bad())?;
        if size.as_u64() > Self::MAX.0 { Err(bad()) } else { Ok(Self(size.as_u64())) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_units() {
        let unit = Bytes::new(4096);
        assert_eq!(Bytes::new(1).round_up(unit), Some(unit));
        assert_eq!(Bytes::new(4096).round_up(unit), Some(unit));
        assert_eq!(Bytes::ZERO.round_up(unit), Some(Bytes::ZERO));
        assert_eq!(Bytes::MAX.round_up(unit), None);
        assert_eq!(Bytes::new(8191).round_down(unit), unit);
    }

    #[test]
    fn arithmetic_holds_at_the_ends() {
        assert_eq!(Bytes::MAX.plus(Bytes::new(1)), Bytes::MAX);
        assert_eq!(Bytes::new(1).minus(Bytes::new(2)), Bytes::ZERO);
        assert_eq!(Bytes::MAX.percent(200), Bytes::MAX);
        assert_eq!(Bytes::gib(1).percent(5), Bytes::new(53_687_091));
    }

    #[test]
    fn reads_what_people_write() {
        assert_eq!("10GiB".parse(), Ok(Bytes::gib(10)));
        assert_eq!("64 MiB".parse(), Ok(Bytes::mib(64)));
        assert_eq!("4096".parse(), Ok(Bytes::new(4096)));
        assert!("-1".parse::<Bytes>().is_err());
        assert!("lots".parse::<Bytes>().is_err());
        assert!(Bytes::try_from(-1).is_err());
        assert_eq!(Bytes::gib(10).to_string(), "10.0 GiB");
    }

    #[test]
    fn hostile_input() {
        crate::hostile::feed("sizes", &[b"10GiB", b"64 MiB", b"4096", b"1.5TiB"], |input| {
            if let Ok(size) = String::from_utf8_lossy(input).parse::<Bytes>() {
                assert!(size <= Bytes::MAX && !size.to_string().is_empty());
                assert!(size.round_up(Bytes::new(4096)).is_none_or(|up| up >= size));
                assert!(size.percent(u32::MAX) <= Bytes::MAX && size.plus(size) <= Bytes::MAX);
            }
        });
    }
}
