//! The accountant: every object of ours in the kernel and on disk against the records, both ways. Pure: it is given
//! what there is, and says what does not add up.

use std::collections::HashMap;

use uuid::Uuid;

use crate::{
    id::{GroupId, SnapshotId},
    pool::{
        Attached, Listing,
        record::{Group, Snapshot, Volume},
    },
};

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
    findings.extend(facts.listing.leftovers.iter().cloned());
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
    findings.extend(audit_groups(&facts.listing));
    findings.extend(facts.troubles.iter().map(|(volume, what)| format!("volume {volume}: {what}")));
    findings.sort();
    findings
}

/// Groups against their snapshots, both ways.
fn audit_groups(listing: &Listing) -> Vec<String> {
    let mut findings = Vec::new();
    let snapshots: HashMap<SnapshotId, &Snapshot> =
        listing.snapshots.iter().map(|snapshot| (snapshot.id, snapshot)).collect();
    let groups: HashMap<GroupId, &Group> = listing.groups.iter().map(|group| (group.id, group)).collect();
    for group in &listing.groups {
        for member in group.snapshots() {
            match snapshots.get(&member) {
                None => findings.push(format!("group {}: its snapshot {member} is missing", group.id)),
                Some(snapshot) if snapshot.group != Some(group.id) => {
                    findings.push(format!("group {}: {member} does not say that it is in it", group.id));
                }
                Some(_) => {}
            }
        }
    }
    for snapshot in &listing.snapshots {
        let Some(id) = snapshot.group else { continue };
        match groups.get(&id) {
            None => findings.push(format!("snapshot {}: its group {id} is missing", snapshot.id)),
            Some(group) if !group.members.contains(&snapshot.id.uuid) => {
                findings.push(format!("snapshot {}: its group {id} does not know it", snapshot.id));
            }
            Some(_) => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bytes::Bytes,
        digest::Digest,
        id::{PoolId, VolumeId},
        pool::record::{Content, Timestamp},
    };

    #[test]
    fn a_group_and_its_snapshots_know_one_another() {
        let pool = PoolId::random();
        let created = Timestamp::now();
        let id = GroupId::random(pool);
        let member = || Snapshot {
            id: SnapshotId::random(pool),
            name: "g/v".into(),
            volume: VolumeId::random(pool),
            size: Bytes::gib(1),
            content: Content::Raw,
            block: true,
            used: Bytes::ZERO,
            created,
            group: Some(id),
        };
        let (a, b) = (member(), member());
        let members = vec![a.id.uuid, b.id.uuid];
        let group = Group { id, name: "g".into(), members, digest: Digest::of([]), created };
        let found = |snapshots: &[&Snapshot], groups: &[&Group]| {
            let snapshots = snapshots.iter().map(|&snapshot| snapshot.clone()).collect();
            let groups = groups.iter().map(|&group| group.clone()).collect();
            audit(&Facts { listing: Listing { snapshots, groups, ..Listing::default() }, ..Facts::default() })
        };
        assert!(found(&[&a, &b], &[&group]).is_empty());
        assert_eq!(found(&[&a], &[&group]), [format!("group {id}: its snapshot {} is missing", b.id)]);
        let missing = |of: &Snapshot| format!("snapshot {}: its group {id} is missing", of.id);
        let mut both = [missing(&a), missing(&b)];
        both.sort();
        assert_eq!(found(&[&a, &b], &[]), both);
        let alone = Snapshot { group: None, ..a.clone() };
        assert_eq!(found(&[&alone, &b], &[&group]).len(), 1);
        let smaller = Group { members: vec![a.id.uuid], ..group };
        assert_eq!(found(&[&a, &b], &[&smaller]).len(), 1);
    }
}
