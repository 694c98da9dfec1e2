//! The table `[cluster]`: who the other hosts are, and how this process shows them who it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
};

use toml::Value;

use super::{Mode, reader::Reader};
use crate::id::NodeId;

/// Where hosts listen unless the configuration says otherwise.
const PORT: u16 = 9735;

/// This process among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Directory of the certificates.
    pub certificates: PathBuf,
    /// Where a host is reached by others; `None` for nowhere.
    pub listen: Option<SocketAddr>,
    /// Hosts and their addresses; an empty one for a host that is found behind the name for all.
    pub hosts: BTreeMap<NodeId, String>,
    /// A name behind which every address is that of a host, with the port.
    pub dns: Option<String>,
    /// Hosts that may make controller calls here, besides routers.
    pub callers: BTreeSet<NodeId>,
    /// Where a volume goes whose request names no topology.
    pub default_host: Option<NodeId>,
    /// A new volume goes to the first place that its request prefers, or nowhere.
    pub first_only: bool,
    /// Hosts that are lost for good.
    pub forgotten_hosts: BTreeSet<NodeId>,
}

impl Cluster {
    /// Calls for other hosts are passed on.
    #[must_use]
    pub fn passes_on(&self) -> bool {
        !self.hosts.is_empty() || self.dns.is_some()
    }
}

/// Reads the table; `None` where there is none, or beside a problem.
pub(super) fn read(reader: &mut Reader, mode: Mode) -> Option<Cluster> {
    let table = match reader.table.remove("cluster") {
        Some(Value::Table(table)) => table,
        Some(_) => {
            reader.problem("cluster", "must be a table");
            return None;
        }
        None => {
            if mode == Mode::Router {
                reader.problem("cluster", "is missing: a router has to know its hosts");
            }
            return None;
        }
    };
    let mut inner = Reader::new(table, "cluster.");
    let cluster = read_inner(&mut inner, mode);
    reader.problems.extend(inner.finish());
    cluster
}

fn read_inner(reader: &mut Reader, mode: Mode) -> Option<Cluster> {
    let certificates = reader.required("certificates").map(|path| reader.absolute("certificates", path));
    let listen = reader.optional("listen");
    let listen = listen.and_then(|address| reader.parsed("listen", &address));
    if mode == Mode::Router && listen.is_some() {
        reader.problem("listen", "a router is not called by hosts: orchestrators reach it by its endpoint");
    }
    let hosts = read_hosts(reader);
    let dns = reader.optional("dns").and_then(|name| with_port(reader, "dns", &name));
    if mode == Mode::Router && hosts.is_empty() && dns.is_none() {
        reader.problem("hosts", "name them in [cluster.hosts], or by a `dns` name");
    }
    for (node, _) in hosts.iter().filter(|(_, address)| address.is_empty() && dns.is_none()) {
        reader.problem(&format!("hosts.{node}"), "has no address, and there is no `dns` to find it by");
    }
    let callers = node_ids(reader, "callers");
    let default_host = reader.optional("default_host");
    let default_host = default_host.and_then(|node| reader.parsed("default_host", &node));
    let first_only = reader.flag("first_only");
    let forgotten_hosts = node_ids(reader, "forgotten_hosts");
    let certificates = certificates?;
    Some(Cluster { certificates, listen, hosts, dns, callers, default_host, first_only, forgotten_hosts })
}

fn node_ids(reader: &mut Reader, key: &str) -> BTreeSet<NodeId> {
    let texts = reader.list(key).unwrap_or_default();
    texts.iter().filter_map(|text| reader.parsed(key, text)).collect()
}

fn read_hosts(reader: &mut Reader) -> BTreeMap<NodeId, String> {
    let table = match reader.table.remove("hosts") {
        None => return BTreeMap::new(),
        Some(Value::Table(table)) => table,
        Some(_) => {
            reader.problem("hosts", "must be a table of names and addresses");
            return BTreeMap::new();
        }
    };
    let mut hosts = BTreeMap::new();
    for (name, address) in table {
        let key = format!("hosts.{name}");
        let node = reader.parsed(&key, &name);
        let address = match address {
            Value::String(address) if address.is_empty() => Some(address),
            Value::String(address) => with_port(reader, &key, &address),
            _ => {
                reader.problem(&key, "must be an address, such as \"10.0.0.1:9735\"");
                None
            }
        };
        hosts.extend(node.zip(address));
    }
    hosts
}

