//! Watches the hosts: every address of the list, and every address behind the name, is asked again and again who is there
//! and what its pools are. A host that goes away stays known, and missing, as long as it may hold something.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::lookup_host,
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::{Request, transport::Channel};

use super::{
    remote,
    view::{HERE, Observation, Settings, View},
};
use crate::{
    csi::{Manifest, Member, PeerFacts},
    error::innermost,
    id::NodeId,
    peers::{Credentials, HostName, Seen, connect},
    proto::{GetPluginInfoRequest, identity_client::IdentityClient},
};

/// How often a host is asked who it is, while it answers and while it does not.
const PERIOD: Duration = Duration::from_secs(2);
const PERIOD_DOWN: Duration = Duration::from_millis(500);
/// How long it may take to say so.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon what was seen is shown.
const SHOWN_WITHIN: Duration = Duration::from_millis(50);
/// How long a host that is gone is missed though it had nothing: something may have been made there since it said so.
const EMPTY_FOR: Duration = Duration::from_secs(60);
/// How often the name is looked up.
const LOOK_UP: Duration = Duration::from_secs(3);

/// This host among the others, where it is one.
pub struct Local {
    /// What it does itself.
    pub member: Member,
    /// What it says of itself.
    pub facts: PeerFacts,
}

/// The watch, which ends with this value.
pub struct Watching {
    shared: Arc<Shared>,
    view: watch::Receiver<Arc<View>>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    settings: Settings,
    credentials: Credentials,
    state: Mutex<State>,
    /// Something was seen that is not shown yet.
    news: Notify,
    view: watch::Sender<Arc<View>>,
}

#[derive(Default)]
struct State {
    seen: BTreeMap<String, Observation>,
    /// Why the name cannot be looked up.
    trouble: Option<String>,
}

/// An address that is asked, for as long as this is kept.
struct Followed(JoinHandle<()>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watching {
    /// Begins to watch: hosts by name and address, and those behind a name for all (`host:port`). A host without an address
    /// is one that the name will lead to: until then it is missing.
    #[must_use]
    pub fn start(
        settings: Settings,
        credentials: Credentials,
        list: &BTreeMap<NodeId, String>,
        dns: Option<&str>,
        local: Option<Local>,
    ) -> Self {
        let (sender, view) = watch::channel(Arc::default());
        let shared = Arc::new(Shared {
            settings,
            credentials,
            state: Mutex::default(),
            news: Notify::new(),
            view: sender,
        });
        let (met_by_name, by_address): (Vec<_>, Vec<_>) =
            list.iter().partition(|(_, address)| address.is_empty());
        for (node, _) in met_by_name {
            shared.first(&format!("{node}, wherever it is"), Some(node), NOT_MET);
        }
        let mut tasks: Vec<_> = by_address
            .into_iter()
            .map(|(node, address)| {
                let (shared, node, address) = (Arc::clone(&shared), node.clone(), address.clone());
                // Before it has answered it is missing.
                shared.first(&address, Some(&node), NOT_YET);
                tokio::spawn(async move { shared.follow(address, Some(node)).await })
            })
            .collect();
        if let Some(name) = dns {
            shared.change(|state| state.trouble = Some(format!("{name} has not been looked up yet")));
            let (shared, name) = (Arc::clone(&shared), name.to_owned());
            tasks.push(tokio::spawn(async move { shared.discover(name).await }));
        }
        if let Some(local) = local {
            let shared = Arc::clone(&shared);
            shared.note_local(&local);
            tasks.push(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(PERIOD).await;
                    shared.note_local(&local);
                }
            }));
        }
        // Whoever asks at once finds those of the list missing, and not unknown.
        shared.show_now();
        let shows = Arc::clone(&shared);
        tasks.push(tokio::spawn(async move { shows.show().await }));
        Self { shared, view, tasks }
    }

    /// What is known, now and later.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Waits until each host of the list has answered or not, for so long at most: a router that has just started knows
    /// nobody.
    pub async fn first_look(&self, patience: Duration) {
        let asked = |state: &State| {
            state.trouble.is_none()
                && state.seen.values().all(|seen| seen.said.is_some() || seen.reach != Err(NOT_YET.into()))
        };
        let mut view = self.view.clone();
        let all = async {
            loop {
                let done = asked(&self.shared.state());
                if done || view.changed().await.is_err() {
                    return;
                }
            }
        };
        timeout(patience, all).await.unwrap_or_default();
        self.shared.show_now();
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watching").finish_non_exhaustive()
    }
}

