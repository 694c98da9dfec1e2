//! `lagan host`: the other hosts as the daemon here sees them, and how one that is lost for good is given up.

use std::{collections::BTreeMap, process::ExitCode};

use clap::Subcommand;
use serde_json::Value;

use super::{Common, block_on, client::figures, out};
use crate::{
    config::{Config, Mode},
    error::{Error, ErrorKind, Result},
    id::NodeId,
};

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// Show the hosts that the daemon passes calls on to.
    List,
    /// Say what would be lost with a host, and what to write where, so that its volumes count as gone. Changes nothing.
    Forget {
        /// Its name.
        name: NodeId,
    },
}

const COLUMNS: &[&str] = &["host", "answers", "seen_secs_ago", "pool", "id", "volumes", "snapshots", "bytes"];

/// What is known of a pool of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    name: String,
    /// `None` where the pool could not be used, and nobody knows.
    volumes: Option<u64>,
    snapshots: Option<u64>,
    bytes: Option<u64>,
}

/// What is known of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    up: bool,
    seen_secs_ago: i64,
    pools: BTreeMap<String, Held>,
}

pub(super) fn run(common: &Common, command: HostCommand) -> Result<ExitCode> {
    let config = common.load(Mode::Router).or_else(|_| common.load(Mode::All))?;
    let known = known(&block_on(figures(&config))?);
    match command {
        HostCommand::List => list(common, &known),
        HostCommand::Forget { name } => forget(&config, &name, &known),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn list(common: &Common, known: &BTreeMap<String, Known>) -> Result<()> {
    let mut rows = out::Rows::new(COLUMNS);
    for (host, about) in known {
        let up = if about.up { "yes" } else { "no" };
        let seen: Value = if about.seen_secs_ago < 0 { Value::Null } else { about.seen_secs_ago.into() };
        if about.pools.is_empty() {
            let none = || Value::Null;
            rows.add([host.as_str().into(), up.into(), seen.clone(), none(), none(), none(), none(), none()]);
        }
        for (id, held) in &about.pools {
            let size = |bytes| out::size(i64::try_from(bytes).unwrap_or(i64::MAX), common.output);
            let bytes = held.bytes.map_or(Value::Null, size);
            let (volumes, snapshots) = (held.volumes.into(), held.snapshots.into());
            let (name, id) = (held.name.as_str().into(), id.as_str().into());
            rows.add([host.as_str().into(), up.into(), seen.clone(), name, id, volumes, snapshots, bytes]);
        }
    }
    rows.print(common.output)
}

/// What there is to write: the daemon stores nothing, so its configuration is where this is remembered.
fn forget(config: &Config, name: &NodeId, known: &BTreeMap<String, Known>) -> Result<()> {
    let about = known.get(name.as_str()).ok_or_else(|| {
        let what = format!(
            "host {name} is not known to the daemon here, which may have started since it was lost: its pools are the \
             middle part of its volumes' ids; write them into forgotten_pools, and {name:?} into [cluster] forgotten_hosts",
            name = name.as_str()
        );
        Error::new(ErrorKind::NotFound, what)
    })?;
    if about.up {
        let what = format!("host {name} answers: what is on it can be deleted, and moved, the ordinary way");
        return Err(Error::new(ErrorKind::InUse, what));
    }
    out::talk(&format!(
        "Host {name} answered {} s ago for the last time. With it would be lost:",
        about.seen_secs_ago
    ));
    let elsewhere = |id: &String| {
        known.iter().find(|(other, about)| {
            other.as_str() != name.as_str() && about.up && about.pools.contains_key(id)
        })
    };
    for (id, held) in &about.pools {
        let shown = |count: Option<u64>| {
            count.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string())
        };
        let (volumes, snapshots, bytes) = (shown(held.volumes), shown(held.snapshots), shown(held.bytes));
        let what = match elsewhere(id) {
            Some((other, _)) => format!("nothing: it is on host {other} now"),
            None => format!("{volumes} volumes, {snapshots} snapshots, {bytes} bytes promised"),
        };
        out::talk(&format!("  pool {} ({id}): {what}", held.name));
    }
    out::talk(
        "A disk that is whole can be moved to another host instead (`lagan pool adopt`), and nothing is lost.\n\
         To give it up, write these into the configuration of every router and start them anew. From then on its volumes count\n\
         as gone, and it is refused if it returns, until it is taken off the lists again:",
    );
    let mut pools: Vec<String> = config.forgotten_pools.iter().map(ToString::to_string).collect();
    pools.extend(about.pools.keys().filter(|id| elsewhere(id).is_none()).cloned());
    let mut hosts: Vec<String> =
        config.cluster.iter().flat_map(|cluster| &cluster.forgotten_hosts).map(ToString::to_string).collect();
    hosts.push(name.to_string());
    let list = |mut all: Vec<String>| {
        all.sort();
        all.dedup();
        let quoted = all.into_iter().map(|text| Value::from(text).to_string());
        quoted.collect::<Vec<_>>().join(", ")
    };
    out::line(&format!("forgotten_pools = [{}]", list(pools)))?;
    out::line(&format!("# under [cluster]\nforgotten_hosts = [{}]", list(hosts)))
}

/// The hosts that metrics name.
fn known(metrics: &str) -> BTreeMap<String, Known> {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    for line in metrics.lines() {
        let Some((metric, labels, value)) = sample(line) else { continue };
        let Some(host) = labels.get("host") else { continue };
        let about = known.entry(host.clone()).or_default();
        // -1 stands for what is not known.
        let number = value.parse::<u64>().ok();
        match metric {
            "lagan_host_up" => about.up = number == Some(1),
            "lagan_host_seconds_since_seen" => about.seen_secs_ago = value.parse().unwrap_or(-1),
            _ => {
                let Some(id) = labels.get("id") else { continue };
                let held = about.pools.entry(id.clone()).or_default();
                held.name = labels.get("pool").cloned().unwrap_or_default();
                match metric {
                    "lagan_host_pool_volumes" => held.volumes = number,
                    "lagan_host_pool_snapshots" => held.snapshots = number,
                    "lagan_host_pool_bytes_committed" => held.bytes = number,
                    _ => {}
                }
            }
        }
    }
    known
}

/// A line of Prometheus' text format: `metric{label="value",…} value`.
fn sample(line: &str) -> Option<(&str, BTreeMap<String, String>, &str)> {
    let (metric, rest) = line.split_once('{')?;
    let (labels, value) = rest.rsplit_once("} ")?;
    let mut found = BTreeMap::new();
    let mut rest = labels;
    while let Some((name, after)) = rest.split_once("=\"") {
        let mut text = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next()? {
                (_, '\\') => match letters.next()?.1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (at, '"') => break at,
                (_, letter) => text.push(letter),
            }
        };
        found.insert(name.trim_start_matches(',').to_owned(), text);
        rest = after.get(end + 1..)?;
    }
    Some((metric, found, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_from_metrics() {
        let known = known(
            "# HELP lagan_host_up x\nlagan_host_up{host=\"n1\"} 1\nlagan_host_up{host=\"a \\\"b\\\\\"} 0\n\
             lagan_host_seconds_since_seen{host=\"n1\"} 3\nlagan_host_seconds_since_seen{host=\"a \\\"b\\\\\"} -1\n\
             lagan_host_pool_volumes{host=\"n1\",pool=\"fast\",id=\"00\"} 7\n\
             lagan_host_pool_bytes_committed{host=\"n1\",pool=\"fast\",id=\"00\"} 4096\nlagan_volumes 3\n",
        );
        let pool = Held { name: "fast".into(), volumes: Some(7), snapshots: None, bytes: Some(4096) };
        let pools = BTreeMap::from([("00".to_owned(), pool)]);
        assert_eq!(known["n1"], Known { up: true, seen_secs_ago: 3, pools });
        assert_eq!(known["a \"b\\"].seen_secs_ago, -1);
        assert_eq!(known.len(), 2);
    }
}
