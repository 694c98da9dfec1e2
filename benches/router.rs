//! What a router adds to a call, beside the same call made to the host itself, in the same run: `make bench-router`. Hosts have
//! modelled pools, which answer at once, so that the way is what is measured: a socket, the router, TLS on loopback, the host,
//! each in a thread of its own. Needs no root.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and fails by panicking")]

#[path = "../tests/support/fakes.rs"]
mod fakes;
#[path = "../tests/support/requests.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod requests;
#[path = "../tests/cluster/rig.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod rig;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use lagan::{
    bytes::Bytes,
    csi::Member,
    id::NodeId,
    peers::Role,
    pool::fake::FakeDisk,
    proto::{
        ControllerGetVolumeRequest, CreateVolumeRequest, ListVolumesRequest,
        controller_client::ControllerClient,
        controller_server::{Controller, ControllerServer},
    },
    router::{Observation, Placing, Router, Settings, View},
};
use requests::delete;
use rig::{Authority, DRIVER, Host, Routed, Told, addresses, modelled, new_on};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request,
    transport::{Channel, Endpoint, Server},
};

const ROUNDS: usize = 7;
const CALLS: usize = 400;

type Client = ControllerClient<Channel>;

/// A figure of a set of calls: the middle one, and the one that 1 of 100 exceeds.
#[derive(Clone, Copy)]
struct Spread {
    middle: Duration,
    slowest_of_100: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { middle: times[times.len() / 2], slowest_of_100: times[times.len() * 99 / 100] }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn report(what: &str, figure: &str) {
    println!("  {what:<58} {figure}");
}

async fn client(socket: &Path) -> Client {
    let socket: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
    ControllerClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// A router behind a socket of its own, in a thread of its own.
async fn route(authority: &Authority, hosts: &[Host], socket: &Path) -> Client {
    let (credentials, socket) = (authority.of(Role::Router), socket.to_owned());
    let listed: Vec<_> = addresses(hosts).into_iter().map(|(name, at)| (name.to_owned(), at)).collect();
    let (told, hears) = tokio::sync::oneshot::channel();
    let at = socket.clone();
    drop(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listed: Vec<_> = listed.iter().map(|(name, at)| (name.as_str(), *at)).collect();
            let routed = Routed::over(credentials, &listed, Told::default()).await;
            let calls = UnixListenerStream::new(UnixListener::bind(at).unwrap());
            let service = ControllerServer::new(routed.router.clone());
            told.send(()).unwrap();
            Server::builder().add_service(service).serve_with_incoming(calls).await.unwrap();
        });
    }));
    hears.await.unwrap();
    client(&socket).await
}

async fn gets(client: &mut Client, id: &str) -> Vec<Duration> {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begun = Instant::now();
        client.controller_get_volume(ControllerGetVolumeRequest { volume_id: id.to_owned() }).await.unwrap();
        times.push(begun.elapsed());
    }
    times
}

/// A volume made and deleted, where the topology names these hosts.
async fn lives(client: &mut Client, nodes: &[&str], round: usize) -> Vec<Duration> {
    let mut times = Vec::with_capacity(CALLS / 4);
    for number in 0..CALLS / 4 {
        let request: CreateVolumeRequest = new_on(&format!("{round}-{number}"), nodes);
        let begun = Instant::now();
        let made = client.create_volume(request).await.unwrap().into_inner().volume.unwrap();
        client.delete_volume(delete(&made.volume_id)).await.unwrap();
        times.push(begun.elapsed());
    }
    times
}

fn compare(what: &str, direct: Vec<Duration>, routed: Vec<Duration>) {
    let (direct, routed) = (Spread::of(direct), Spread::of(routed));
    let added = micros(routed.middle) - micros(direct.middle);
    report(
        what,
        &format!("{:.0} µs, direct {:.0} µs: {added:+.0} µs", micros(routed.middle), micros(direct.middle)),
    );
}

