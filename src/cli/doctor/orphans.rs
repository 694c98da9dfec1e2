//! What stands alone: volumes and snapshots that the orchestrator has no object for, and objects whose volume is nowhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{Finding, Verdict, finding};
use crate::{
    error::{Doing, Result},
    id::{NodeId, PoolId, SnapshotId, VolumeId},
    router::View,
};

/// What the hosts have, as they told it.
#[derive(Default)]
pub(super) struct Held {
    /// Each id, with its host.
    pub(super) ids: BTreeMap<String, NodeId>,
    /// Hosts that told nothing: what they have is not known.
    pub(super) silent: BTreeSet<NodeId>,
}

/// Ids that the orchestrator knows, one a line; `-` is standard input.
pub(super) fn read(file: &Path) -> Result<BTreeSet<String>> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.doing(|| format!("read {}", file.display()))?;
    Ok(text.split_whitespace().map(ToOwned::to_owned).collect())
}

/// Compares both sides. Snapshots only where the orchestrator named any: it may have been asked for volumes alone.
pub(super) fn judge(view: &View, held: &Held, known: &BTreeSet<String>) -> Vec<Finding> {
    let snapshots = known.iter().any(|id| id.parse::<SnapshotId>().is_ok());
    let unknown = held
        .ids
        .iter()
        .filter(|(id, _)| !known.contains(*id) && (snapshots || id.parse::<SnapshotId>().is_err()))
        .map(|(id, host)| {
            let what = format!(
                "is on host {host}, and nothing of the orchestrator stands for it; nobody deletes it"
            );
            finding(Verdict::Warning, id, what)
        });
    let missing =
        known.iter().filter(|id| !held.ids.contains_key(*id)).filter_map(|id| why_missing(view, held, id));
    let findings: Vec<_> = unknown.chain(missing).collect();
    if findings.is_empty() && held.silent.is_empty() && view.check_complete().is_ok() {
        let what = format!("{} ids, each on both sides", known.len());
        return vec![finding(Verdict::Well, "orchestrator", what)];
    }
    findings
}

/// `None` where its host did not tell what it has.
fn why_missing(view: &View, held: &Held, id: &str) -> Option<Finding> {
    let pool = id.parse::<VolumeId>().map(|id| id.pool);
    let Ok(pool): Result<PoolId, _> = pool.or_else(|_| id.parse::<SnapshotId>().map(|id| id.pool)) else {
        return Some(finding(Verdict::Warning, id, "is no id of a volume or snapshot of ours"));
    };
    let what = match view.owner(pool) {
        // Told once for all of the pool.
        Err(_disputed) => return None,
        Ok(Some(host)) if held.silent.contains(&host.node) => return None,
        Ok(Some(host)) => format!("the orchestrator has it; host {}, which has its pool, has not", host.node),
        // It may be that of a host that was never met.
        Ok(None) if view.check_complete().is_err() => return None,
        Ok(None) => "the orchestrator has it; no host has its pool".to_owned(),
    };
    Some(finding(Verdict::Failure, id, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_said() {
        let pool = PoolId::random();
        let [here, there, gone] = [(); 3].map(|()| VolumeId::random(pool).to_string());
        let cut = SnapshotId::random(pool).to_string();
        let host: NodeId = "n1".parse().unwrap();
        let held = Held {
            ids: [&here, &there, &cut].map(|id| (id.clone(), host.clone())).into(),
            ..Held::default()
        };
        let known = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>();
        let told = |ids: &[&String]| {
            let findings = judge(&View::default(), &held, &known(ids));
            findings.into_iter().map(|it| (it.subject, it.verdict)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[&here, &there]), [("orchestrator".to_owned(), Verdict::Well)]);
        assert_eq!(told(&[&here]), [(there.clone(), Verdict::Warning)]);
        // It was asked for snapshots as well.
        let other = SnapshotId::random(pool).to_string();
        let both = told(&[&here, &there, &other]);
        assert!(both.contains(&(cut.clone(), Verdict::Warning)) && both.contains(&(other, Verdict::Failure)));
        assert_eq!(told(&[&here, &there, &gone]), [(gone.clone(), Verdict::Failure)]);
        assert_eq!(told(&[&here, &there, &"pvc-1".to_owned()])[0].1, Verdict::Warning);
    }
}
