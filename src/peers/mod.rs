//! The other processes of a cluster: who they are, and how each proves it. A name and a role stand in a certificate
//! (one DNS name in it); there is no connection without one, and none that is not TLS 1.3.

use std::{fmt, str::FromStr};

use rustls::pki_types::DnsName;

use crate::{
    digest::Digest,
    id::{BadId, NodeId},
};

mod admitted;
pub mod certs;
mod connect;
mod credentials;
mod listener;

pub use admitted::Admitted;
pub use connect::{Seen, connect};
pub use credentials::{Credentials, Role};
pub(crate) use listener::PAUSE;
pub use listener::{PeerStream, incoming};

/// What stands behind a host's name in its certificate.
const HOST: &str = ".host.lagan";
/// What a router's certificate says.
const ROUTER: &str = "router.lagan";

/// A host as certificates name it: its node id where that is a DNS name in lower case, else a stable form that is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    /// The name of the host with this node id.
    #[must_use]
    pub fn of(node: &NodeId) -> Self {
        let text = node.as_str();
        text.parse().unwrap_or_else(|_| Self(format!("h-{}", Digest::of([text.as_bytes()]).short())))
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let plain = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
        let valid = plain && DnsName::try_from(format!("{text}{HOST}")).is_ok();
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadId::new(text, "a host's name in a certificate"))
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A router: it may make controller calls on every host.
    Router,
    /// A host: on another one it may do what that one's configuration lets it.
    Host(HostName),
}

impl Peer {
    /// The DNS name in the certificate.
    #[must_use]
    pub fn dns_name(&self) -> String {
        match self {
            Self::Router => ROUTER.to_owned(),
            Self::Host(name) => format!("{name}{HOST}"),
        }
    }

    /// Whom one DNS name of a certificate names; `None` for one that means nothing here.
    fn named(name: &str) -> Option<Self> {
        if name == ROUTER {
            return Some(Self::Router);
        }
        name.strip_suffix(HOST)?.parse().ok().map(Self::Host)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router => f.write_str("a router"),
            Self::Host(name) => write!(f, "host {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_a_host_or_a_router() {
        let host = |name: &str| Some(Peer::Host(name.parse().unwrap()));
        assert_eq!(Peer::named("router.lagan"), Some(Peer::Router));
        assert_eq!(Peer::named("n1.host.lagan"), host("n1"));
        assert_eq!(Peer::named("n1.example.org.host.lagan"), host("n1.example.org"));
        // A host that is called so is no router.
        assert_eq!(Peer::named("router.host.lagan"), host("router"));
        assert_eq!(Peer::named("router.lagan.host.lagan"), host("router.lagan"));
        for other in
            ["", "n1", ".host.lagan", "*.host.lagan", "N1.host.lagan", "host.lagan", "x.router.lagan"]
        {
            assert_eq!(Peer::named(other), None, "{other}");
        }
    }

    #[test]
    fn every_node_has_a_name_of_its_own() {
        let name = |text: &str| HostName::of(&text.parse().unwrap()).to_string();
        assert_eq!(name("node-1.example.org"), "node-1.example.org");
        for odd in ["N1", "a b", "a..b", "ü", "-x", "x.", &"n".repeat(64), &"n".repeat(128)] {
            assert!(name(odd).starts_with("h-"), "{odd}");
        }
        assert_ne!(name("N1"), name("n1"));
        assert_ne!(name("A b"), name("a b"));
    }
}
