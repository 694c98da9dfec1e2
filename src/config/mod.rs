//! Settings: one TOML file, every key with its default, unknown keys refused, all problems told together.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use toml::Table;

use crate::{
    id::{NodeId, PoolId},
    server::Endpoint,
    sys::host,
};

mod cluster;
mod pools;
mod reader;

pub use cluster::Cluster;
pub use pools::{Place, PoolConfig, is_lvm_name};

use pools::{default_pool_in, no_pools, read_pools};
use reader::Reader;

/// Which services a process offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// The controller and the node.
    All,
    /// Only the controller.
    Controller,
    /// Only the node.
    Node,
    /// A controller without pools, which passes calls on to the hosts that have them.
    Router,
}

impl Mode {
    /// The controller is among them.
    #[must_use]
    pub const fn controller(self) -> bool {
        matches!(self, Self::All | Self::Controller)
    }

    /// The pools of this host are used.
    #[must_use]
    pub const fn pools(self) -> bool {
        !matches!(self, Self::Router)
    }

    /// The node is among them.
    #[must_use]
    pub const fn node(self) -> bool {
        matches!(self, Self::All | Self::Node)
    }
}

/// Everything that can be set. docs/configuration.md has a line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the driver.
    pub driver_name: String,
    /// Name of this node.
    pub node_id: NodeId,
    /// Where the default pool and the hints are.
    pub state_dir: PathBuf,
    /// Where the CSI services listen.
    pub endpoint: Endpoint,
    /// The directory where kubelet looks for plugins, and the endpoint's path as it sees it; `None` where none is to be told.
    pub kubelet: Option<(PathBuf, PathBuf)>,
    /// Where health and metrics are served over HTTP; `None` for nowhere.
    pub http: Option<SocketAddr>,
    /// Staging and target paths must lie below one of these.
    pub target_roots: Vec<PathBuf>,
    /// Most volumes that this node takes; 0 leaves it to the orchestrator.
    pub max_volumes_per_node: u32,
    /// Most operations at a time.
    pub max_operations: u32,
    /// Set-user-id programs on volumes work.
    pub allow_suid: bool,
    /// Pools that are lost for good: what was in them counts as gone.
    pub forgotten_pools: Vec<PoolId>,
    /// The other hosts; `None` where this one is alone.
    pub cluster: Option<Cluster>,
    /// Which machine we are.
    pub machine_id: String,
    /// The pools.
    pub pools: Vec<PoolConfig>,
    /// The one pool is the built-in default: it is made at the first start.
    pub default_pool: bool,
}

/// What is given at each start, over what the file says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The endpoint, from the command line or `CSI_ENDPOINT`.
    pub endpoint: Option<String>,
    /// The node's name, from the command line or `LAGAN_NODE_ID`.
    pub node_id: Option<String>,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem(s):", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  - {problem}"))
    }
}

impl std::error::Error for Problems {}

/// Where orchestrators keep staging and target paths unless told otherwise; last, where there is none.
const TARGET_ROOTS: [&str; 9] = [
    "/var/lib/kubelet",
    "/opt/nomad/data/client/csi",
    "/var/lib/nomad/client/csi",
    "/local/csi",
    "/var/lib/mesos",
    "/var/run/mesos",
    "/data/staged",
    "/data/published",
    "/srv/volumes",
];
const DEFAULT_ENDPOINT: &str = "unix:///run/lagan/csi.sock";

/// Reads the file, where there is one, and what is given over it.
///
/// # Errors
/// Every problem found, together.
pub fn load(file: Option<&Path>, mode: Mode, overrides: &Overrides) -> Result<Config, Problems> {
    let text = match file {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Problems(vec![format!("cannot read {}: {error}", path.display())]))?,
    };
    parse(&text, mode, overrides)
}

/// Reads a configuration.
///
/// # Errors
/// Every problem found, together.
pub fn parse(text: &str, mode: Mode, overrides: &Overrides) -> Result<Config, Problems> {
    let table = text.parse::<Table>().map_err(|error| Problems(vec![error.to_string().trim().to_owned()]))?;
    let mut reader = Reader::new(table, "");
    let config = read(&mut reader, mode, overrides);
    let problems = reader.finish();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(Problems(problems)),
    }
}

