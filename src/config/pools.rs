//! The pools of a configuration: `[[pool]]`.

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{Table, Value};

use super::reader::Reader;
use crate::id::PoolName;

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name.
    pub name: PoolName,
    /// Where it is, and with that of what kind.
    pub place: Place,
    /// Per cent of the space that new volumes and snapshots leave free.
    pub reserve_percent: u32,
    /// Per cent of the space that may be promised.
    pub overcommit_percent: u32,
    /// Longest freeze of a filesystem in use.
    pub freeze_limit: Duration,
    /// Most templates kept.
    pub templates: u32,
    /// At which use, in per cent, a thin pool is extended, and by how much of its length.
    pub extend: Option<(u32, u32)>,
}

/// Where a pool is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Kind `file`: a directory.
    File(PathBuf),
    /// Kind `lvm`: a thin pool of a volume group.
    Lvm {
        /// The group.
        vg: String,
        /// The thin pool.
        thin_pool: String,
    },
    /// Kind `block`: a disk of our own.
    Block(PathBuf),
}

impl Place {
    /// The kind, as the configuration names it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Lvm { .. } => "lvm",
            Self::Block(_) => "block",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Block(path) => path.display().fmt(f),
            Self::Lvm { vg, thin_pool } => write!(f, "{vg}/{thin_pool}"),
        }
    }
}

/// Whether LVM takes a text as the name of a group or volume (lvm(8), "valid names"), and no tool takes it for an option.
#[must_use]
pub fn is_lvm_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    (1..=100).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with(['-', '.'])
}

/// A router has none.
pub(super) fn no_pools(reader: &mut Reader) -> Option<Vec<PoolConfig>> {
    if reader.table.remove("pool").is_some() {
        reader.problem("pool", "a router owns no storage: give it to a host");
    }
    Some(Vec::new())
}

/// The pools of the file; `None` where it names none.
pub(super) fn read_pools(reader: &mut Reader) -> Option<Vec<PoolConfig>> {
    let tables = match reader.table.remove("pool")? {
        Value::Array(tables) if !tables.is_empty() => tables,
        _ => {
            reader.problem("pool", "must be one or more [[pool]] tables");
            return Some(Vec::new());
        }
    };
    let mut pools = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let place = format!("pool[{index}].");
        let Value::Table(table) = table else {
            reader.problem(&place, "must be a table");
            continue;
        };
        let mut inner = Reader::new(table, &place);
        pools.extend(read_pool(&mut inner));
        reader.problems.extend(inner.finish());
    }
    let mut seen = (HashSet::new(), HashSet::new());
    for pool in &pools {
        if !seen.0.insert(&pool.name) {
            reader.problems.push(format!("pool name {} is given twice", pool.name));
        }
        if !seen.1.insert(&pool.place) {
            reader.problems.push(format!("two pools are at {}", pool.place));
        }
    }
    Some(pools)
}

fn read_pool(reader: &mut Reader) -> Option<PoolConfig> {
    let name = reader.required("name");
    let name = name.and_then(|name| reader.parsed("name", &name));
    let place = match reader.required("kind").as_deref() {
        None => None,
        Some("lvm") => {
            let mut lvm_name = |key: &str| {
                let name = reader.required(key)?;
                if !is_lvm_name(&name) {
                    reader.problem(key, &format!("{name:?} is no name that LVM takes"));
                }
                Some(name)
            };
            let (vg, thin_pool) = (lvm_name("vg"), lvm_name("thin_pool"));
            vg.zip(thin_pool).map(|(vg, thin_pool)| Place::Lvm { vg, thin_pool })
        }
        Some("block") => {
            reader.required("device").map(|device| Place::Block(reader.absolute("device", device)))
        }
        Some(other) => {
            if other != "file" {
                let what = format!("{other:?} is not offered: expected \"file\", \"lvm\" or \"block\"");
                reader.problem("kind", &what);
            }
            reader.required("path").map(|path| Place::File(reader.absolute("path", path)))
        }
    };
    let extend = if matches!(place, Some(Place::Lvm { .. })) { read_extend(reader) } else { None };
    let settings = read_pool_settings(reader);
    Some(PoolConfig { name: name?, place: place?, extend, ..settings? })
}

fn read_extend(reader: &mut Reader) -> Option<(u32, u32)> {
    let at = reader.number("extend_at_percent", 0, 0, 95);
    let by = reader.number("extend_by_percent", 20, 1, 1000);
    Some((at, by)).filter(|_| at > 0)
}

/// What has a default in every pool. The name and place are placeholders.
fn read_pool_settings(reader: &mut Reader) -> Option<PoolConfig> {
    Some(PoolConfig {
        name: "default".parse().ok()?,
        place: Place::File(PathBuf::new()),
        reserve_percent: reader.number("reserve_percent", 5, 1, 50),
        overcommit_percent: reader.number("overcommit_percent", 100, 1, 10_000),
        freeze_limit: reader.duration("freeze_limit", Duration::from_secs(5), Duration::from_secs(60)),
        templates: reader.number("templates", 32, 0, 1024),
        extend: None,
    })
}

pub(super) fn default_pool_in(state_dir: &Path) -> Option<PoolConfig> {
    let mut nothing = Reader::new(Table::new(), "");
    let place = Place::File(state_dir.join("pools/default"));
    Some(PoolConfig { place, ..read_pool_settings(&mut nothing)? })
}
