//! What ails a volume, or the storage of this node, as far as this node can see.

use super::Node;
use crate::{
    error::{Chain, ErrorKind, Result},
    id::VolumeId,
    pool::{Severity, Trouble, fill::Fill, record::Grant},
    sys::kernel::{Attributes, Seen},
};

/// What ails one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Illness {
    /// Empty for a healthy one.
    pub troubles: Vec<Trouble>,
}

/// What ails the node's storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageIllness {
    /// The pool, by name.
    pub pool: String,
    /// How bad; `DataLoss` is not among the answers for a pool.
    pub severity: Severity,
    /// One word in CamelCase, stable, for programs.
    pub reason: &'static str,
    /// The same for people.
    pub message: String,
}

impl Node {
    /// Examines a volume; paths are looked at where the caller knows some. Works for a volume whose stage or publish
    /// failed, too.
    ///
    /// # Errors
    /// `NotFound` for an unknown volume. An error is no statement about health.
    pub async fn examine(&self, id: VolumeId, paths: &[&str]) -> Result<Illness> {
        let found = self.find(id).await?;
        let mut troubles = found.pool.examine(&found.volume).await?;
        for path in paths.iter().filter(|path| !path.is_empty()) {
            let Ok(at) = self.kernel.locate(path) else { continue };
            match self.look(&at).await {
                Err(error) => troubles.push(Trouble {
                    severity: Severity::Inaccessible,
                    reason: "PathUnreadable",
                    message: Chain(&error).to_string(),
                }),
                Ok(Seen::Mount(mount)) if !found.numbers().contains(&mount.device) => {
                    troubles.push(Trouble {
                        severity: Severity::Inaccessible,
                        reason: "WrongDeviceMounted",
                        message: format!(
                            "{at} has device {} mounted, which is not this volume",
                            mount.device
                        ),
                    })
                }
                Ok(_) => {}
            }
        }
        // A publish may be read-only because it was asked for so; a stage of one who may write is not.
        if !self.grant_reads_only(&found.volume) {
            for (at, stage) in self.stages(&found).await? {
                if stage.attributes.contains(Attributes::READ_ONLY) {
                    troubles.push(Trouble {
                        severity: Severity::Degraded,
                        reason: "MountedReadOnly",
                        message: format!("{at} is read-only: the kernel stopped writes after an error"),
                    });
                }
            }
        }
        if let (Some(filesystem), Some(attached)) = (found.volume.content.filesystem(), found.writable()) {
            let device = attached.device.number;
            let errors = self.ask(move |kernel| Ok(kernel.recorded_errors(filesystem, device))).await?;
            if errors > 0 {
                troubles.push(Trouble {
                    severity: Severity::Degraded,
                    reason: "FilesystemErrors",
                    message: format!("the {filesystem} has recorded {errors} errors"),
                });
            }
        }
        Ok(Illness { troubles })
    }

    fn grant_reads_only(&self, volume: &crate::pool::record::Volume) -> bool {
        self.grant(volume).is_ok_and(Grant::reads_only)
    }

    /// Examines every pool of this node.
    pub async fn storage_health(&self) -> Vec<StorageIllness> {
        let mut found = Vec::new();
        for (name, pool) in self.pools.all().await {
            let pool = match pool {
                Ok(pool) => pool,
                Err(error) => {
                    found.push(unreachable(name.as_str(), &error));
                    continue;
                }
            };
            match pool.fills().await {
                Ok(fills) => {
                    found.extend(fills.iter().filter_map(Fill::trouble).map(|trouble| StorageIllness {
                        pool: name.to_string(),
                        severity: trouble.severity,
                        reason: trouble.reason,
                        message: format!("pool {name}: {}", trouble.message),
                    }));
                }
                Err(error) => found.push(unreachable(name.as_str(), &error)),
            }
        }
        found
    }
}

fn unreachable(pool: &str, error: &crate::error::Error) -> StorageIllness {
    let reason = if error.kind() == ErrorKind::Unavailable { "PoolUnavailable" } else { "PoolFailing" };
    let message = Chain(error).to_string();
    StorageIllness { pool: pool.to_owned(), severity: Severity::Inaccessible, reason, message }
}