/// `None` only beside a problem.
fn read(reader: &mut Reader, mode: Mode, overrides: &Overrides) -> Option<Config> {
    let driver_name = reader.text("driver_name", "lagan.csi");
    if !is_driver_name(&driver_name) {
        reader.problem(
            "driver_name",
            "must be letters, digits, '-' and '.', 63 at most, beginning and ending in a letter",
        );
    }
    let node_id = reader.text("node_id", &host::host_name());
    let node_id = reader.parsed("node_id", overrides.node_id.as_ref().unwrap_or(&node_id));
    let state_dir = reader.path("state_dir", "/var/lib/lagan");
    let endpoint = reader.text("endpoint", DEFAULT_ENDPOINT);
    let endpoint: Option<Endpoint> =
        reader.parsed("endpoint", overrides.endpoint.as_ref().unwrap_or(&endpoint));
    let registry = reader.optional("kubelet_registry").map(|path| reader.absolute("kubelet_registry", path));
    let seen = reader.optional("kubelet_endpoint").map(|path| reader.absolute("kubelet_endpoint", path));
    if registry.is_none() && seen.is_some() {
        reader.problem("kubelet_endpoint", "says nothing without kubelet_registry");
    }
    let http = reader.text("http", if mode == Mode::Node { "127.0.0.1:9737" } else { "127.0.0.1:9736" });
    let http = if http == "off" { None } else { reader.parsed("http", &http) };
    let target_roots = reader.paths("target_roots", &TARGET_ROOTS);
    let max_volumes_per_node = reader.number("max_volumes_per_node", 1024, 0, 1 << 20);
    let max_operations = reader.number("max_operations", 256, 1, 4096);
    let allow_suid = reader.flag("allow_suid");
    let forgotten_pools = reader.list("forgotten_pools").unwrap_or_default();
    let forgotten_pools =
        forgotten_pools.iter().filter_map(|id| reader.parsed("forgotten_pools", id)).collect();
    let cluster = cluster::read(reader, mode);
    let machine_id = match reader.optional("machine_id") {
        Some(id) => id,
        // It has no pool to tell it to.
        None if !mode.pools() => String::new(),
        None => host::machine_id().unwrap_or_else(|error| {
            let what = format!(
                "{} cannot be read ({error}): mount the host's file there, or set machine_id",
                host::MACHINE_ID
            );
            reader.problem("machine_id", &what);
            String::new()
        }),
    };
    let pools = if mode.pools() { read_pools(reader) } else { no_pools(reader) };
    let default_pool = pools.is_none();
    let pools = pools.unwrap_or_else(|| vec![default_pool_in(&state_dir)].into_iter().flatten().collect());
    Some(Config {
        driver_name,
        node_id: node_id?,
        state_dir,
        kubelet: registry.zip(seen.or_else(|| Some(endpoint.as_ref()?.path().to_owned()))),
        endpoint: endpoint?,
        http,
        target_roots,
        max_volumes_per_node,
        max_operations,
        allow_suid,
        forgotten_pools,
        cluster,
        machine_id,
        pools,
        default_pool,
    })
}

/// At most 63 characters in domain style; csi-sanity wants letters at both ends, which is stricter than the
/// specification.
fn is_driver_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let ends = [name.bytes().next(), name.bytes().last()];
    name.len() <= 63
        && name.bytes().all(inner)
        && ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(text: &str) -> Result<Config, Vec<String>> {
        parse(text, Mode::All, &Overrides::default()).map_err(|problems| problems.0)
    }

    #[test]
    fn without_a_file_there_is_one_default_pool() {
        let config = check("").unwrap();
        assert!(config.default_pool);
        assert_eq!(config.pools[0].place, Place::File("/var/lib/lagan/pools/default".into()));
        assert_eq!(config.http, Some("127.0.0.1:9736".parse().unwrap()));
        assert_eq!(config.driver_name, "lagan.csi");
    }

    /// Every key there is.
    const FULL: &str = "driver_name = 'lagan.example.org'
