//! The accountant: every object of ours in the kernel and on disk against the records, both ways. Pure: it is given
//! what there is, and says what does not add up.

use std::collections::HashMap;

use uuid::Uuid;

use crate::pool::{Attached, Listing, record::Volume};

/// What there is in one pool.
#[derive(Debug, Default)]
pub struct Facts {
    /// Records, and what has none.
    pub listing: Listing,
    /// Devices that stand for objects of the pool, and in how many places each is mounted.
    pub devices: Vec<(Uuid, Attached, usize)>,
    /// What the pool itself has against a volume.
    pub troubles: Vec<(String, String)>,
}

/// Everything that does not add up, one line each; empty when all does.
#[must_use]
pub fn audit(facts: &Facts) -> Vec<String> {
    let mut findings = Vec::new();
    findings.extend(facts.listing.damaged.iter().map(|what| format!("a record cannot be read: {what}")));
    findings.extend(facts.listing.strangers.iter().map(|what| format!("no record belongs to {what}")));
    let volumes: HashMap<Uuid, &Volume> =
        facts.listing.volumes.iter().map(|volume| (volume.id.uuid, volume)).collect();
    for (uuid, attached, mounts) in &facts.devices {
        let device = attached.device.path.display();
        let mut report = |what: &str| findings.push(format!("{device}: {what}"));
        match volumes.get(uuid) {
            None => report(&format!("stands for {}, which has no record", uuid.simple())),
            Some(volume) if volume.grants.is_empty() => {
                report(&format!("stands for volume {}, which is published to no node", volume.id));
            }
            Some(volume) if attached.device.size != volume.size => {
                report(&format!(
                    "has {}, but volume {} has {}",
                    attached.device.size, volume.id, volume.size
                ));
            }
            Some(_) => {}
        }
        if attached.label.is_empty() {
            report("was not attached by Lagan");
        } else if attached.label.starts_with("fs:") && *mounts == 0 {
            report("was attached for a filesystem that is mounted nowhere below target_roots");
        } else if attached.label == "ro" && *mounts == 0 {
            report("is a read-only face without a publish");
        }
    }
    let mut names: HashMap<&str, &Volume> = HashMap::new();
    for volume in &facts.listing.volumes {
        if let Some(other) = names.insert(&volume.name, volume) {
            findings.push(format!("volumes {} and {} have one name, {:?}", other.id, volume.id, volume.name));
        }
    }
    findings.extend(facts.troubles.iter().map(|(volume, what)| format!("volume {volume}: {what}")));
    findings.sort();
    findings
}
