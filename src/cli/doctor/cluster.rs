//! `lagan doctor --cluster`: every host of the configuration, asked from here. Nothing is changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use tokio::time::timeout;
use tonic::Request;

use super::{
    Finding, Verdict, finding,
    orphans::{self, Held},
};
use crate::{
    config::Config,
    error::{Error, ErrorKind, Result},
    peers::{Credentials, HostName, Role, certs::days_left},
    proto::{ListSnapshotsRequest, ListVolumesRequest},
    router::{Host, Settings, View, Watching},
};

/// How long hosts may take to answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// A certificate with fewer days left is spoken of.
const FEW_DAYS: u64 = 14;
/// Clocks that differ by more make logs hard to read, and certificates begin too late.
const CLOCKS: Duration = Duration::from_secs(5);

/// Volumes by name, with where each is: the host, the id, the nodes that it is published to.
type Names = BTreeMap<String, Vec<(String, String, Vec<String>)>>;

/// `known` are the ids that the orchestrator knows, where they are to be compared.
pub(super) async fn examine(config: &Config, known: Option<&BTreeSet<String>>) -> Result<Vec<Finding>> {
    let none = || Error::new(ErrorKind::Invalid, "the configuration has no [cluster]: this host is alone");
    let cluster = config.cluster.as_ref().ok_or_else(none)?;
    // Whichever certificate there is: a router's may ask for more.
    let host = || Credentials::read(&cluster.certificates, Role::Host(HostName::of(&config.node_id)));
    let credentials = Credentials::read(&cluster.certificates, Role::Router).or_else(|_| host())?;
    let settings = Settings { driver_name: config.driver_name.clone(), ..Settings::default() };
    let dns = cluster.dns.as_deref();
    let watching = Watching::start(settings, credentials.clone(), &cluster.hosts, dns, None);
    watching.first_look(PATIENCE).await;
    let view = std::sync::Arc::clone(&watching.view().borrow());
    let mut findings = vec![examine_certificate("certificate here", credentials.expires())];
    let (mut names, mut held) = (Names::new(), Held::default());
    for host in view.hosts() {
        findings.extend(examine_host(host));
        let listed = timeout(PATIENCE, list(host, &mut names, &mut held)).await;
        let late = |_| Err(Error::new(ErrorKind::Unavailable, format!("not within {PATIENCE:?}")));
        if let Err(error) = listed.unwrap_or_else(late) {
            held.silent.insert(host.node.clone());
            let what = format!("what it has cannot be listed from here: {error}");
            findings.extend(
                host.is_up().then(|| finding(Verdict::Warning, &format!("host {}", host.node), what)),
            );
        }
    }
    findings.extend(examine_whole(&view, &names));
    findings.extend(known.into_iter().flat_map(|known| orphans::judge(&view, &held, known)));
    Ok(findings)
}

fn examine_certificate(subject: &str, expires: SystemTime) -> Finding {
    match days_left(expires) {
        0 => finding(Verdict::Failure, subject, "is no longer good: make a new one (`lagan certs`)"),
        days if days < FEW_DAYS => finding(
            Verdict::Warning,
            subject,
            format!("is good for {days} days: make a new one (`lagan certs`)"),
        ),
        days => finding(Verdict::Well, subject, format!("is good for {days} days")),
    }
}

fn examine_host(host: &Host) -> Vec<Finding> {
    let subject = format!("host {}", host.node);
    let mut findings = Vec::new();
    if let Err(error) = host.reach() {
        return vec![finding(Verdict::Failure, &subject, error.to_string())];
    }
    if let Some((manifest, version, when)) = &host.said {
        let pools: Vec<_> = manifest.pools.values().map(|held| held.name.as_str()).collect();
        let what = format!("answers at {}, version {version}, pools: {}", host.address, pools.join(", "));
        findings.push(finding(Verdict::Well, &subject, what));
        if version != env!("CARGO_PKG_VERSION") {
            let what = format!("is of version {version}, this program of {}", env!("CARGO_PKG_VERSION"));
            findings.push(finding(Verdict::Warning, &subject, what));
        }
        for (id, held) in manifest.pools.iter().filter(|(_, held)| held.counts.is_none()) {
            let what = format!("its pool {} ({id}) cannot be used: `lagan doctor` there says why", held.name);
            findings.push(finding(Verdict::Failure, &subject, what));
        }
        findings.extend(examine_clock(&subject, manifest.clock, *when));
    }
    findings.extend(
        host.expires.map(|expires| examine_certificate(&format!("certificate of {}", host.node), expires)),
    );
    findings
}

/// Asks a host what it has.
async fn list(host: &Host, names: &mut Names, held: &mut Held) -> Result<()> {
    let controller = &host.reach()?.controller;
    let failed = |status: tonic::Status| Error::new(ErrorKind::Unavailable, status.message());
    let volumes =
        controller.list_volumes(Request::new(ListVolumesRequest::default())).await.map_err(failed)?;
    let snapshots = ListSnapshotsRequest::default();
    let snapshots = controller.list_snapshots(Request::new(snapshots)).await.map_err(failed)?;
    for entry in volumes.into_inner().entries {
        let volume = entry.volume.unwrap_or_default();
        let name = volume.volume_context.get("name").cloned().unwrap_or_default();
        let nodes = entry.status.unwrap_or_default().published_node_ids;
        held.ids.insert(volume.volume_id.clone(), host.node.clone());
        names.entry(name).or_default().push((host.node.to_string(), volume.volume_id, nodes));
    }
    let cut = snapshots.into_inner().entries.into_iter().filter_map(|entry| entry.snapshot);
    held.ids.extend(cut.map(|snapshot| (snapshot.snapshot_id, host.node.clone())));
    Ok(())
}

/// Its clock against ours at the moment when it told it.
fn examine_clock(subject: &str, clock: SystemTime, told: Instant) -> Option<Finding> {
    let then = SystemTime::now() - told.elapsed();
    let apart = clock.duration_since(then).unwrap_or_else(|behind| behind.duration());
    let what = format!("its clock differs from the one here by {} s", apart.as_secs());
    (apart > CLOCKS).then(|| finding(Verdict::Warning, subject, what))
}

fn examine_whole(view: &View, names: &Names) -> Vec<Finding> {
    let mut findings = Vec::new();
    match view.pools() {
        Ok(pools) => findings.push(finding(
            Verdict::Well,
            "cluster",
            format!("{} pools, each with one host", pools.len()),
        )),
        Err(error) => findings.push(finding(Verdict::Failure, "cluster", error.to_string())),
    }
    for (name, places) in names.iter().filter(|(_, places)| places.len() > 1) {
        let shown = |(host, id, nodes): &(String, String, Vec<String>)| {
            let used = if nodes.is_empty() {
                "published nowhere".to_owned()
            } else {
                format!("published to {}", nodes.join(", "))
            };
            format!("{id} on {host}, {used}")
        };
        let places: Vec<_> = places.iter().map(shown).collect();
        let what = format!(
            "exists {} times: {}. Made while a host did not answer. Keep the one that the orchestrator uses, delete the other by its id",
            places.len(),
            places.join("; ")
        );
        findings.push(finding(Verdict::Failure, &format!("volume {name:?}"), what));
    }
    findings
}
