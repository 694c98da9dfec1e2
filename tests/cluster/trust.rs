//! Who may connect, who may ask for what, and that certificates are replaced without a restart.

use std::{fs, time::Duration};

use lagan::{
    bytes::Bytes,
    peers::{Credentials, HostName, Role, Seen, connect},
    proto::{
        CreateVolumeRequest, GetPluginInfoRequest, NodeGetInfoRequest, controller_client::ControllerClient,
        controller_server::Controller, identity_client::IdentityClient, node_client::NodeClient,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Request};

use crate::{
    requests::{check, delete},
    rig::{Authority, Host, Routed, Told, addresses, new, new_on, two},
};

/// Whether a host says who it is to somebody with these credentials.
async fn is_answered(address: &str, credentials: &Credentials, seen: &Seen) -> bool {
    let mut identity = IdentityClient::new(connect(address, credentials, seen));
    identity.get_plugin_info(GetPluginInfoRequest {}).await.is_ok()
}

#[tokio::test]
async fn only_certificates_of_the_same_authority_connect() {
    let (authority, hosts) = two().await;
    let address = hosts[0].address.to_string();
    let known = authority.of(Role::Router);
    assert!(is_answered(&address, &known, &Seen::default()).await);
    // Another authority's, on either side.
    let stranger = Authority::new();
    assert!(!is_answered(&address, &stranger.of(Role::Router), &Seen::default()).await);
    // A certificate of the right authority that names nobody.
    for name in ["ca.crt", "ca.key"] {
        fs::copy(authority.file(name), stranger.file(name)).unwrap();
    }
    assert!(
        is_answered(&address, &Credentials::read(authority.path(), Role::Router).unwrap(), &Seen::default())
            .await
    );
    // No TLS at all: the connection ends without an answer.
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), plain.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "the connection stays open");
    assert!(!said.starts_with(&[0, 0]), "no frame of HTTP/2 comes back: {said:?}");
}

#[tokio::test]
async fn a_host_is_who_its_certificate_says() {
    let (authority, hosts) = two().await;
    let address = hosts[0].address.to_string();
    let router = authority.of(Role::Router);
    let only = |name: &str| Seen::only(HostName::of(&name.parse().unwrap()));
    assert!(is_answered(&address, &router, &only("n1")).await);
    assert!(!is_answered(&address, &router, &only("n2")).await, "n1 was taken for n2");
    // Two addresses that were exchanged: both hosts are missing, no call reaches the wrong one.
    let known = [("n1", hosts[1].address), ("n2", hosts[0].address)];
    let routed = Routed::over(authority.of(Role::Router), &known, Told::default()).await;
    check(routed.router.create_volume(Request::new(new_on("a", &["n1"]))).await, Code::Unavailable);
    // One that says in its calls that it is another one than its certificate says.
    let liar = Host::start("n1", authority.of_host("n3"), Bytes::gib(1), &[]).await;
    let routed = Routed::over(authority.of(Role::Router), &[("n3", liar.address)], Told::default()).await;
    check(routed.router.create_volume(Request::new(new_on("a", &["n3"]))).await, Code::Unavailable);
}

#[tokio::test]
async fn a_host_may_call_another_only_where_it_is_listed() {
    let authority = Authority::new();
    let host = Host::start("n1", authority.of_host("n1"), Bytes::gib(10), &["n2"]).await;
    let address = host.address.to_string();
    for (credentials, expected) in [
        (authority.of(Role::Router), Code::Ok),
        (authority.of_host("n2"), Code::Ok),
        (authority.of_host("n3"), Code::PermissionDenied),
        (authority.of_host("n1"), Code::PermissionDenied),
    ] {
        let channel = connect(&address, &credentials, &Seen::default());
        let mut controller = ControllerClient::new(channel.clone());
        let request: CreateVolumeRequest = new(&format!("{:?}", credentials.role()));
        check(controller.create_volume(request).await, expected);
        check(controller.delete_volume(delete("v.x")).await, expected);
        // Node calls are for the orchestrator on the host itself.
        check(
            NodeClient::new(channel.clone()).node_get_info(NodeGetInfoRequest {}).await,
            Code::PermissionDenied,
        );
        let mut import = Request::new(new("import"));
        import
            .metadata_mut()
            .insert_bin(lagan::proto::IMPORT, tonic::metadata::MetadataValue::from_bytes(b"device:/dev/sda"));
        check(controller.create_volume(import).await, Code::PermissionDenied);
        check(IdentityClient::new(channel).get_plugin_info(GetPluginInfoRequest {}).await, Code::Ok);
    }
}

