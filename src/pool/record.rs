//! Records: what the driver stores about a volume, a snapshot or a group of them, beside its data. The types, and the text they are
//! stored as: one line of JSON behind a version and a checksum, padded to a fixed length.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    bytes::Bytes,
    capability::AccessMode,
    digest::Digest,
    error::{Error, ErrorKind, Result},
    filesystem::Filesystem,
    id::{GroupId, NodeId, SnapshotId, VolumeId},
};

/// Longest record in bytes. An extended attribute of ext4 holds 4,040 bytes.
pub const RECORD_LIMIT: usize = 3072;
/// Length of a usual record. XFS replaces an attribute of unchanged length in one transaction; one that outgrows
/// its place is removed in a first and added in a second one, and a crash between the two would lose it.
const RECORD_LENGTH: usize = 1536;
/// Most nodes that one volume can be granted to.
pub const GRANT_LIMIT: usize = 4;
/// Most snapshots in a group: each may stand for two devices that are paused together, and the minder takes 64.
pub const GROUP_LIMIT: usize = 32;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The caller's name for it.
    pub name: String,
    /// Its length.
    pub size: Bytes,
    /// What it was made to hold.
    pub content: Content,
    /// It may be used as a raw block device.
    pub block: bool,
    /// What it was copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The request that made it.
    pub asked: Asked,
    /// When.
    pub created: Timestamp,
    /// Nodes that may use it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
}

/// A snapshot: a copy of a volume that nobody writes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The caller's name for it.
    pub name: String,
    /// The volume it was cut from, which may be gone.
    pub volume: VolumeId,
    /// Length of the volume when it was cut: what a restore needs.
    pub size: Bytes,
    /// What the volume was made to hold.
    pub content: Content,
    /// The volume could be used as a raw block device.
    pub block: bool,
    /// Blocks of the volume when it was cut: what the snapshot keeps once the volume is overwritten.
    pub used: Bytes,
    /// When it was cut.
    pub created: Timestamp,
    /// The group that it was cut with. Names of members are ours, and nobody finds one by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
}

/// Snapshots of several volumes of one pool, cut at one instant. They come and go together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// The caller's name for it.
    pub name: String,
    /// Its snapshots, by what their ids have beyond the pool's.
    pub members: Vec<Uuid>,
    /// The request that made it: parameters and sources.
    pub digest: Digest,
    /// When it was cut.
    pub created: Timestamp,
}

impl Group {
    /// The ids of its snapshots.
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotId> {
        self.members.iter().map(|uuid| SnapshotId { pool: self.id.pool, uuid: *uuid })
    }
}

/// How far the making or removing of something is that has more than one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It was begun: parts may be there, and nobody was told of them.
    Making,
    /// It is there.
    Ready,
    /// Its end was begun: parts may be gone.
    Removing,
    /// Nothing is there any more.
    Removed,
}

/// What a volume was made to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Nothing: its user writes what it likes.
    Raw,
    /// A filesystem, made by us.
    #[serde(untagged)]
    Filesystem(Filesystem),
}

impl Content {
    /// The filesystem that it was made to hold.
    #[must_use]
    pub const fn filesystem(self) -> Option<Filesystem> {
        match self {
            Self::Raw => None,
            Self::Filesystem(filesystem) => Some(filesystem),
        }
    }
}

/// What a volume was copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// Another volume.
    Volume(VolumeId),
}

/// The request that made a volume, as far as a later one with the same name is compared with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Least size.
    pub required: Bytes,
    /// Greatest size; zero where there was none.
    pub limit: Bytes,
    /// Everything else: parameters and source. No secrets go into it.
    pub digest: Digest,
}

/// A moment, as CSI carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub secs: i64,
    /// Nanoseconds beyond them.
    pub nanos: i32,
}

impl Timestamp {
    /// The time of day. Only ever stored and shown: nothing is decided by it, since it may jump.
    #[must_use]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            secs: i64::try_from(since.as_secs()).unwrap_or_default(),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        }
    }
}

