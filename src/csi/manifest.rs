//! What a host says of itself to the rest of the cluster: which pools are its own, so that a call for a volume finds it. It
//! stands in the manifest of GetPluginInfo, which CSI leaves to us: no call of our own is needed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use uuid::Uuid;

use crate::{
    bytes::Bytes,
    engine::Engine,
    id::{NodeId, PoolId},
    pool::set::Pools,
};

/// What a pool holds, as far as its host knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// What its host calls it.
    pub name: String,
    /// Volumes, snapshots and the space promised to them; `None` where the pool cannot be used.
    pub counts: Option<(usize, usize, Bytes)>,
}

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The orchestrator's name for it.
    pub node: NodeId,
    /// Another one in each process, so that two that use one name are told apart.
    pub instance: Uuid,
    /// Its clock.
    pub clock: SystemTime,
    /// Its pools, those that cannot be used now included.
    pub pools: BTreeMap<PoolId, Holdings>,
}

const NODE: &str = "node";
const INSTANCE: &str = "instance";
const CLOCK: &str = "clock_ms";
const POOL: &str = "pool.";

impl Manifest {
    /// As keys and values.
    #[must_use]
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let millis = self.clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut map = BTreeMap::from([
            (NODE.to_owned(), self.node.to_string()),
            (INSTANCE.to_owned(), self.instance.simple().to_string()),
            (CLOCK.to_owned(), millis.to_string()),
        ]);
        for (id, Holdings { name, counts }) in &self.pools {
            let counts =
                counts.map(|(volumes, snapshots, space)| format!(" {volumes} {snapshots} {}", space.get()));
            map.insert(format!("{POOL}{id}"), format!("{name}{}", counts.unwrap_or_default()));
        }
        map
    }

    /// Whether anything may be in its pools.
    #[must_use]
    pub fn may_hold_something(&self) -> bool {
        let empty = |held: &Holdings| {
            held.counts.is_some_and(|(volumes, snapshots, _)| volumes == 0 && snapshots == 0)
        };
        !self.pools.values().all(empty)
    }

    /// Reads it; `None` where it says nothing of a host. What a later version adds is passed over.
    #[must_use]
    pub fn from_map(map: &BTreeMap<String, String>) -> Option<Self> {
        let pools = map.iter().filter_map(|(key, value)| {
            let id = key.strip_prefix(POOL)?.parse().ok()?;
            let mut words = value.split(' ');
            let name = words.next()?.to_owned();
            let mut number = || words.next()?.parse::<u64>().ok();
            let counts = number().zip(number()).zip(number()).and_then(|((volumes, snapshots), space)| {
                Some((usize::try_from(volumes).ok()?, usize::try_from(snapshots).ok()?, Bytes::new(space)))
            });
            Some((id, Holdings { name, counts }))
        });
        Some(Self {
            node: map.get(NODE)?.parse().ok()?,
            instance: Uuid::try_parse(map.get(INSTANCE)?).ok()?,
            clock: SystemTime::UNIX_EPOCH + Duration::from_millis(map.get(CLOCK)?.parse().ok()?),
            pools: pools.collect(),
        })
    }
}

/// What the manifest of this process is made of each time it is asked for.
#[derive(Clone)]
pub struct PeerFacts {
    node: NodeId,
    instance: Uuid,
    pools: Arc<Pools>,
    engine: Option<Engine>,
}

impl PeerFacts {
    /// Those of a host with these pools.
    #[must_use]
    pub fn new(node: NodeId, pools: Arc<Pools>, engine: Option<Engine>) -> Self {
        Self { node, instance: Uuid::new_v4(), pools, engine }
    }

    /// What there is to say now.
    #[must_use]
    pub fn manifest(&self) -> Manifest {
        let known = self.pools.known().into_iter().map(|(id, name)| {
            let counts = self.engine.as_ref().and_then(|engine| engine.counts_of(id));
            (id, Holdings { name: name.to_string(), counts })
        });
        let pools = known.collect();
        Manifest { node: self.node.clone(), instance: self.instance, clock: SystemTime::now(), pools }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_went() {
        let clock = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_000_000_123);
        let open = Holdings { name: "fast".into(), counts: Some((3, 1, Bytes::gib(5))) };
        let closed = Holdings { name: "far".into(), counts: None };
        let pools = BTreeMap::from([(PoolId::random(), open), (PoolId::random(), closed)]);
        let manifest = Manifest { node: "n 1".parse().unwrap(), instance: Uuid::new_v4(), clock, pools };
        let mut map = manifest.to_map();
        assert_eq!(Manifest::from_map(&map).as_ref(), Some(&manifest));
        map.insert("pool.later".into(), "x".into());
        map.insert("later".into(), "x".into());
        assert_eq!(Manifest::from_map(&map), Some(manifest));
        map.remove("node");
        assert_eq!(Manifest::from_map(&map), None);
    }

    /// What another host says of itself may be anything.
    #[test]
    fn hostile_input() {
        let pool = "0123456789abcdef0123456789abcdef";
        let sample =
            format!("node=n1\ninstance={pool}\nclock_ms=1764000000123\npool.{pool}=fast 3 1 5368709120");
        crate::hostile::feed("manifests", &[sample.as_bytes()], |input| {
            let text = String::from_utf8_lossy(input);
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let map = lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            if let Some(manifest) = Manifest::from_map(&map) {
                std::hint::black_box(manifest.may_hold_something());
                assert_eq!(Manifest::from_map(&manifest.to_map()), Some(manifest));
            }
        });
    }
}
