//! What to do, decided from what was asked and what is there. Pure functions: nothing here reads or changes anything.

use crate::{
    bytes::Bytes,
    error::{Error, ErrorKind, Result},
    filesystem::{BLOCK, Filesystem},
    pool::{
        Capacity,
        record::{Content, Volume},
    },
};

use super::volumes::NewVolume;

/// Size of a volume where the request leaves it open.
pub(super) const DEFAULT_SIZE: Bytes = Bytes::gib(1);

/// What is known of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceFacts {
    pub(super) size: Bytes,
    pub(super) content: Content,
    pub(super) block: bool,
}

/// What a new volume will hold, and whether it may be used raw.
pub(super) fn content(wanted: &NewVolume, source: Option<&SourceFacts>) -> Result<(Content, bool)> {
    match (source, wanted.mount) {
        (None, false) => Ok((Content::Raw, true)),
        (None, true) => {
            let filesystem = wanted.filesystem.unwrap_or(Filesystem::Ext4);
            Ok((Content::Filesystem(filesystem), wanted.block))
        }
        (Some(source), _) => match (source.content.filesystem(), wanted.filesystem) {
            (Some(held), Some(asked)) if held != asked && wanted.mount => {
                let what = format!("the source holds {held}, and a copy cannot become {asked}");
                Err(Error::new(ErrorKind::Invalid, what))
            }
            _ => Ok((source.content, wanted.block || (source.block && !wanted.mount))),
        },
    }
}

/// The length of a new volume: at least what is asked, what its source has and what its filesystem needs.
pub(super) fn size(
    wanted: &NewVolume,
    content: Content,
    source: Option<&SourceFacts>,
    maximum: Bytes,
) -> Result<Bytes> {
    let floor = match (source, content) {
        (Some(source), _) => source.size,
        (None, Content::Filesystem(filesystem)) => filesystem.minimum(),
        (None, Content::Raw) => BLOCK,
    };
    let limit = wanted.limit.unwrap_or(maximum).min(maximum);
    let asked = match wanted.required {
        Some(required) => required,
        None if source.is_some() => floor,
        // As much as the default, and less where the limit says so.
        None => DEFAULT_SIZE.min(limit.round_down(BLOCK)),
    };
    let out_of_range = |what: String| Err(Error::new(ErrorKind::OutOfRange, what));
    match asked.max(floor).round_up(BLOCK) {
        Some(size) if size <= limit => Ok(size),
        _ if floor > limit => {
            out_of_range(format!("at least {floor} are needed here, and at most {limit} are possible"))
        }
        _ => out_of_range(format!("{asked} in blocks of {BLOCK} is more than the limit of {limit}")),
    }
}

/// Whether an existing volume is what a request of the same name asks for.
pub(super) fn matches(existing: &Volume, wanted: &NewVolume) -> Result<()> {
    let differs = |what: &str| {
        let what = format!("volume {:?} exists ({}) with {what}", existing.name, existing.id);
        Err(Error::new(ErrorKind::Mismatch, what))
    };
    let limit = wanted.limit.unwrap_or(Bytes::ZERO);
    let required = wanted.required.unwrap_or(Bytes::ZERO);
    // It may have been grown since the same request made it.
    let same_request = existing.asked.required == required && existing.asked.limit == limit;
    let fits = existing.size >= required && (limit == Bytes::ZERO || existing.size <= limit);
    if !same_request && !fits {
        return differs("another size");
    }
    if existing.asked.digest != wanted.digest {
        return differs("other parameters or another source");
    }
    if wanted.block && !existing.block {
        return differs("a filesystem instead of a raw device");
    }
    match (existing.content, wanted.filesystem) {
        (Content::Filesystem(held), Some(asked)) if wanted.mount && held != asked => {
            differs("another filesystem")
        }
        (Content::Raw, _) if wanted.mount && existing.source.is_none() => {
            differs("a raw device instead of a filesystem")
        }
        _ => Ok(()),
    }
}