node_id = 'n1'
state_dir = '/s'
endpoint = '/run/x.sock'
kubelet_registry = '/k'
kubelet_endpoint = '/host/x.sock'
http = 'off'
target_roots = ['/a', '/b']
max_volumes_per_node = 5
max_operations = 9
allow_suid = true
forgotten_pools = ['0123456789abcdef0123456789abcdef']
machine_id = 'm'
[[pool]]
name = 'p'
kind = 'file'
path = '/p'
reserve_percent = 10
overcommit_percent = 200
freeze_limit = '2s'
templates = 3
";

    #[test]
    fn a_full_file_is_read() {
        let config = check(FULL).unwrap();
        assert_eq!((config.http, config.allow_suid, config.default_pool), (None, true, false));
        assert_eq!(config.pools[0].freeze_limit, Duration::from_secs(2));
        assert_eq!(config.target_roots, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(config.forgotten_pools[0].to_string(), "0123456789abcdef0123456789abcdef");
        assert_eq!(config.kubelet, Some(("/k".into(), "/host/x.sock".into())));
    }

    #[test]
    fn kubelet_is_told_of_the_endpoint() {
        let config = check("endpoint = '/run/x.sock'\nkubelet_registry = '/k'\n").unwrap();
        assert_eq!(config.kubelet, Some(("/k".into(), "/run/x.sock".into())));
        assert_eq!(check("").unwrap().kubelet, None);
        assert_eq!(check("kubelet_endpoint = '/run/x.sock'\n").unwrap_err().len(), 1);
    }

    #[test]
    fn an_lvm_pool() {
        let pool =
            |vg: &str| format!("[[pool]]\nname = 'p'\nkind = 'lvm'\nvg = '{vg}'\nthin_pool = 'thin'\n");
        let place = Place::Lvm { vg: "vg0".into(), thin_pool: "thin".into() };
        assert_eq!(check(&pool("vg0")).unwrap().pools[0].place, place);
        for bad in ["", "-y", "a/b", "a b", "..", &"x".repeat(200)] {
            assert!(check(&pool(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(check("[[pool]]\nname = 'p'\nkind = 'lvm'\n").unwrap_err().len(), 2);
    }

    #[test]
    fn a_block_pool() {
        let config = check("[[pool]]\nname = 'p'\nkind = 'block'\ndevice = '/dev/sdb'\n").unwrap();
        assert_eq!(config.pools[0].place, Place::Block("/dev/sdb".into()));
        for bad in ["", "device = 'sdb'", "path = '/dev/sdb'"] {
            assert!(check(&format!("[[pool]]\nname = 'p'\nkind = 'block'\n{bad}\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_key_is_documented() {
        let page = include_str!("../../docs/configuration.md").split("## Other hosts").next().unwrap();
        let documented: Vec<_> =
            page.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
        let lvm = "\nvg = ''\nthin_pool = ''\ndevice = ''\nextend_at_percent = 0\nextend_by_percent = 0";
        let full = FULL.replace("\npath = '/p'", &format!("\npath = '/p'{lvm}"));
        let known: Vec<_> = full.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
        assert_eq!(documented, known);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let problems = check(
            "driver_name = '-'\nnode_id = ''\nendpoint = 'tcp://x'\nhttp = 'here'\ntarget_roots = ['/', 'x']\n\
             forgotten_pools = ['x']\nmax_operations = 0\nallow_suid = 1\nsurprise = 1\n[[pool]]\nname = 'a/b'\nkind = 'tape'\nextra = 2\n\
             freeze_limit = 'soon'\n",
        )
        .unwrap_err();
        for expected in [
            "driver_name:",
            "node_id:",
            "endpoint:",
            "http:",
            "target_roots: / ",
            "target_roots: x ",
            "forgotten_pools:",
            "max_operations:",
            "allow_suid:",
            "surprise: is not a known key",
            "pool[0].name:",
            "pool[0].kind:",
            "pool[0].path: is missing",
            "pool[0].extra: is not a known key",
            "pool[0].freeze_limit:",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{expected} not in {problems:#?}"
            );
        }
        assert_eq!(problems.len(), 15, "{problems:#?}");
    }

    #[test]
    fn what_the_caller_gives_wins() {
        let overrides = Overrides { endpoint: Some("unix:/x/y.sock".into()), node_id: Some("n9".into()) };
        let config = parse("endpoint = '/z.sock'\nnode_id = 'n1'", Mode::Node, &overrides).unwrap();
        assert_eq!(config.endpoint.to_string(), "unix:///x/y.sock");
        assert_eq!(config.node_id.as_str(), "n9");
        assert_eq!(config.http, Some("127.0.0.1:9737".parse().unwrap()), "beside a controller on one host");
    }

    #[test]
    fn pools_must_differ() {
        let pool = "[[pool]]\nname = 'p'\nkind = 'file'\npath = '/p'\n";
        let problems = check(&pool.repeat(2)).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(check("pool = []").is_err());
        assert!(check("pool = [1]").is_err());
        assert!(check("= nonsense").is_err());
    }

    #[test]
    fn hostile_input() {
        let cluster =
            "[cluster]\nlisten = '127.0.0.1:1'\ncertificates = '/c'\n[cluster.hosts]\nn2 = '10.0.0.2:9738'\n";
        crate::hostile::feed("configuration", &[FULL.as_bytes(), cluster.as_bytes()], |input| {
            let text = String::from_utf8_lossy(input);
            for mode in [Mode::All, Mode::Node, Mode::Router] {
                match parse(&text, mode, &Overrides::default()) {
                    Ok(config) => assert!(config.target_roots.iter().all(|root| root.is_absolute())),
                    Err(problems) => {
                        assert!(!problems.0.is_empty() && problems.0.iter().all(|it| !it.is_empty()))
                    }
                }
            }
        });
    }
}
