//! Which hosts a new volume may be put on, and in what order they are asked: what the request prefers, then by a hash of its
//! name and theirs (rendezvous hashing), so that two routers, and a retry, ask the same ones first.

use std::cmp::Reverse;

use super::view::{Host, View};
use crate::{digest::Digest, error::Result, id::NodeId, proto::TopologyRequirement};

/// The hosts that a request allows, the first to be asked first. Those that do not answer are among them.
pub(super) fn order<'v>(
    view: &'v View,
    requirement: Option<&TopologyRequirement>,
    default_host: Option<&NodeId>,
    name: &str,
) -> Result<Vec<&'v Host>> {
    let places = requirement.map(|requirement| (&requirement.requisite, &requirement.preferred));
    let named = places.is_some_and(|(requisite, preferred)| !(requisite.is_empty() && preferred.is_empty()));
    let mut allowed: Vec<&Host> = match default_host.filter(|_| !named) {
        Some(default) => view.hosts().iter().filter(|host| host.node == *default).collect(),
        None => view.hosts().iter().filter(|host| host.topology.meets(requirement)).collect(),
    };
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
