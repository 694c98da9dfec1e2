//! Which hosts a new volume may be put on, and in what order they are asked: what the request prefers, then by a hash of its
//! name and theirs (rendezvous hashing), so that two routers, and a retry, ask the same ones first.

use std::cmp::Reverse;

use super::view::{Host, View};
use crate::{digest::Digest, error::Result, id::NodeId, proto::TopologyRequirement};

/// Where new volumes go, beside what their requests say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placing {
    /// Those whose request names no place.
    pub default_host: Option<NodeId>,
    /// The first place that a request prefers is the only one, except for copies, which lie where their source is.
    pub first_only: bool,
}

/// The hosts that a request allows, the first to be asked first. Those that do not answer are among them.
pub(super) fn order<'v>(
    view: &'v View,
    requirement: Option<&TopologyRequirement>,
    placing: &Placing,
    name: &str,
) -> Result<Vec<&'v Host>> {
    let places = requirement.map(|requirement| (&requirement.requisite, &requirement.preferred));
    let named = places.is_some_and(|(requisite, preferred)| !(requisite.is_empty() && preferred.is_empty()));
    let mut allowed: Vec<&Host> = match placing.default_host.as_ref().filter(|_| !named) {
        Some(default) => view.hosts().iter().filter(|host| host.node == *default).collect(),
        None => view.hosts().iter().filter(|host| host.topology.meets(requirement)).collect(),
    };
    if let Some(first) = places.and_then(|(_, preferred)| preferred.first()).filter(|_| placing.first_only) {
        allowed.retain(|host| host.topology.includes(first));
    }
    if allowed.is_empty() {
        // It may be that of a host which has not been met yet.
        view.check_complete()?;
    }
    allowed.sort_by_cached_key(|host| {
        let mut preferred = places.iter().flat_map(|(_, preferred)| preferred.iter());
        let rank = preferred.position(|place| host.topology.includes(place)).unwrap_or(usize::MAX);
        (rank, Reverse(Digest::of([name.as_bytes(), host.node.as_str().as_bytes()]).to_string()))
    });
    Ok(allowed)
}
