//! How a volume is to be used: as a filesystem or a raw device, by whom, with which mount flags. As requests carry
//! it, once checked for form.

use serde::{Deserialize, Serialize};

use crate::filesystem::Filesystem;

/// A way of using a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As what.
    pub access: Access,
    /// By whom.
    pub mode: AccessMode,
}

/// As what a volume is used.
#[derive(Clone, PartialEq, Eq)]
pub enum Access {
    /// A raw block device.
    Block,
    /// A mounted filesystem.
    Mount {
        /// Which one; `None` leaves it to the volume.
        filesystem: Option<Filesystem>,
        /// Mount flags as they came. They may hold secrets, so they are never printed.
        flags: Vec<String>,
    },
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block => f.write_str("Block"),
            Self::Mount { filesystem, flags } => write!(f, "Mount({filesystem:?}, {} flags)", flags.len()),
        }
    }
}

/// Access modes of CSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    /// One node, read and write, any number of publishes.
    SingleNodeWriter,
    /// One node, reading.
    SingleNodeReaderOnly,
    /// Many nodes, reading.
    MultiNodeReaderOnly,
    /// Many nodes, one of them writing.
    MultiNodeSingleWriter,
    /// Many nodes, all writing.
    MultiNodeMultiWriter,
    /// One node, one publish.
    SingleNodeSingleWriter,
    /// One node, any number of publishes.
    SingleNodeMultiWriter,
}

impl AccessMode {
    /// Nobody writes.
    #[must_use]
    pub const fn read_only(self) -> bool {
        matches!(self, Self::SingleNodeReaderOnly | Self::MultiNodeReaderOnly)
    }

    /// More than one node may write at a time, or one beside readers on others: what a volume that only its own
    /// host reaches cannot promise.
    #[must_use]
    pub const fn writes_across_nodes(self) -> bool {
        matches!(self, Self::MultiNodeSingleWriter | Self::MultiNodeMultiWriter)
    }
}
