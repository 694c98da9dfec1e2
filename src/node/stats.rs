//! How full a volume is, as its user sees it.

use super::Node;
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    id::VolumeId,
    sys::kernel::{Seen, Usage},
};

pub use crate::sys::kernel::Amounts;

/// How full a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeUsage {
    /// Of a mounted filesystem all is known.
    Filesystem(Usage),
    /// Of a raw device only its length: what is on it is its user's business.
    Block(Bytes),
}

impl Node {
    /// Measures a volume at one of its paths.
    ///
    /// # Errors
    /// `NotFound` where the volume is unknown, or neither staged nor published at the path.
    pub async fn usage(&self, id: VolumeId, path: &str) -> Result<VolumeUsage> {
        let not_here = || {
            Error::new(ErrorKind::NotFound, format!("volume {id} is neither staged nor published at {path}"))
        };
        let found = self.find(id).await?;
        let at = self.kernel.locate(path).map_err(|bad| not_here().because(bad))?;
        match self.look(&at).await? {
            Seen::Mount(mount) if found.numbers().contains(&mount.device) => {
                if mount.block {
                    return Ok(VolumeUsage::Block(found.volume.size));
                }
                let usage =
                    self.ask(move |kernel| kernel.usage(&at).doing(|| format!("measure {at}"))).await?;
                Ok(VolumeUsage::Filesystem(usage))
            }
            // A raw volume is staged without a mount.
            Seen::Directory
                if found.writable().is_some_and(|attached| attached.label == super::label::BLOCK) =>
            {
                Ok(VolumeUsage::Block(found.volume.size))
            }
            _ => Err(not_here()),
        }
    }
}