/// An address with its port, ours where it names none.
fn with_port(reader: &mut Reader, key: &str, address: &str) -> Option<String> {
    let port = address.rsplit_once(':').map(|(_, port)| port);
    match port.map(str::parse::<u16>) {
        // A bare IPv6 address ends like one with a port: it has to be told with its own.
        Some(Ok(_)) => Some(address.to_owned()),
        None if !address.is_empty() => Some(format!("{address}:{PORT}")),
        _ => {
            reader.problem(key, &format!("{address:?} is no address with a port"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, parse};

    const HEAD: &str = "node_id = 'n1'\nmachine_id = 'm'\n[cluster]\n";

    fn cluster(text: &str, mode: Mode) -> Result<Cluster, Vec<String>> {
        let parsed = parse(&format!("{HEAD}{text}"), mode, &Overrides::default());
        parsed.map(|config| config.cluster.unwrap()).map_err(|problems| problems.0)
    }

    #[test]
    fn hosts_by_list_and_by_name() {
        let text = "certificates = '/c'\ndns = 'hosts.lagan.svc'\ndefault_host = 'n2'\nforgotten_hosts = ['n3']\n\
                    [cluster.hosts]\nn1 = '10.0.0.1:1'\n'n2.example.org' = 'n2.example.org'\nn4 = ''";
        let found = cluster(text, Mode::Router).unwrap();
        assert_eq!(found.dns.as_deref(), Some("hosts.lagan.svc:9735"));
        assert_eq!(found.hosts.values().collect::<Vec<_>>(), ["10.0.0.1:1", "n2.example.org:9735", ""]);
        assert!(found.passes_on() && found.listen.is_none());
        let host =
            cluster("certificates = '/c'\nlisten = '0.0.0.0:9735'\ncallers = ['n2']", Mode::All).unwrap();
        assert!(!host.passes_on());
    }

    #[test]
    fn every_key_is_documented() {
        let page = include_str!("../../docs/configuration.md");
        let page = page.split("## Other hosts").nth(1).unwrap().split("## Per start").next().unwrap();
        let documented: Vec<_> =
            page.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
        let all = "certificates = '/c'\nlisten = '0.0.0.0:9735'\ncallers = ['n2']\ndns = 'x:1'\ndefault_host = 'n2'\n\
                   first_only = true\nforgotten_hosts = ['n3']";
        assert!(cluster(all, Mode::All).is_ok());
        let known: Vec<_> = all.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
        assert_eq!(documented, known);
    }

    #[test]
    fn what_cannot_be() {
        for (text, mode, expected) in [
            ("certificates = '/c'", Mode::Router, "cluster.hosts: name them"),
            ("dns = 'x'", Mode::Router, "cluster.certificates: is missing"),
            ("certificates = 'c'\ndns = 'x'", Mode::Router, "absolute path"),
            ("certificates = '/c'\ndns = 'x:y'", Mode::Router, "no address with a port"),
            (
                "certificates = '/c'\ndns = 'x'\nlisten = '0.0.0.0:1'",
                Mode::Router,
                "cluster.listen: a router",
            ),
            ("certificates = '/c'\n[cluster.hosts]\nn1 = ''", Mode::Router, "hosts.n1: has no address"),
            ("certificates = '/c'\nhosts = 1", Mode::All, "must be a table of names"),
            ("certificates = '/c'\nextra = 1", Mode::All, "cluster.extra: is not a known key"),
            ("certificates = '/c'\ncallers = ['']", Mode::All, "cluster.callers"),
            ("certificates = '/c'\ndns = 'x'\n[[pool]]", Mode::Router, "a router owns no storage"),
        ] {
            let problems = cluster(text, mode).unwrap_err();
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
        }
        assert!(parse("", Mode::Router, &Overrides::default()).is_err(), "a router without a cluster");
    }
}
