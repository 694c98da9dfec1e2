//! What is known of the hosts at one moment, made of what was observed at each address: a pure function, so that whatever two
//! hosts may say at the same time can be tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use super::unavailable;
use crate::{
    csi::{Manifest, Member, Topology},
    error::Result,
    id::{NodeId, PoolId},
};

/// In the place of an address: this very host.
pub(super) const HERE: &str = "here";

/// What the operator says of hosts and pools.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Name of the driver.
    pub driver_name: String,
    /// Hosts that are lost for good; one that returns is refused.
    pub forgotten_hosts: BTreeSet<NodeId>,
    /// Pools that are lost for good; one that returns is refused.
    pub forgotten_pools: BTreeSet<PoolId>,
}

/// What was observed at one address.
#[derive(Clone)]
pub struct Observation {
    /// The address, for people.
    pub address: String,
    /// Which host is expected there, where that is known.
    pub expected: Option<NodeId>,
    /// What it said of itself last, and when.
    pub said: Option<(Manifest, String, Instant)>,
    /// It answers; otherwise why not.
    pub reach: std::result::Result<(), String>,
    /// Until when its certificate is good.
    pub expires: Option<SystemTime>,
    /// The way to it.
    pub member: Member,
}

impl Observation {
    /// Which host it is, as far as is known.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        self.said.as_ref().map(|(manifest, ..)| &manifest.node).or(self.expected.as_ref())
    }

    /// Whether there may be something on it that would be missed.
    pub(super) fn may_hold_something(&self) -> bool {
        self.said.as_ref().is_some_and(|(manifest, ..)| manifest.may_hold_something())
    }
}

/// One host.
#[derive(Clone)]
pub struct Host {
    /// Its name.
    pub node: NodeId,
    /// Where it was met.
    pub address: String,
    /// What it said of itself last, its version, and when.
    pub said: Option<(Manifest, String, Instant)>,
    /// Where its volumes can be reached.
    pub topology: Topology,
    /// Until when its certificate is good.
    pub expires: Option<SystemTime>,
    /// A pool of it was given up by the operator: nothing new is put there.
    pub given_up: bool,
    reach: std::result::Result<Member, String>,
}

impl Host {
    /// The way to it.
    ///
    /// # Errors
    /// `Unavailable`, with the reason, where it does not answer.
    pub fn reach(&self) -> Result<&Member> {
        self.reach.as_ref().map_err(|why| unavailable(format!("host {} does not answer: {why}", self.node)))
    }

    /// Whether it answers.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.reach.is_ok()
    }

    /// How long ago it said something.
    #[must_use]
    pub fn since_seen(&self) -> Option<Duration> {
        self.said.as_ref().map(|(_, _, when)| when.elapsed())
    }

    /// Whether it has a pool open, as it said last.
    fn serves(&self, pool: PoolId) -> bool {
        let held = self.said.as_ref().and_then(|(manifest, ..)| manifest.pools.get(&pool));
        held.is_some_and(|held| held.counts.is_some())
    }

    /// Its pools, as it said last.
    pub fn pools(&self) -> impl Iterator<Item = PoolId> + '_ {
        self.said.iter().flat_map(|(manifest, ..)| manifest.pools.keys().copied())
    }
}

/// Whose a pool is.
enum Owner {
    Host(usize),
    /// Two hosts say that it is theirs: a disk that both see, or its copy.
    Disputed(String),
}

/// All of them.
#[derive(Default)]
pub struct View {
    hosts: Vec<Host>,
    owners: BTreeMap<PoolId, Owner>,
    /// Why a list of everything cannot be had.
    missing: Vec<String>,
}

impl View {
    /// Makes it of what was observed. `trouble` is why not every address may be known.
    #[must_use]
    pub fn of(observations: &[Observation], settings: &Settings, trouble: Option<&str>) -> Self {
        let mut of: BTreeMap<&NodeId, Vec<&Observation>> = BTreeMap::new();
        let mut missing: Vec<String> = trouble.map(ToOwned::to_owned).into_iter().collect();
        for observation in observations {
            match observation.node() {
                Some(node) if settings.forgotten_hosts.contains(node) => {}
                Some(node) => of.entry(node).or_default().push(observation),
                None => missing.push(why_missing(&observation.address, &observation.reach)),
            }
        }
        let hosts: Vec<Host> = of.into_iter().map(|(node, seen)| host(node, &seen, settings)).collect();
        missing.extend(
            hosts.iter().filter_map(|host| {
                host.reach.as_ref().err().map(|why| format!("host {} ({why})", host.node))
            }),
        );
        let owners = owners(&hosts, settings);
        Self { hosts, owners, missing }
    }

