//! How kubelet learns of the driver: what it is told, and that the socket is there again whatever happens to it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use lagan::{
    kubelet::Registration,
    proto::registration::{
        InfoRequest, PluginInfo, RegistrationStatus, registration_client::RegistrationClient,
    },
};
use tokio::{net::UnixStream, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

const SOCKET: &str = "reg@lagan.test.sock";

struct Rig {
    directory: tempfile::TempDir,
    keeper: JoinHandle<()>,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("registry")).unwrap();
        Self::over(directory)
    }

    fn over(directory: tempfile::TempDir) -> Self {
        let registration = Registration {
            directory: directory.path().join("registry"),
            driver_name: "lagan.test".into(),
            endpoint: "/var/lib/kubelet/plugins/lagan.test/csi.sock".into(),
        };
        Self { directory, keeper: tokio::spawn(registration.keep()) }
    }

    fn registry(&self) -> PathBuf {
        self.directory.path().join("registry")
    }

    fn socket(&self) -> PathBuf {
        self.registry().join(SOCKET)
    }

    /// As kubelet does it, once somebody listens.
    async fn client(&self) -> RegistrationClient<Channel> {
        let begun = Instant::now();
        loop {
            if let Ok(client) = connect(self.socket()).await {
                return client;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "no socket");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn asked(&self) -> PluginInfo {
        self.client().await.get_info(InfoRequest {}).await.unwrap().into_inner()
    }
}

/// An inode may get its number from one that is gone, but not its time.
fn identity(path: &Path) -> Option<(u64, i64, i64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.ino(), found.ctime(), found.ctime_nsec()))
}

/// As gRPC of Go writes the path of a socket as an authority, where it was dialled by the path alone, as kubelet does.
fn authority(path: &Path) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]@".contains(c);
    let escaped = |c: char| if allowed(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) };
    path.to_string_lossy().chars().map(escaped).collect()
}

async fn connect(path: PathBuf) -> Result<RegistrationClient<Channel>, tonic::transport::Error> {
    let origin = format!("http://{}", authority(&path));
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_shared(origin)?.connect_with_connector(connector).await?;
    Ok(RegistrationClient::new(channel))
}

#[tokio::test]
async fn kubelet_is_told_what_there_is() {
    let rig = Rig::new();
    let told = rig.asked().await;
    assert_eq!((told.r#type.as_str(), told.name.as_str()), ("CSIPlugin", "lagan.test"));
    assert_eq!(told.endpoint, "/var/lib/kubelet/plugins/lagan.test/csi.sock");
    assert_eq!(told.supported_versions, ["1.0.0"]);
    let registered = RegistrationStatus { plugin_registered: true, error: String::new() };
    rig.client().await.notify_registration_status(registered).await.unwrap();
    let before = identity(&rig.socket());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(before.is_some() && identity(&rig.socket()) == before, "it is left alone");

    rig.keeper.abort();
    let begun = Instant::now();
    while rig.socket().exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the socket was left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_socket_comes_back() {
    let rig = Rig::new();
    rig.asked().await;
    // Somebody clears the directory.
    fs::remove_file(rig.socket()).unwrap();
    assert_eq!(rig.asked().await.name, "lagan.test");
    // A kubelet that is set up anew makes the directory anew.
    fs::rename(rig.registry(), rig.directory.path().join("old")).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    fs::create_dir(rig.registry()).unwrap();
    assert_eq!(rig.asked().await.name, "lagan.test");
}

#[tokio::test]
async fn what_a_killed_process_left_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("registry").join(SOCKET);
    fs::create_dir(directory.path().join("registry")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists() && connect(socket.clone()).await.is_err());
    assert_eq!(Rig::over(directory).asked().await.name, "lagan.test");
}

#[tokio::test]
async fn a_refusal_is_followed_by_another_try() {
    let rig = Rig::new();
    let mut client = rig.client().await;
    let before = identity(&rig.socket());
    let refused = RegistrationStatus { plugin_registered: false, error: "the name is taken".into() };
    client.notify_registration_status(refused).await.unwrap();
    let begun = Instant::now();
    while [None, before].contains(&identity(&rig.socket())) {
        assert!(begun.elapsed() < Duration::from_secs(10), "the socket stays as it was");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.asked().await.name, "lagan.test");
}