/// The right of one node to use a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Which node.
    pub node: NodeId,
    /// It may only read.
    pub read_only: bool,
    /// As what it was asked for.
    pub mode: AccessMode,
}

impl Grant {
    /// It lets nobody write.
    #[must_use]
    pub const fn reads_only(&self) -> bool {
        self.read_only || self.mode.read_only()
    }
}

/// A record as it is stored: `lagan1 CHECKSUM JSON`, padded with spaces to one of two lengths.
///
/// # Errors
/// `Invalid` where it would be longer than a record may be.
pub fn encode(record: &impl Serialize) -> Result<Vec<u8>> {
    let text = text_of(record)?;
    let length = if text.len() <= RECORD_LENGTH { RECORD_LENGTH } else { RECORD_LIMIT };
    padded(text, length)
}

/// The same, padded to a length of the caller's.
///
/// # Errors
/// `Invalid` where it would be longer.
pub fn encode_to(record: &impl Serialize, length: usize) -> Result<Vec<u8>> {
    padded(text_of(record)?, length)
}

fn text_of(record: &impl Serialize) -> Result<Vec<u8>> {
    let json = serde_json::to_string(record)
        .map_err(|error| Error::new(ErrorKind::Broken, "encode record").because(error))?;
    Ok(format!("lagan1 {:08x} {json}", crc32c::crc32c(json.as_bytes())).into_bytes())
}