    /// Every host, by name.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of a pool; `None` where nobody is known to have it, or it was forgotten.
    ///
    /// # Errors
    /// `Unavailable` where two hosts have it.
    pub fn owner(&self, pool: PoolId) -> Result<Option<&Host>> {
        match self.owners.get(&pool) {
            None => Ok(None),
            Some(Owner::Host(index)) => Ok(self.hosts.get(*index)),
            Some(Owner::Disputed(why)) => Err(unavailable(why.clone())),
        }
    }

    /// Every pool and its host, in the order of ids.
    ///
    /// # Errors
    /// `Unavailable` where a host is missing, or two have one pool: what is in it would be missing too.
    pub fn pools(&self) -> Result<Vec<(PoolId, &Host)>> {
        self.check_complete()?;
        let mut all = Vec::with_capacity(self.owners.len());
        for pool in self.owners.keys() {
            all.extend(self.owner(*pool)?.map(|host| (*pool, host)));
        }
        Ok(all)
    }

    /// Whether every host that is known answers.
    ///
    /// # Errors
    /// `Unavailable`, with those that do not.
    pub fn check_complete(&self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        Err(unavailable(format!("not every host answers: {}", self.missing.join(", "))))
    }
}

fn why_missing(what: &str, reach: &std::result::Result<(), String>) -> String {
    format!("{what} ({})", reach.as_ref().err().map_or("not asked yet", String::as_str))
}

/// One host of what was observed at the addresses where it was met.
fn host(node: &NodeId, seen: &[&Observation], settings: &Settings) -> Host {
    // Whoever else may call itself so: this host does not stop serving its own volumes, nor calls itself from outside.
    let here = seen.iter().copied().find(|one| one.address == HERE);
    let seen = here.as_ref().map_or(seen, std::slice::from_ref);
    let up: Vec<&&Observation> = seen.iter().filter(|one| one.reach.is_ok()).collect();
    let instances: BTreeSet<_> =
        up.iter().filter_map(|one| one.said.as_ref()).map(|(manifest, ..)| manifest.instance).collect();
    let last = seen.iter().max_by_key(|one| (one.reach.is_ok(), one.said.as_ref().map(|(_, _, when)| *when)));
    let reach = match (up.first(), last) {
        _ if instances.len() > 1 => {
            let at: Vec<_> = up.iter().map(|one| one.address.as_str()).collect();
            Err(format!("{} hosts call themselves so, at {}", instances.len(), at.join(" and ")))
        }
        (Some(one), _) => Ok(one.member.clone()),
        (None, Some(one)) => Err(one.reach.clone().err().unwrap_or_default()),
        (None, None) => Err("it was never met".to_owned()),
    };
    let said = last.and_then(|one| one.said.clone());
    let given_up = said.as_ref().is_some_and(|(manifest, ..)| {
        manifest.pools.keys().any(|pool| settings.forgotten_pools.contains(pool))
    });
    let address = last.map(|one| one.address.clone()).unwrap_or_default();
    let topology = Topology::new(&settings.driver_name, node);
    let expires = last.and_then(|one| one.expires);
    Host { node: node.clone(), address, said, topology, expires, given_up, reach }
}