async fn calls(client: &mut Client, hosts: &mut [Host]) {
    let mut direct = self::client(&hosts[0].socket).await;
    let made = client.create_volume(new_on("kept", &["n0"])).await.unwrap().into_inner().volume.unwrap();
    let (mut times, mut making) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        times[0].extend(gets(&mut direct, &made.volume_id).await);
        times[1].extend(gets(client, &made.volume_id).await);
        making[0].extend(lives(&mut direct, &["n0"], round).await);
        making[1].extend(lives(client, &["n0"], round).await);
        making[2].extend(lives(client, &["n0", "n1", "n2"], round).await);
    }
    println!("A call through a router, in the middle, {} of each", ROUNDS * CALLS);
    let [one, other] = times;
    compare("ControllerGetVolume", one, other.clone());
    let [one, routed, any] = making;
    compare("CreateVolume and DeleteVolume, one host allowed", one.clone(), routed);
    compare("the same, three hosts allowed: each is asked first", one, any);
    println!("One host of three goes down");
    let before = Spread::of(other);
    hosts[2].stop();
    let mut after = Vec::new();
    for _ in 0..ROUNDS {
        after.extend(gets(client, &made.volume_id).await);
    }
    let after = Spread::of(after);
    let ratio = micros(after.slowest_of_100) / micros(before.slowest_of_100);
    report(
        "ControllerGetVolume of another, 99 of 100 within",
        &format!(
            "{:.0} µs, before {:.0} µs: {ratio:.2} times",
            micros(after.slowest_of_100),
            micros(before.slowest_of_100)
        ),
    );
}

/// Hosts at hand, without a network between: what the router itself needs for a list.
async fn lists() {
    const HOSTS: usize = 1000;
    const VOLUMES: usize = 10;
    let mut seen = Vec::new();
    for number in 0..HOSTS {
        let node: NodeId = format!("h{number}").parse().unwrap();
        let (services, facts) = modelled(&node, &FakeDisk::new(Bytes::gib(100))).await;
        let member = Member::new(services.own().unwrap());
        for volume in 0..VOLUMES {
            let request = new_on(&format!("{number}-{volume}"), &[node.as_str()]);
            member.controller.create_volume(Request::new(request)).await.unwrap();
        }
        let said = Some((facts.manifest(), String::new(), Instant::now()));
        let (address, expected) = (node.to_string(), None);
        seen.push(Observation { address, expected, said, reach: Ok(()), expires: None, member });
    }
    let settings = Settings { driver_name: DRIVER.to_owned(), ..Settings::default() };
    let begun = Instant::now();
    let view = Arc::new(View::of(&seen, &settings, None));
    println!("Lists of {HOSTS} hosts with {VOLUMES} volumes each");
    report(
        "what is known of them, put together anew",
        &format!("{:.1} ms", micros(begun.elapsed()) / 1000.0),
    );
    let (_keep, view) = tokio::sync::watch::channel(view);
    let router = Router::new(view, seen[0].member.clone(), DRIVER, Placing::default());
    for (what, max_entries) in [("a page of 100", 100), ("all", 0)] {
        let mut times = Vec::new();
        for _ in 0..20 {
            let begun = Instant::now();
            let request = ListVolumesRequest { max_entries, ..ListVolumesRequest::default() };
            let found = router.list_volumes(Request::new(request)).await.unwrap().into_inner();
            times.push(begun.elapsed());
            assert_eq!(found.entries.len(), if max_entries == 0 { HOSTS * VOLUMES } else { 100 });
        }
        report(what, &format!("{:.1} ms", micros(Spread::of(times).middle) / 1000.0));
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let mut hosts = Vec::new();
    for name in ["n0", "n1", "n2"] {
        hosts.push(Host::start(name, authority.of_host(name), Bytes::gib(100), &[]).await);
    }
    let mut client = route(&authority, &hosts, &directory.path().join("few.sock")).await;
    calls(&mut client, &mut hosts).await;
    lists().await;
}