/// How much may still be promised to new volumes.
pub(super) fn available(capacity: &Capacity, committed: Bytes) -> Bytes {
    if capacity.free <= capacity.reserve {
        return Bytes::ZERO;
    }
    let ours = capacity.total.minus(capacity.foreign).minus(capacity.reserve);
    ours.percent(capacity.overcommit_percent).minus(committed).round_down(BLOCK)
}

/// Refuses what would promise more than the pool may promise.
pub(super) fn admit(capacity: &Capacity, committed: Bytes, wanted: Bytes) -> Result<()> {
    let available = available(capacity, committed);
    if wanted <= available && capacity.free > capacity.reserve {
        return Ok(());
    }
    let what = if capacity.free <= capacity.reserve {
        format!("the pool is full: {} are free, and {} are kept in reserve", capacity.free, capacity.reserve)
    } else {
        format!(
            "the pool can promise {available} more, not {wanted}: {committed} of its {} are promised (overcommit is \
             {} %)",
            capacity.total, capacity.overcommit_percent
        )
    };
    Err(Error::new(ErrorKind::NoSpace, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Digest,
        id::{PoolId, VolumeId},
        pool::record::{Asked, Timestamp},
    };

    fn wanted() -> NewVolume {
        NewVolume {
            name: "v".into(),
            required: None,
            limit: None,
            block: false,
            mount: true,
            filesystem: None,
            pool: None,
            source: None,
            import: None,
            digest: Digest::of([]),
            reachable: true,
        }
    }

    fn sized(required: Option<u64>, limit: Option<u64>) -> NewVolume {
        NewVolume { required: required.map(Bytes::new), limit: limit.map(Bytes::new), ..wanted() }
    }

    #[test]
    fn sizes() {
        let raw = |required, limit| {
            size(&sized(required, limit), Content::Raw, None, Bytes::gib(16)).map_err(|error| error.kind())
        };
        assert_eq!(raw(None, None), Ok(DEFAULT_SIZE));
        assert_eq!(raw(Some(0), None), Ok(BLOCK));
        assert_eq!(raw(Some(4097), None), Ok(Bytes::new(8192)));
        assert_eq!(raw(Some(8192), Some(8192)), Ok(Bytes::new(8192)), "exactly what both ask for");
        assert_eq!(raw(Some(4097), Some(8000)), Err(ErrorKind::OutOfRange), "rounding passes the limit");
        assert_eq!(
            raw(None, Some(10_000)),
            Ok(Bytes::new(8192)),
            "less than the default where the limit says so"
        );
        assert_eq!(raw(None, Some(100)), Err(ErrorKind::OutOfRange));
        assert_eq!(raw(Some(Bytes::gib(17).get()), None), Err(ErrorKind::OutOfRange));
        assert_eq!(raw(Some(i64::MAX.unsigned_abs()), None), Err(ErrorKind::OutOfRange));
        let xfs = |required, limit| {
            let content = Content::Filesystem(Filesystem::Xfs);
            size(&sized(required, limit), content, None, Bytes::gib(16)).map_err(|error| error.kind())
        };
        assert_eq!(xfs(Some(1), None), Ok(Filesystem::Xfs.minimum()));
        assert_eq!(xfs(Some(1), Some(1 << 20)), Err(ErrorKind::OutOfRange));
    }

    #[test]
    fn sizes_of_copies() {
        let source = SourceFacts { size: Bytes::gib(2), content: Content::Raw, block: true };
        let copy = |required: Option<u64>, limit: Option<u64>| {
            size(&sized(required, limit), Content::Raw, Some(&source), Bytes::gib(16))
                .map_err(|error| error.kind())
        };
        assert_eq!(copy(None, None), Ok(Bytes::gib(2)));
        assert_eq!(copy(Some(1), None), Ok(Bytes::gib(2)));
        assert_eq!(copy(Some(Bytes::gib(3).get()), None), Ok(Bytes::gib(3)));
        assert_eq!(
            copy(Some(1), Some(Bytes::gib(1).get())),
            Err(ErrorKind::OutOfRange),
            "smaller than its source"
        );
    }

    #[test]
    fn a_copy_inherits_what_its_source_holds() {
        let xfs = SourceFacts { size: BLOCK, content: Content::Filesystem(Filesystem::Xfs), block: false };
        let asked = |filesystem, mount, block| NewVolume { filesystem, mount, block, ..wanted() };
        assert_eq!(content(&asked(None, true, false), Some(&xfs)).unwrap(), (xfs.content, false));
        assert_eq!(
            content(&asked(Some(Filesystem::Xfs), true, false), Some(&xfs)).unwrap(),
            (xfs.content, false)
        );
        let other = content(&asked(Some(Filesystem::Ext4), true, false), Some(&xfs));
        assert_eq!(other.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(content(&asked(None, false, true), Some(&xfs)).unwrap(), (xfs.content, true));
        assert_eq!(
            content(&asked(None, true, true), None).unwrap(),
            (Content::Filesystem(Filesystem::Ext4), true)
        );
        assert_eq!(content(&asked(None, false, true), None).unwrap(), (Content::Raw, true));
    }

    fn existing(size: Bytes, required: Bytes, limit: Bytes) -> Volume {
        Volume {
            id: VolumeId::random(PoolId::random()),
            name: "v".into(),
            size,
            content: Content::Filesystem(Filesystem::Ext4),
            block: false,
            source: None,
            asked: Asked { required, limit, digest: Digest::of([]) },
            created: Timestamp::now(),
            grants: Vec::new(),
        }
    }

    #[test]
    fn the_same_name_again() {
        let volume = existing(Bytes::gib(2), Bytes::gib(1), Bytes::gib(1));
        let gib = Some(Bytes::gib(1));
        let same = NewVolume { required: gib, limit: gib, ..wanted() };
        assert!(matches(&volume, &same).is_ok(), "the same request, after the volume was grown");
        let kind = |wanted: NewVolume| matches(&volume, &wanted).map_err(|error| error.kind());
        assert_eq!(
            kind(NewVolume { limit: None, required: Some(Bytes::gib(2)), ..wanted() }),
            Ok(()),
            "it fits"
        );
        assert_eq!(kind(NewVolume { required: Some(Bytes::gib(3)), ..wanted() }), Err(ErrorKind::Mismatch));
        assert_eq!(kind(NewVolume { limit: Some(Bytes::mib(1)), ..wanted() }), Err(ErrorKind::Mismatch));
        assert_eq!(kind(NewVolume { digest: Digest::of([&b"x"[..]]), ..wanted() }), Err(ErrorKind::Mismatch));
        assert_eq!(kind(NewVolume { block: true, mount: false, ..wanted() }), Err(ErrorKind::Mismatch));
        assert_eq!(
            kind(NewVolume { filesystem: Some(Filesystem::Xfs), ..wanted() }),
            Err(ErrorKind::Mismatch)
        );
        assert_eq!(kind(NewVolume { filesystem: Some(Filesystem::Ext4), ..wanted() }), Ok(()));
        let raw = Volume { content: Content::Raw, block: true, ..volume.clone() };
        assert_eq!(matches(&raw, &wanted()).unwrap_err().kind(), ErrorKind::Mismatch);
    }

    #[test]
    fn promises_are_bounded() {
        let room = Capacity {
            total: Bytes::gib(100),
            free: Bytes::gib(60),
            foreign: Bytes::gib(20),
            reserve: Bytes::gib(5),
            overcommit_percent: 100,
            maximum: Bytes::MAX,
        };
        assert_eq!(available(&room, Bytes::ZERO), Bytes::gib(75));
        assert_eq!(available(&room, Bytes::gib(70)), Bytes::gib(5));
        assert_eq!(available(&room, Bytes::gib(80)), Bytes::ZERO, "never negative");
        let generous = Capacity { overcommit_percent: 200, ..room };
        assert_eq!(available(&generous, Bytes::gib(70)), Bytes::gib(80));
        let full = Capacity { free: Bytes::gib(5), ..generous };
        assert_eq!(admit(&full, Bytes::ZERO, BLOCK).unwrap_err().kind(), ErrorKind::NoSpace);
        assert!(admit(&room, Bytes::gib(70), Bytes::gib(5)).is_ok());
        assert!(admit(&room, Bytes::gib(70), Bytes::gib(6)).is_err());
    }
}
