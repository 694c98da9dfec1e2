//! The router as a person meets it: the program, its socket, and the commands that look at a cluster.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use lagan::{id::VolumeId, peers::Role};
use serde_json::Value;

use crate::rig::{Authority, Host, two};

const LAGAN: &str = env!("CARGO_BIN_EXE_lagan");

/// A router as a process of its own.
struct Router {
    directory: tempfile::TempDir,
    http: u16,
    process: Option<Child>,
}

impl Router {
    fn new(authority: &Authority, hosts: &[Host], extra: &str, more: &str) -> Self {
        authority.of(Role::Router);
        let directory = tempfile::tempdir().unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listed = hosts.iter().map(|host| format!("{:?} = \"{}\"\n", host.node.as_str(), host.address));
        let text = format!(
            "endpoint = \"{}\"\nhttp = \"127.0.0.1:{http}\"\n{extra}\n[cluster]\ncertificates = {:?}\n{more}\n[cluster.hosts]\n{}",
            directory.path().join("csi.sock").display(),
            authority.path(),
            listed.collect::<String>()
        );
        fs::write(directory.path().join("router.toml"), text).unwrap();
        Self { directory, http, process: None }
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("router.toml")
    }

    #[expect(clippy::disallowed_methods, reason = "tests run the program as a person would")]
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LAGAN);
        command.arg("--config").arg(self.config()).args(arguments).env_remove("CSI_ENDPOINT");
        command
    }

    fn serve(&mut self) {
        let serve = ["serve", "--mode", "router", "--log-level", "warn"];
        self.process = Some(self.command(&serve).stdout(Stdio::null()).spawn().unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while !self.directory.path().join("csi.sock").exists() {
            assert!(Instant::now() < until, "the router does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command prints, as JSON.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--output", "json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

#[tokio::test]
async fn a_router_is_used_like_any_driver() {
    let (authority, mut hosts) = two().await;
    let mut router = Router::new(&authority, &hosts, "", "default_host = \"n2\"");
    router.serve();
    let made = router.json(&["volume", "create", "db", "--size", "1GiB"]);
    let id = made[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(router.json(&["volume", "list"]).as_array().unwrap().len(), 1);
    let listed = router.json(&["host", "list"]);
    let of = |node: &str| listed.as_array().unwrap().iter().find(|row| row["host"] == node).unwrap().clone();
    assert_eq!(of("n1")["answers"], "yes");
    // What a host holds is said within a few seconds.
    let until = Instant::now() + Duration::from_secs(20);
    while router.json(&["host", "list"])[1]["volumes"] != 1 {
        assert!(Instant::now() < until, "{}", router.json(&["host", "list"]));
        std::thread::sleep(Duration::from_millis(100));
    }
    let refused = router.run(&["host", "forget", "n2"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("answers"), "{refused:?}");
    hosts[1].stop();
    let until = Instant::now() + Duration::from_secs(20);
    while router.json(&["host", "list"])[1]["answers"] != "no" {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(100));
    }
    let gone = router.run(&["volume", "delete", &id, "--yes"]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("UNAVAILABLE"), "{gone:?}");
    let forget = router.run(&["host", "forget", "n2"]);
    let said = String::from_utf8_lossy(&forget.stderr).into_owned();
    assert!(forget.status.success() && said.contains("1 volumes, 0 snapshots, 1073741824 bytes"), "{said}");
    let lines = String::from_utf8(forget.stdout).unwrap();
    let (pools, hosts_line) = lines.trim().split_once("\n# under [cluster]\n").unwrap();
    assert!(pools.contains(id.split('.').nth(1).unwrap()), "{lines}");
    drop(router);
    // As it was printed, and a router that starts anew.
    let mut router = Router::new(&authority, &hosts, pools, hosts_line);
    router.serve();
    // The one that is left answers for what is gone: nothing is there to delete.
    assert_eq!(router.json(&["volume", "list"]), Value::Array(Vec::new()));
    assert_eq!(router.json(&["host", "list"]).as_array().unwrap().len(), 1);
}

/// What the doctor finds: verdict, subject, text.
fn findings(router: &Router, more: &[&str]) -> Vec<(String, String, String)> {
    let rows = router.json(&[&["doctor", "--cluster"], more].concat());
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let finding = |row: &Value| (text(row, "verdict"), text(row, "subject"), text(row, "finding"));
    rows.as_array().unwrap().iter().map(finding).collect()
}

#[tokio::test]
async fn the_doctor_compares_with_what_the_orchestrator_knows() {
    let (authority, mut hosts) = two().await;
    let mut router = Router::new(&authority, &hosts, "", "");
    router.serve();
    let create = |name: &str| {
        let made = router.json(&["volume", "create", name, "--size", "1GiB"]);
        made[0]["id"].as_str().unwrap().to_owned()
    };
    let ids: Vec<String> = (0..6).map(|number| create(&number.to_string())).collect();
    let gone = VolumeId::random(ids[0].parse::<VolumeId>().unwrap().pool).to_string();
    let list = router.directory.path().join("known");
    let told = |known: &[&String]| {
        fs::write(&list, known.iter().map(|id| format!("{id}\n")).collect::<String>()).unwrap();
        let mut found = findings(&router, &["--known", list.to_str().unwrap()]);
        found.retain(|(_, subject, _)| subject == "orchestrator" || subject.starts_with("v."));
        found.into_iter().map(|(verdict, subject, _)| (subject, verdict)).collect::<Vec<_>>()
    };
    let all: Vec<&String> = ids.iter().collect();
    assert_eq!(told(&all), [("orchestrator".to_owned(), "ok".to_owned())]);
    assert_eq!(told(&all[1..]), [(ids[0].clone(), "warning".to_owned())]);
    assert_eq!(told(&[&all[..], &[&gone]].concat()), [(gone.clone(), "FAILURE".to_owned())]);
    // Of a host that does not answer nothing is said to be missing.
    hosts.iter_mut().for_each(Host::stop);
    assert_eq!(told(&[&all[..], &[&gone]].concat()), []);
}

#[tokio::test]
async fn a_bundle_tells_what_there_is_and_no_secret() {
    let (authority, hosts) = two().await;
    let mut router = Router::new(&authority, &hosts, "# password = \"canary\"\n", "");
    router.serve();
    let id = router.json(&["volume", "create", "db", "--size", "1GiB"])[0]["id"].as_str().unwrap().to_owned();
    let file = router.directory.path().join("bundle.tar");
    let write = || router.run(&["doctor", "--bundle", file.to_str().unwrap()]);
    let done = write();
    assert!(done.status.success(), "{done:?}");
    let mut parts = BTreeMap::new();
    for entry in tar::Archive::new(fs::File::open(&file).unwrap()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        parts.insert(entry.path().unwrap().to_str().unwrap().to_owned(), text);
    }
    let part =
        |name: &str| parts.get(&format!("lagan/{name}")).unwrap_or_else(|| panic!("{name}: {parts:#?}"));
    assert!(part("volumes.json").contains(&id) && part("metrics.txt").contains("lagan_host_up"));
    assert!(part("config.json").contains("certificates") && part("cluster.json").contains("host n1"));
    assert!(part("about.txt").contains(env!("CARGO_PKG_VERSION")));
    assert!(part("snapshots.json").trim() == "[]" && part("doctor.json").contains("kernel"));
    let all: String = parts.into_values().collect();
    for secret in ["canary", "PRIVATE KEY", "BEGIN CERTIFICATE"] {
        assert!(!all.contains(secret), "{secret}");
    }
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!write().status.success(), "it is never overwritten");
}

#[tokio::test]
async fn the_doctor_looks_at_every_host() {
    let (authority, mut hosts) = two().await;
    let mut router = Router::new(&authority, &hosts, "", "");
    let verdicts = |router: &Router| findings(router, &[]);
    let well = verdicts(&router);
    assert!(well.iter().all(|(verdict, ..)| verdict == "ok"), "{well:#?}");
    for subject in ["host n1", "host n2", "certificate of n1", "certificate here", "cluster"] {
        assert!(well.iter().any(|(_, about, _)| about == subject), "{subject}: {well:#?}");
    }
    // One name on two hosts, as after a host was silent for a while.
    router.serve();
    hosts[1].stop();
    for number in 0..8 {
        assert!(router.run(&["volume", "create", &number.to_string(), "--size", "1GiB"]).status.success());
    }
    hosts[1].restart(authority.of_host("n2")).await;
    hosts[0].stop();
    for number in 0..8 {
        let until = Instant::now() + Duration::from_secs(20);
        while !router.run(&["volume", "create", &number.to_string(), "--size", "1GiB"]).status.success() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let ill = verdicts(&router);
    let failed = |subject: &str, text: &str| {
        ill.iter()
            .any(|(verdict, about, what)| verdict == "FAILURE" && about == subject && what.contains(text))
    };
    assert!(failed("host n1", "does not answer"), "{ill:#?}");
    assert!(failed("cluster", "not every host answers"), "{ill:#?}");
    hosts[0].restart(authority.of_host("n1")).await;
    let ill = verdicts(&router);
    let doubles =
        ill.iter().filter(|(_, about, what)| about.starts_with("volume") && what.contains("exists 2 times"));
    assert_eq!(doubles.count(), 8, "{ill:#?}");
    assert!(router.http > 0);
}
