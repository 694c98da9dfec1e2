//! Where volumes can be reached: one host, so one segment.

use std::collections::BTreeMap;

use crate::{digest::Digest, id::NodeId, proto};

/// Longest value of a segment (that of a Kubernetes label), in bytes.
const VALUE_LIMIT: usize = 63;

/// The segment of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    key: String,
    value: String,
}

impl Topology {
    /// The segment of `node` under a driver's name.
    #[must_use]
    pub fn new(driver_name: &str, node: &NodeId) -> Self {
        Self { key: format!("{driver_name}/host"), value: value_of(node) }
    }

    /// The key of a driver's name, and no host.
    #[must_use]
    pub fn anywhere(driver_name: &str) -> Self {
        Self { key: format!("{driver_name}/host"), value: String::new() }
    }

    /// As volumes, snapshots and the node report it.
    #[must_use]
    pub fn accessible(&self) -> proto::Topology {
        proto::Topology { segments: BTreeMap::from([(self.key.clone(), self.value.clone())]) }
    }

    /// Whether one of the places is this host, or says nothing of hosts.
    pub(crate) fn includes(&self, place: &proto::Topology) -> bool {
        // Keys are compared without regard to case (specification, Topology).
        let mut segments = place.segments.iter();
        segments
            .find(|(key, _)| key.eq_ignore_ascii_case(&self.key))
            .is_none_or(|(_, value)| *value == self.value)
    }

    /// Whether a requirement can be met here.
    pub(crate) fn meets(&self, requirement: Option<&proto::TopologyRequirement>) -> bool {
        requirement.is_none_or(|requirement| {
            requirement.requisite.is_empty() || requirement.requisite.iter().any(|place| self.includes(place))
        })
    }

    /// Whether a place that is asked about is this host.
    pub(crate) fn is_at(&self, place: Option<&proto::Topology>) -> bool {
        place.is_none_or(|place| self.includes(place))
    }
}

/// A node id where it is legal as a segment's value, else a stable form of it that is.
fn value_of(node: &NodeId) -> String {
    let text = node.as_str();
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = [text.bytes().next(), text.bytes().last()];
    let legal = text.len() <= VALUE_LIMIT
        && text.bytes().all(inner)
        && ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()));
    if legal { text.to_owned() } else { format!("h-{}", Digest::of([text.as_bytes()]).short()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_always_legal() {
        let value = |text: &str| value_of(&text.parse().unwrap());
        assert_eq!(value("node-1.example.org"), "node-1.example.org");
        for odd in ["-x", "x.", "a b", "ü", &"n".repeat(64), &"n".repeat(128)] {
            let value = value(odd);
            assert!(value.len() <= VALUE_LIMIT && value.starts_with("h-"), "{odd} → {value}");
        }
        assert_ne!(value("a b"), value("a c"));
    }

    #[test]
    fn requirements() {
        let here = Topology::new("lagan.csi", &"n1".parse().unwrap());
        let at = |key: &str, value: &str| proto::Topology { segments: [(key.into(), value.into())].into() };
        let needs = |requisite| proto::TopologyRequirement { requisite, preferred: Vec::new() };
        assert!(here.meets(None));
        assert!(here.meets(Some(&needs(vec![]))));
        assert!(here.meets(Some(&needs(vec![at("lagan.csi/host", "n2"), at("LAGAN.CSI/host", "n1")]))));
        assert!(here.meets(Some(&needs(vec![at("zone", "z")]))));
        assert!(!here.meets(Some(&needs(vec![at("lagan.csi/host", "n2")]))));
        assert_eq!(here.accessible(), at("lagan.csi/host", "n1"));
    }
}