fn padded(mut text: Vec<u8>, length: usize) -> Result<Vec<u8>> {
    if text.len() > length {
        let what = format!("the record would take {} bytes of at most {length}", text.len());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    text.resize(length, b' ');
    Ok(text)
}

/// Why stored bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// Not the form of a record at all.
    #[error("not a record")]
    Form,
    /// Written by a version that this one cannot read.
    #[error("a record of a later version ({0:?})")]
    Version(String),
    /// Damaged.
    #[error("the checksum does not fit")]
    Checksum,
    /// Fields missing or of the wrong kind.
    #[error("a field is not understood")]
    Field(#[from] serde_json::Error),
}

/// Reads a record back.
///
/// # Errors
/// Whatever is wrong with it; a record is never half believed.
pub fn decode<T: DeserializeOwned>(stored: &[u8]) -> std::result::Result<T, BadRecord> {
    let text = std::str::from_utf8(stored).map_err(|_not_text| BadRecord::Form)?;
    let (version, rest) = text.split_once(' ').ok_or(BadRecord::Form)?;
    if version != "lagan1" {
        let ours = version.starts_with("lagan") && version.len() < 16;
        return Err(if ours { BadRecord::Version(version.to_owned()) } else { BadRecord::Form });
    }
    let (checksum, json) = unpadded(rest).split_once(' ').ok_or(BadRecord::Form)?;
    if checksum != format!("{:08x}", crc32c::crc32c(json.as_bytes())) {
        return Err(BadRecord::Checksum);
    }
    Ok(serde_json::from_str(json)?)
}

/// The text of a record with the checksum that it would have.
#[cfg(test)]
pub(super) fn sealed(record: &[u8]) -> Vec<u8> {
    let json = record.get(16..).unwrap_or_default().trim_ascii_end();
    [format!("lagan1 {:08x} ", crc32c::crc32c(json)).as_bytes(), json].concat()
}

/// Without the padding, which is most of a usual record: cut off in pieces, since a start does this for every volume.
fn unpadded(mut text: &str) -> &str {
    while let Some(shorter) = text.strip_suffix("                ") {
        text = shorter;
    }
    text.trim_end_matches(' ')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::id::PoolId;

    fn volume() -> Volume {
        let pool = PoolId::random();
        Volume {
            id: VolumeId::random(pool),
            name: "ein Name \u{1F4A7} with \"quotes\"  ".into(),
            size: Bytes::gib(1),
            content: Content::Filesystem(Filesystem::Xfs),
            block: false,
            source: Some(Source::Snapshot(SnapshotId::random(pool))),
            asked: Asked { required: Bytes::gib(1), limit: Bytes::ZERO, digest: Digest::of([]) },
            created: Timestamp::now(),
            grants: vec![Grant {
                node: "n1".parse().unwrap(),
                read_only: true,
                mode: AccessMode::SingleNodeMultiWriter,
            }],
        }
    }

    #[test]
    fn a_record_survives_the_round_trip() {
        let volume = volume();
        let stored = encode(&volume).unwrap();
        assert_eq!(stored.len(), RECORD_LENGTH);
        assert_eq!(decode::<Volume>(&stored).unwrap(), volume);
        let raw = Volume { content: Content::Raw, ..volume };
        assert_eq!(decode::<Volume>(&encode(&raw).unwrap()).unwrap(), raw);
    }

    #[test]
    fn the_longest_record_that_requests_can_make_fits() {
        let mut volume = volume();
        // JSON writes a quotation mark in two bytes.
        volume.name = "\"".repeat(128);
        let grant = Grant { node: "\"".repeat(128).parse().unwrap(), ..volume.grants[0].clone() };
        volume.grants = vec![grant; GRANT_LIMIT];
        let stored = encode(&volume).unwrap();
        assert_eq!(decode::<Volume>(&stored).unwrap(), volume);
        volume.grants = vec![volume.grants[0].clone(); 3 * GRANT_LIMIT];
        assert_eq!(encode(&volume).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn the_longest_group_fits() {
        let id = GroupId::random(PoolId::random());
        let group = Group {
            id,
            name: "\"".repeat(128),
            members: (0..GROUP_LIMIT).map(|_| Uuid::new_v4()).collect(),
            digest: Digest::of([]),
            created: Timestamp { secs: i64::MAX, nanos: i32::MAX },
        };
        assert_eq!(decode::<Group>(&encode(&(&group)).unwrap()).unwrap(), group);
        let member = Snapshot {
            id: SnapshotId::random(id.pool),
            name: format!("{}/{}", group.name, Uuid::new_v4().simple()),
            volume: VolumeId::random(id.pool),
            size: Bytes::MAX,
            content: Content::Raw,
            block: true,
            used: Bytes::MAX,
            created: group.created,
            group: Some(id),
        };
        assert_eq!(decode::<Snapshot>(&encode(&member).unwrap()).unwrap(), member);
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let stored = encode(&volume()).unwrap();
        let written = stored.iter().rposition(|&byte| byte != b' ').unwrap();
        for place in [8, 20, written] {
            let mut damaged = stored.clone();
            damaged[place] ^= 1;
            assert!(decode::<Volume>(&damaged).is_err(), "byte {place}");
        }
        assert!(matches!(decode::<Volume>(&stored[..100]), Err(BadRecord::Checksum)));
        assert!(matches!(decode::<Volume>(b"lagan2 x"), Err(BadRecord::Version(_))));
        assert!(matches!(decode::<Volume>(b""), Err(BadRecord::Form)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(stored in any::<Vec<u8>>()) {
            assert!(decode::<Volume>(&stored).is_err());
        }
    }

    /// Whatever is read back is written as it was read; where only the checksum is wrong it is made right, so that what
    /// lies behind it is tried, too.
    #[test]
    fn hostile_input() {
        fn check<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(stored: &[u8]) {
            if let Ok(record) = decode::<T>(stored)
                && let Ok(written) = encode(&record)
            {
                assert_eq!(decode::<T>(&written).unwrap(), record);
            }
        }
        let samples = [encode(&volume()).unwrap(), encode(&Volume { source: None, ..volume() }).unwrap()];
        let samples: Vec<_> = samples.iter().map(|sample| sample.trim_ascii_end()).collect();
        crate::hostile::feed("records", &samples, |input| {
            for stored in [input.to_vec(), sealed(input)] {
                check::<Volume>(&stored);
                check::<Snapshot>(&stored);
                check::<Group>(&stored);
            }
        });
    }
}