/// Whose each pool is. A disk that was moved is with the host that answers, whatever the other one said when it was seen
/// last.
fn owners(hosts: &[Host], settings: &Settings) -> BTreeMap<PoolId, Owner> {
    let mut claims: BTreeMap<PoolId, Vec<usize>> = BTreeMap::new();
    for (index, host) in hosts.iter().enumerate() {
        for pool in host.pools().filter(|pool| !settings.forgotten_pools.contains(pool)) {
            claims.entry(pool).or_default().push(index);
        }
    }
    let decide = |(pool, claims): (PoolId, Vec<usize>)| {
        let mut up: Vec<usize> = claims.iter().copied().filter(|index| hosts[*index].is_up()).collect();
        // A pool that has moved is still in the configuration of the host where it was, which cannot open it.
        if let [one] = up.iter().copied().filter(|index| hosts[*index].serves(pool)).collect::<Vec<_>>()[..] {
            up = vec![one];
        }
        let owner = match (up.as_slice(), claims.as_slice()) {
            ([one], _) | ([], [one]) => Owner::Host(*one),
            (several, _) if !several.is_empty() => {
                let named: Vec<_> = several.iter().map(|index| hosts[*index].node.as_str()).collect();
                Owner::Disputed(format!(
                    "pool {pool} is said to be their own by hosts {}",
                    named.join(" and ")
                ))
            }
            (_, several) => {
                let last =
                    several.iter().max_by_key(|index| hosts[**index].said.as_ref().map(|(_, _, when)| *when));
                Owner::Host(last.copied().unwrap_or_default())
            }
        };
        (pool, owner)
    };
    claims.into_iter().map(decide).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{bytes::Bytes, csi::Holdings, error::ErrorKind};

    /// A host as it says of itself, so many seconds ago.
    fn said(node: &str, instance: u128, pools: &[PoolId], ago: u64) -> Option<(Manifest, String, Instant)> {
        let pools = pools.iter().map(|id| (*id, Holdings::default())).collect::<BTreeMap<_, _>>();
        let (node, instance) = (node.parse().unwrap(), Uuid::from_u128(instance));
        let manifest = Manifest { node, instance, clock: SystemTime::now(), pools };
        Some((manifest, "1".into(), Instant::now().checked_sub(Duration::from_secs(ago)).unwrap()))
    }

    fn at(address: &str, said: Option<(Manifest, String, Instant)>, up: bool) -> Observation {
        let reach = if up { Ok(()) } else { Err("gone".to_owned()) };
        let member = crate::router::tests::nobody();
        Observation { address: address.to_owned(), expected: None, said, reach, expires: None, member }
    }

    fn view(observations: &[Observation]) -> View {
        View::of(observations, &Settings { driver_name: "d".into(), ..Settings::default() }, None)
    }

    #[tokio::test]
    async fn two_hosts_of_one_name_are_called_by_none() {
        let pool = PoolId::random();
        let twins =
            view(&[at("a:1", said("n1", 1, &[pool], 0), true), at("b:1", said("n1", 2, &[], 0), true)]);
        let [host] = twins.hosts() else { panic!("one name, one host") };
        let why = host.reach().err().unwrap();
        assert!(why.kind() == ErrorKind::Unavailable && why.to_string().contains("a:1 and b:1"), "{why}");
        assert!(twins.check_complete().is_err());
        // The same process at two addresses is one host; so is one that has moved, and one that has been started anew.
        for other in [at("b:1", said("n1", 1, &[pool], 0), true), at("b:1", said("n1", 2, &[], 9), false)] {
            let one = view(&[at("a:1", said("n1", 1, &[pool], 0), true), other]);
            assert!(one.hosts()[0].is_up() && one.check_complete().is_ok());
            assert_eq!(one.owner(pool).unwrap().unwrap().node.as_str(), "n1");
        }
        // This very host goes on, whoever takes its name.
        let own = view(&[at("a:1", said("n1", 1, &[], 0), true), at(HERE, said("n1", 2, &[pool], 9), true)]);
        assert!(own.hosts()[0].is_up() && own.hosts()[0].address == HERE);
    }

    #[tokio::test]
    async fn a_pool_is_with_the_host_that_answers_and_never_with_two() {
        let pool = PoolId::random();
        let (old, new) = (said("n1", 1, &[pool], 5), said("n2", 2, &[pool], 0));
        let disputed = view(&[at("a:1", old.clone(), true), at("b:1", new.clone(), true)]);
        let why = disputed.owner(pool).err().unwrap();
        assert!(why.to_string().contains("n1 and n2"), "{why}");
        assert!(disputed.pools().is_err(), "what is in it would be listed twice, or not at all");
        let mut open = new.clone();
        open.as_mut().unwrap().0.pools.get_mut(&pool).unwrap().counts = Some((1, 0, Bytes::ZERO));
        let moved = view(&[at("a:1", old.clone(), true), at("b:1", open, true)]);
        assert_eq!(moved.owner(pool).unwrap().unwrap().node.as_str(), "n2", "the other one cannot open it");
        let owner =
            |observations: &[Observation]| view(observations).owner(pool).unwrap().unwrap().node.to_string();
        assert_eq!(owner(&[at("a:1", old.clone(), false), at("b:1", new.clone(), true)]), "n2");
        assert_eq!(owner(&[at("a:1", old.clone(), true), at("b:1", new.clone(), false)]), "n1");
        assert_eq!(owner(&[at("a:1", old, false), at("b:1", new, false)]), "n2", "who said so last");
        assert!(view(&[]).owner(pool).unwrap().is_none());
    }

    #[tokio::test]
    async fn an_address_that_never_answered_is_missing() {
        assert!(view(&[at("a:1", None, false)]).check_complete().is_err());
        let settings = Settings::default();
        assert!(View::of(&[], &settings, Some("no such name")).check_complete().is_err());
        let given_up = Settings { forgotten_hosts: ["n1".parse().unwrap()].into(), ..Settings::default() };
        let view = View::of(&[at("a:1", said("n1", 1, &[PoolId::random()], 0), true)], &given_up, None);
        assert!(view.hosts().is_empty() && view.check_complete().is_ok());
    }
}
