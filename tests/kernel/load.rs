//! A real driver under more than it can do: each call is served or refused, none is stuck, and a probe is answered all the
//! while. How much later than otherwise is printed; a busy machine fails nobody.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream as Stream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hyper_util::rt::TokioIo;
use lagan::proto::{
    CreateVolumeRequest, GetCapacityRequest, ListVolumesRequest, NodeGetInfoRequest, ProbeRequest,
    controller_client::ControllerClient, identity_client::IdentityClient, node_client::NodeClient,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::UnixStream, runtime::Builder, time::timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    requests::create_with,
    rig::{Daemon, Ground, Kind, MIB, filesystem},
};

/// How long anything may take on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most memory of the driver meanwhile, as the kernel counts it.
const MEMORY_MIB: u64 = 256;

/// A connection of its own.
async fn connection(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// Probes, each on a connection of its own, until it is told to stop: how long each took.
fn probe_until(stop: &Arc<AtomicBool>, socket: PathBuf) -> thread::JoinHandle<Vec<Duration>> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut took = Vec::new();
            while !stop.load(Ordering::Relaxed) || took.len() < 20 {
                let begun = Instant::now();
                let probe = async {
                    IdentityClient::new(connection(&socket).await).probe(ProbeRequest {}).await.unwrap();
                };
                timeout(PATIENCE, probe).await.expect("a probe is answered");
                took.push(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            took.sort();
            took
        })
    })
}

/// What a client of HTTP/2 begins with that takes no data, and calls of ListVolumes behind it.
fn calls_without_reading(count: u32) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u32, content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS: the first window of each stream is 0.
    bytes.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    let literal =
        |name: &[u8], value: &str| [name, &[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    // :method POST, :scheme http, :path, :authority, content-type, te (RFC 7541, appendix A).
    let mut head = vec![0x83, 0x86];
    head.extend(literal(&[0x04], "/csi.v1.Controller/ListVolumes"));
    head.extend(literal(&[0x01], "x"));
    head.extend(literal(&[0x0f, 0x10], "application/grpc"));
    head.extend(literal(&[0x00, 2, b't', b'e'], "trailers"));
    for call in 0..count {
        bytes.extend(frame(1, 4, 2 * call + 1, &head));
        bytes.extend(frame(0, 1, 2 * call + 1, &[0; 5]));
    }
    bytes
}

/// A refusal is one that says so; whatever was lost is a failure.
#[track_caller]
fn expect_word<T>(answer: Result<T, Status>) -> bool {
    if let Err(status) = &answer {
        let legal = [Code::InvalidArgument, Code::OutOfRange, Code::ResourceExhausted, Code::Aborted];
        assert!(legal.contains(&status.code()), "{status:?}");
    }
    answer.is_ok()
}

/// Ten thousand calls at the same time, of four kinds; how many were served.
async fn parallel_calls(socket: &Path) -> usize {
    let mut channels = Vec::new();
    for _ in 0..20 {
        channels.push(connection(socket).await);
    }
    let calls = (0..10_000_usize).map(|number| {
        let channel = channels[number % channels.len()].clone();
        async move {
            let mut controller = ControllerClient::new(channel.clone());
            match number % 4 {
                0 => expect_word(controller.list_volumes(ListVolumesRequest::default()).await),
                1 => expect_word(controller.get_capacity(GetCapacityRequest::default()).await),
                2 => expect_word(NodeClient::new(channel).node_get_info(NodeGetInfoRequest {}).await),
                // More than there may be at a time; some join each other.
                _ => {
                    let request = create_with(&format!("v{}", number % 40), 16 * MIB, &filesystem("ext4"));
                    expect_word(controller.create_volume(request).await)
                }
            }
        }
    });
    join_all(calls).await.into_iter().filter(|served| *served).count()
}

/// Messages as long as they may be, and longer, many at a time.
async fn long_messages(socket: &Path) {
    let channel = connection(socket).await;
    let calls = (0..32_usize).map(|number| {
        let mut controller = ControllerClient::new(channel.clone());
        let name = "n".repeat((4 << 20) - 4096 + 8192 * (number % 2));
        async move {
            let answer = controller
                .create_volume(CreateVolumeRequest { name, ..CreateVolumeRequest::default() })
                .await;
            assert!(!expect_word(answer), "nothing is made of it");
        }
    });
    join_all(calls).await;
}

/// Everything at once, kept until the end.
struct Idlers(Vec<Stream>);

impl Idlers {
    /// Three thousand connections: silent ones, some that stop amid a greeting, some that ask and never read.
    fn new(socket: &Path) -> Self {
        let (calls, mut idlers) = (calls_without_reading(100), Vec::new());
        for number in 0..3000 {
            let mut stream = Stream::connect(socket).unwrap();
            match number % 60 {
                0 => stream.write_all(&calls).unwrap(),
                1..20 => stream.write_all(&calls[..10]).unwrap(),
                _ => {}
            }
            idlers.push(stream);
        }
        Self(idlers)
    }
}

fn memory_mib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[tokio::test]
async fn a_driver_under_load_answers() {
    let mut ground = Ground::new(Kind::Image);
    ground.settings = "max_operations = 32\n".to_owned();
    // As a service manager starts it.
    let mut daemon = ground.connect(ground.spawn_in("ulimit -Sn 1024", &[])).await;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let socket = daemon.socket.clone();
    let (stop, rest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let idle = probe_until(&rest, socket.clone()).join().unwrap();
    let probes = probe_until(&stop, socket.clone());
    let begun = Instant::now();
    let idlers = Idlers::new(&socket);
    let served = timeout(PATIENCE, parallel_calls(&socket)).await.expect("every call is served or refused");
    timeout(PATIENCE, long_messages(&socket)).await.expect("long messages are refused");
    let took = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    let busy = probes.join().unwrap();
    println!(
        "{} idlers, 10000 calls ({served} served, the others refused), 32 messages of 4 MiB in {took:.1?}; a probe took {:.1?}, \
         and {:.1?} meanwhile ({:.1} times; one of ten more than {:.1?}, at most {:.1?} of {}); {} MiB at most",
        idlers.0.len(),
        idle[idle.len() / 2],
        busy[busy.len() / 2],
        busy[busy.len() / 2].as_secs_f64() / idle[idle.len() / 2].as_secs_f64(),
        busy[busy.len() * 9 / 10],
        busy[busy.len() - 1],
        busy.len(),
        memory_mib(&daemon)
    );
    assert!(served >= 7500, "what reads only is always served");
    assert!(memory_mib(&daemon) <= MEMORY_MIB, "{} MiB", memory_mib(&daemon));
    drop(idlers);
    // As before.
    let volume = daemon.create("after", 16, &filesystem("ext4")).await;
    daemon.delete(&volume.volume_id).await;
    assert!(daemon.stop().success());
}