const NOT_YET: &str = "not asked yet";
/// Of a host without an address. It is never asked itself: it answers somewhere behind the name.
const NOT_MET: &str = "it was not met yet";
const GONE: &str = "its address is gone";

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what was seen; it is shown soon.
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.news.notify_one();
    }

    /// Shows what was seen, for ever: hosts say something all the time, and there may be many.
    async fn show(&self) {
        loop {
            self.show_now();
            self.news.notified().await;
            tokio::time::sleep(SHOWN_WITHIN).await;
        }
    }

    fn show_now(&self) {
        let state = self.state();
        let all: Vec<_> = state.seen.values().cloned().collect();
        let trouble = state.trouble.clone();
        drop(state);
        self.view.send_replace(Arc::new(View::of(&all, &self.settings, trouble.as_deref())));
    }

    fn first(&self, address: &str, expected: Option<&NodeId>, why: &str) {
        let name = expected.map_or(address, NodeId::as_str);
        // Nobody is called by it: it has not answered.
        let channel = connect(address, &self.credentials, &Seen::default());
        let observation = Observation {
            address: address.to_owned(),
            expected: expected.cloned(),
            said: None,
            reach: Err(why.to_owned()),
            expires: None,
            member: remote(name, channel),
        };
        self.change(|state| match state.seen.get_mut(address) {
            // It was gone from the name for a while: what it holds is remembered.
            Some(known) => known.reach = observation.reach,
            None => drop(state.seen.insert(address.to_owned(), observation)),
        });
    }

    fn note_local(&self, local: &Local) {
        let said = Some((local.facts.manifest(), env!("CARGO_PKG_VERSION").to_owned(), Instant::now()));
        let member = local.member.clone();
        let observation = Observation {
            address: HERE.to_owned(),
            expected: None,
            said,
            reach: Ok(()),
            expires: None,
            member,
        };
        self.change(|state| drop(state.seen.insert(HERE.to_owned(), observation)));
    }

    /// Asks at one address, for ever. Who is expected there is known, or learnt and then expected; where somebody else
    /// comes to an address that was learnt, it is begun anew.
    async fn follow(&self, address: String, expected: Option<NodeId>) {
        loop {
            let seen = expected.as_ref().map(|node| Seen::only(HostName::of(node))).unwrap_or_default();
            let channel = connect(&address, &self.credentials, &seen);
            let mut failures = 0_u32;
            loop {
                let answer = self.ask(&channel, &seen).await;
                let up = answer.is_ok();
                failures = if up { 0 } else { failures.saturating_add(1) };
                self.note(&address, expected.as_ref(), (&channel, &seen), answer);
                tokio::time::sleep(if up { PERIOD } else { PERIOD_DOWN }).await;
                if expected.is_none() && failures > 0 && seen.name().is_some() {
                    break;
                }
            }
        }
    }

    /// Asks who is there.
    async fn ask(&self, channel: &Channel, seen: &Seen) -> Result<(Manifest, String), String> {
        let mut identity = IdentityClient::new(channel.clone());
        let request = Request::new(GetPluginInfoRequest {});
        let answer = timeout(PATIENCE, identity.get_plugin_info(request)).await;
        let answer = answer.map_err(|_late| format!("it has not answered within {PATIENCE:?}"))?;
        let info = answer.map_err(|said| innermost(&said))?.into_inner();
        if info.name != self.settings.driver_name {
            return Err(format!("it serves another driver, {}", info.name));
        }
        let manifest = Manifest::from_map(&info.manifest).ok_or("it does not say which host it is")?;
        let shown = seen.name();
        if shown != Some(&HostName::of(&manifest.node)) {
            let shown = shown.map_or("nobody", HostName::as_str);
            return Err(format!("it calls itself {}, and its certificate is that of {shown}", manifest.node));
        }
        Ok((manifest, info.vendor_version))
    }

    fn note(
        &self,
        address: &str,
        expected: Option<&NodeId>,
        (channel, seen): (&Channel, &Seen),
        answer: Result<(Manifest, String), String>,
    ) {
        self.change(|state| {
            let before = state.seen.get(address);
            let was_up = before.is_some_and(|before| before.reach.is_ok());
            let (said, reach) = match answer {
                Ok((manifest, version)) => (Some((manifest, version, Instant::now())), Ok(())),
                Err(why) => (before.and_then(|before| before.said.clone()), Err(why)),
            };
            let node =
                said.as_ref().map(|(manifest, ..)| manifest.node.clone()).or_else(|| expected.cloned());
            let name = node.as_ref().map_or(address, NodeId::as_str);
            match &reach {
                Ok(()) if !was_up => tracing::info!(node = name, address, "host answers"),
                Err(why) if was_up => tracing::warn!(node = name, address, why, "host does not answer"),
                _ => {}
            }
            let member = match before {
                Some(before) if was_up && reach.is_ok() => before.member.clone(),
                _ => remote(name, channel.clone()),
            };
            // Somebody else has come to the address: the one who was there is missing as long as it may hold something.
            if let Some(other) =
                before.filter(|before| before.node() != node.as_ref() && before.may_hold_something())
            {
                let left = Observation { reach: Err(GONE.to_owned()), ..other.clone() };
                let name = left.node().map(ToString::to_string).unwrap_or_default();
                state.seen.insert(format!("{name}, last at {address}"), left);
            }
            if let (Ok(()), Some(node)) = (&reach, &node) {
                // It was met elsewhere before, and is here now.
                state
                    .seen
                    .retain(|_, other| other.reach != Err(GONE.to_owned()) || other.node() != Some(node));
            }
            let (address, expected, expires) = (address.to_owned(), expected.cloned(), seen.expires());
            let observation =
                Observation { address: address.clone(), expected, said, reach, expires, member };
            state.seen.insert(address, observation);
        });
    }

    /// Looks the name up for ever, and asks at every address behind it. One that is gone from it is no longer asked; what
    /// was there is missing as long as it may hold something.
    async fn discover(self: Arc<Self>, name: String) {
        let mut followed: BTreeMap<String, Followed> = BTreeMap::new();
        loop {
            match timeout(PATIENCE, lookup_host(&name)).await {
                Ok(Ok(found)) => {
                    let found: Vec<String> = found.map(|address: SocketAddr| address.to_string()).collect();
                    followed.retain(|address, _| found.contains(address) || self.gone(address));
                    for address in found
                        .into_iter()
                        .filter(|address| !followed.contains_key(address))
                        .collect::<Vec<_>>()
                    {
                        self.first(&address, None, NOT_YET);
                        let (shared, at) = (Arc::clone(&self), address.clone());
                        let task = tokio::spawn(async move { shared.follow(at, None).await });
                        followed.insert(address, Followed(task));
                    }
                    self.trouble(None);
                    self.let_go();
                }
                Ok(Err(error)) => self.trouble(Some(format!("{name} cannot be looked up: {error}"))),
                Err(_late) => self.trouble(Some(format!("{name} was not looked up within {PATIENCE:?}"))),
            }
            tokio::time::sleep(LOOK_UP).await;
        }
    }

    fn trouble(&self, trouble: Option<String>) {
        if self.state().trouble != trouble {
            if let Some(why) = &trouble {
                tracing::warn!(why, "hosts cannot be found");
            }
            self.change(|state| state.trouble = trouble);
        }
    }

    /// An address is gone from the name; never `true`, so that it is no longer asked.
    fn gone(&self, address: &str) -> bool {
        self.change(|state| {
            if let Some(seen) = state.seen.get_mut(address) {
                seen.reach = Err(GONE.to_owned());
            }
        });
        false
    }

    /// Forgets who is gone and said a while ago that there is nothing to miss.
    fn let_go(&self) {
        let is_over = |seen: &Observation| {
            let since = seen.said.as_ref().map(|(_, _, when)| when.elapsed());
            seen.reach == Err(GONE.to_owned())
                && !seen.may_hold_something()
                && since.is_none_or(|since| since > EMPTY_FOR)
        };
        if self.state().seen.values().any(is_over) {
            self.change(|state| state.seen.retain(|_, seen| !is_over(seen)));
        }
    }
}
