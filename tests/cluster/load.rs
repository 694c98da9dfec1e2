//! Many connections, and some that say nothing: nobody keeps another one out.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lagan::{
    bytes::Bytes,
    peers::{Credentials, Role, Seen, connect},
    proto::{GetPluginInfoRequest, identity_client::IdentityClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tonic::transport::Channel;

use crate::rig::{Authority, Host};

/// As many as one peer may have, and as many handshakes as there may be from one address.
const SHARE: usize = 64;
/// How long something may take on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection of its own to a host, where it is let in.
async fn connection(address: &str, credentials: &Credentials) -> Option<IdentityClient<Channel>> {
    let mut client = IdentityClient::new(connect(address, credentials, &Seen::default()));
    client.get_plugin_info(GetPluginInfoRequest {}).await.ok().map(|_| client)
}

/// A connection from another address of this machine, on which nothing is said.
async fn silent(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn one_peer_leaves_room_for_the_others() {
    let authority = Authority::new();
    let host = Host::start("n1", authority.of_host("n1"), Bytes::gib(1), &[]).await;
    let address = host.address.to_string();
    let (greedy, router) = (authority.of_host("n3"), authority.of(Role::Router));
    let mut held = Vec::new();
    for _ in 0..2 * SHARE {
        held.extend(connection(&address, &greedy).await);
    }
    assert_eq!(held.len(), SHARE, "connections of one peer");
    assert!(connection(&address, &router).await.is_some(), "the router has a share of its own");
    // What is given back can be had again.
    held.truncate(SHARE / 2);
    let until = Instant::now() + PATIENCE;
    while connection(&address, &greedy).await.is_none() {
        assert!(Instant::now() < until, "a share that was given back is not to be had");
    }
}

#[tokio::test]
async fn handshakes_that_never_end_keep_nobody_out() {
    let authority = Authority::new();
    let host = Host::start("n1", authority.of_host("n1"), Bytes::gib(1), &[]).await;
    let (address, router) = (host.address.to_string(), authority.of(Role::Router));
    let mut held = Vec::new();
    for number in 0..1000 {
        let mut stream = silent(host.address).await;
        if number % 2 == 0 {
            // The beginning of a hello.
            stream.write_all(&[22, 3, 1, 2]).await.unwrap_or_default();
        }
        held.push(stream);
    }
    assert!(connection(&address, &router).await.is_some(), "the router waits for those that say nothing");
    // None of them stays: those beyond a share end at once, the others when their time is up.
    for mut stream in held {
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "a silent connection stays");
    }
}
