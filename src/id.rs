//! Names of things: ids of volumes, snapshots and groups, of pools and nodes. Each is parsed once, by one grammar,
//! and is never joined to a path as it came.

use std::{cell::RefCell, fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use uuid::Uuid;

/// Longest text that CSI allows in a field without another limit (specification, "Size Limits"), in bytes.
pub const TEXT_LIMIT: usize = 128;

/// Text that is not an id or name of the kind that was expected.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not {expected}")]
pub struct BadId {
    text: String,
    expected: &'static str,
}

impl BadId {
    /// `text` is not `expected`.
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(TEXT_LIMIT).collect(), expected }
    }
}

/// Reads the one form of a uuid that we write: 32 lower-case hexadecimal digits.
fn parse_uuid(text: &str) -> Option<Uuid> {
    let plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if plain { Uuid::try_parse(text).ok() } else { None }
}

/// Identity of a pool: it is stored in the pool and travels with its disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(Uuid);

impl PoolId {
    /// The identity of a pool that is being made.
    #[must_use]
    pub fn random() -> Self {
        Self(new_uuid())
    }

    /// The uuid that it is.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for PoolId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        parse_uuid(text).map(Self).ok_or_else(|| BadId::new(text, "a pool's uuid (32 hexadecimal digits)"))
    }
}

thread_local! {
    /// Where the uuids of new objects come from on this thread, if not from chance.
    static FORETOLD: RefCell<Option<Box<dyn FnMut() -> Uuid>>> = const { RefCell::new(None) };
}

/// Takes the uuids of new objects from `source` on this thread, from now on: for a simulation, which must be able to repeat
/// itself to the byte.
pub fn foretell(source: impl FnMut() -> Uuid + 'static) {
    FORETOLD.set(Some(Box::new(source)));
}

fn new_uuid() -> Uuid {
    FORETOLD.with_borrow_mut(|foretold| foretold.as_mut().map_or_else(Uuid::new_v4, |next| next()))
}

/// An id of the grammar `{letter}.{pool}.{uuid}`, 67 bytes.
macro_rules! object_id {
    ($name:ident, $letter:literal, $what:literal) => {
        #[doc = concat!("Id of ", $what, ": `", $letter, ".{pool}.{uuid}`, both uuids as 32 hexadecimal digits.")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// The pool that holds it.
            pub pool: PoolId,
            /// Its name inside the pool.
            pub uuid: Uuid,
        }

        impl $name {
            #[doc = concat!("The id of ", $what, " that is being made in `pool`.")]
            #[must_use]
            pub fn random(pool: PoolId) -> Self {
                Self { pool, uuid: new_uuid() }
            }

            /// Every id of this kind in `pool`, in order.
            #[must_use]
            pub const fn all_of(pool: PoolId) -> RangeInclusive<Self> {
                Self { pool, uuid: Uuid::nil() }..=Self { pool, uuid: Uuid::max() }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, ".{}.{}"), self.pool, self.uuid.simple())
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let parse = || {
                    let (pool, uuid) = text.strip_prefix(concat!($letter, "."))?.split_once('.')?;
                    Some(Self { pool: PoolId(parse_uuid(pool)?), uuid: parse_uuid(uuid)? })
                };
                parse().ok_or_else(|| BadId::new(text, concat!("the id of ", $what)))
            }
        }

        text_serde!($name);
    };
}

macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

text_serde!(PoolId);
object_id!(VolumeId, "v", "a volume");
object_id!(SnapshotId, "s", "a snapshot");
object_id!(GroupId, "g", "a group of snapshots");

/// Name of a pool in the configuration: a letter or digit, then letters, digits, `-` and `_`, at most 63 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(String);

/// The orchestrator's name for a node: opaque, 1 to 128 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(String);

macro_rules! text_name {
    ($name:ident, $expected:literal, $valid:expr) => {
        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(BadId::new(text, $expected)) }
            }
        }

        text_serde!($name);
    };
}

text_name!(
    PoolName,
    "a pool name (letters, digits, '-' and '_', at most 63 bytes, no leading '-')",
    |text| {
        text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
    }
);

text_name!(NodeId, "a node id (1 to 128 bytes without control characters)", |text| {
    !text.is_empty() && text.len() <= TEXT_LIMIT && !text.chars().any(char::is_control)
});

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn ids_survive_the_round_trip() {
        let id = VolumeId::random(POOL.parse().unwrap());
        assert_eq!(id.to_string().len(), 67);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().parse::<SnapshotId>().is_err(), "a volume's id is no snapshot's");
    }

    #[test]
    fn nothing_but_the_grammar_is_an_id() {
        let good = format!("v.{POOL}.{POOL}");
        assert!(good.parse::<VolumeId>().is_ok());
        for hostile in [
            String::new(),
            "v".into(),
            "../../etc/passwd".into(),
            format!("v.{POOL}.../{POOL}"),
            format!("v.{POOL}.{POOL}/.."),
            format!("v.{POOL}.{POOL}\0"),
            format!(" {good}"),
            good.to_uppercase(),
            good.replace('0', "%30"),
            format!("v.{POOL}.01234567-89ab-cdef-0123-456789abcdef"),
            "v.".repeat(40_000),
        ] {
            assert!(hostile.parse::<VolumeId>().is_err(), "{hostile:?}");
        }
    }

    #[test]
    fn names_are_held_to_their_alphabet() {
        assert!("default".parse::<PoolName>().is_ok());
        for wrong in ["", "-x", "a/b", "a b", "a.b", &"x".repeat(64)] {
            assert!(wrong.parse::<PoolName>().is_err(), "{wrong:?}");
        }
        assert!("node-1.example.org".parse::<NodeId>().is_ok());
        assert!("n".repeat(129).parse::<NodeId>().is_err());
        assert!("a\nb".parse::<NodeId>().is_err());
    }

    #[test]
    fn hostile_input() {
        fn check<T: FromStr + ToString>(text: &str) {
            // What is read is written as it came: no two texts name one thing.
            assert!(text.parse::<T>().is_err() || text.parse::<T>().is_ok_and(|it| it.to_string() == text));
        }
        let id = format!("v.{POOL}.{POOL}");
        crate::hostile::feed("ids", &[id.as_bytes(), b"default", b"node-1.example.org"], |input| {
            let text = String::from_utf8_lossy(input);
            check::<VolumeId>(&text);
            check::<SnapshotId>(&text.replacen('v', "s", 1));
            check::<GroupId>(&text.replacen('v', "g", 1));
            check::<PoolId>(&text);
            check::<PoolName>(&text);
            check::<NodeId>(&text);
            let named = text.parse::<PoolName>().is_ok();
            assert!(!named || !text.contains(['/', '.', ',', ' ']) && !text.starts_with('-'), "{text:?}");
        });
    }
}
