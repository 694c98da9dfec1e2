//! What a volume can be made of that is not ours: named by a person, never by the parameters of an orchestrator.

use std::{fmt, fs::File, path::PathBuf, str::FromStr};

use super::record::Content;
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    sys::{
        foreign::Foreign,
        superblock::{self, Contents},
    },
};

/// Longest name or path.
const LIMIT: usize = 1024;

/// Something that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Import {
    /// A thin volume of LVM in the same thin pool, by its name, with or without that of its group.
    Lv(String),
    /// A thin device of the same thin pool that no record knows.
    Thin(u32),
    /// Any other block device, or a file, by its path.
    Device(PathBuf),
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lv(name) => write!(f, "lv:{name}"),
            Self::Thin(number) => write!(f, "thin:{number}"),
            Self::Device(path) => write!(f, "device:{}", path.display()),
        }
    }
}

/// A text that names nothing to import.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} names nothing to import: expected lv:NAME, thin:NUMBER or device:/PATH")]
pub struct BadImport(String);

impl FromStr for Import {
    type Err = BadImport;

    fn from_str(text: &str) -> std::result::Result<Self, BadImport> {
        let bad = || BadImport(text.chars().take(64).collect());
        let (kind, name) = text.split_once(':').ok_or_else(bad)?;
        if name.is_empty() || name.len() > LIMIT || name.chars().any(char::is_control) {
            return Err(bad());
        }
        match kind {
            "lv" => Ok(Self::Lv(name.to_owned())),
            "thin" if name.bytes().all(|byte| byte.is_ascii_digit()) => {
                name.parse().map(Self::Thin).map_err(|_large| bad())
            }
            "device" if name.starts_with('/') => Ok(Self::Device(PathBuf::from(name))),
            _ => Err(bad()),
        }
    }
}

/// Says that a pool of this kind cannot import such a thing.
pub(super) fn cannot(from: &Import) -> Error {
    let what = match from {
        Import::Lv(_) | Import::Thin(_) => {
            "only a pool of LVM has thin devices to import: name one, or import a device"
        }
        Import::Device(_) => "a pool of this kind imports nothing",
    };
    Error::new(ErrorKind::Invalid, format!("import {from}: {what}"))
}

/// Opens a device or file of somebody else.
pub(super) fn open(from: &Import) -> Result<Foreign> {
    let Import::Device(path) = from else { return Err(cannot(from)) };
    Foreign::open(path).map_err(|error| {
        let (reason, kind) = match error.kind() {
            std::io::ErrorKind::ResourceBusy => ("it is mounted, or in use by another", ErrorKind::InUse),
            std::io::ErrorKind::NotFound => ("it does not exist where the daemon runs", ErrorKind::NotFound),
            std::io::ErrorKind::InvalidInput => ("it is no block device and no file", ErrorKind::Invalid),
            _ => ("it cannot be opened", ErrorKind::Unavailable),
        };
        Error::io(format!("import {}: {reason}", path.display()), error).as_kind(kind)
    })
}

/// What a copy holds: one of our filesystems where it is whole, and else whatever its user knows it to be.
pub(super) fn content_of(image: &File, size: Bytes) -> Result<Content> {
    match superblock::probe(image, size).doing(|| "look at what was imported")? {
        Contents::Filesystem(found) if found.size <= size => Ok(Content::Filesystem(found.filesystem)),
        _ => Ok(Content::Raw),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn what_can_be_imported() {
        for text in ["lv:vg/lv", "thin:1048577", "device:/dev/disk/by-id/x"] {
            assert_eq!(text.parse::<Import>().unwrap().to_string(), text);
        }
        let long = format!("lv:{}", "x".repeat(LIMIT + 1));
        for wrong in
            ["", "lv", "lv:", "thin:-1", "thin:+1", "thin:4294967296", "device:x", "x:y", "lv:a\nb", &long]
        {
            assert!(wrong.parse::<Import>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            if let Ok(import) = text.parse::<Import>() {
                assert_eq!(import.to_string().parse(), Ok(import));
            }
        }
    }

    #[test]
    fn hostile_input() {
        crate::hostile::feed("imports", &[b"lv:vg/name", b"thin:7", b"device:/dev/sda"], |input| {
            if let Ok(import) = String::from_utf8_lossy(input).parse::<Import>() {
                assert_eq!(import.to_string().parse(), Ok(import));
            }
        });
    }
}