#[tokio::test]
async fn certificates_are_replaced_without_a_restart() {
    let authority = Authority::new();
    let host = Host::start("n1", authority.of_host("n1"), Bytes::gib(10), &[]).await;
    let router = authority.of(Role::Router);
    let address = host.address.to_string();
    assert!(is_answered(&address, &router, &Seen::default()).await);
    // A new authority signs everybody anew, in the same places; the host and the router are not told.
    let next = Authority::new();
    next.of_host("n1");
    let new_router = next.of(Role::Router);
    for name in ["ca.crt", "host-n1.key", "host-n1.crt"] {
        fs::copy(next.file(name), authority.file(name)).unwrap();
    }
    assert!(!is_answered(&address, &router, &Seen::default()).await, "the router's own is still the old one");
    assert!(is_answered(&address, &new_router, &Seen::default()).await);
    for name in ["router.key", "router.crt"] {
        fs::copy(next.file(name), authority.file(name)).unwrap();
    }
    assert!(is_answered(&address, &router, &Seen::default()).await);
    // A file that is no good leaves the good ones in use.
    fs::write(authority.file("router.crt"), "nonsense").unwrap();
    assert!(is_answered(&address, &router, &Seen::default()).await);
    assert!(Credentials::read(authority.path(), Role::Router).is_err());
    // That of another one under our name.
    fs::copy(authority.file("host-n1.crt"), authority.file("router.crt")).unwrap();
    assert!(Credentials::read(authority.path(), Role::Router).is_err());
    assert!(addresses(&[host]).len() == 1);
}

/// The beginning of a handshake of TLS 1.2, as a client of that version would send it.
fn hello_of_tls_1_2() -> Vec<u8> {
    // Version, random, no session, one cipher (ECDHE_ECDSA_WITH_AES_128_GCM_SHA256), no compression, no extension.
    let hello = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0], &[0, 0]].concat();
    let length = u8::try_from(hello.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], &hello[..]].concat()
}

#[tokio::test]
async fn an_older_tls_or_an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let host = Host::start("n1", authority.of_host("n1"), Bytes::gib(1), &[]).await;
    let address = host.address.to_string();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(&hello_of_tls_1_2()).await.unwrap();
    let mut said = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "the connection stays open");
    // A fatal alert, and nothing else: handshake failure, or protocol version.
    assert!(said.len() == 7 && [said[0], said[5]] == [21, 2] && [40, 70].contains(&said[6]), "{said:?}");
    // A router whose certificate has ended, signed by the right authority.
    let router = authority.of(Role::Router);
    assert!(is_answered(&address, &router, &Seen::default()).await);
    let read = |name: &str| fs::read_to_string(authority.file(name)).unwrap();
    let key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap();
    let key = rcgen::KeyPair::from_pem(&read("router.key")).unwrap();
    let mut ended = rcgen::CertificateParams::new(["router.lagan".to_owned()]).unwrap();
    (ended.not_before, ended.not_after) =
        (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    ended.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    for (end, expected) in [(ended.not_after, false), (rcgen::date_time_ymd(2999, 1, 1), true)] {
        ended.not_after = end;
        fs::write(authority.file("router.crt"), ended.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        // One that is read may still be refused.
        let answered = match Credentials::read(authority.path(), Role::Router) {
            Ok(credentials) => is_answered(&address, &credentials, &Seen::default()).await,
            Err(_) => false,
        };
        assert_eq!(answered, expected, "good until {end}");
    }
}
