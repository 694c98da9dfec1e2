//! Secrets are taken, and never seen again: not at any log level, not in any answer, not in what is kept or started.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    net::TcpStream,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::{fs::SeekFrom as Part, process::Signal};

use crate::{
    canaries::{CANARY, CONTROL, Speaker},
    kill::note,
    rig::{Daemon, Ground, HTTP, Kind, run, text},
};

/// A router's.
const ROUTER_HTTP: &str = "127.0.0.1:19737";
const HOST: &str = "127.0.0.1:19738";
/// Tools that are missing, and that fail: answers of their own.
const BAD_TOOLS: &str =
    "mount --bind /dev/null /usr/sbin/mkfs.btrfs && mount --bind /bin/false /usr/sbin/mkfs.xfs";

/// Everything that was looked at, by place.
#[derive(Default)]
struct Seen(Vec<(String, Vec<u8>)>);

impl Seen {
    fn add(&mut self, place: &str, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.to_owned(), bytes.into()));
    }

    /// The places where this stands.
    fn with(&self, text: &str) -> BTreeSet<String> {
        let holds = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        self.0.iter().filter(|(_, bytes)| holds(bytes)).map(|(place, _)| place.clone()).collect()
    }

    #[track_caller]
    fn no_secret(&self) {
        assert_eq!(self.with(CANARY), BTreeSet::new());
    }

    /// What a process shows of itself and its descendants.
    fn add_process(&mut self, pid: i32) {
        for file in ["cmdline", "environ"] {
            self.add(file, fs::read(format!("/proc/{pid}/{file}")).unwrap());
        }
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().for_each(|child| self.add_process(child.parse().unwrap()));
    }

    /// Every file below a place, its attributes and what of it was written, the disk of the pool included.
    fn add_files(&mut self, place: &str, directory: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let mut names = vec![0; 65536];
            let length = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
            for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let mut value = vec![0; 65536];
                let length = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap();
                self.add(place, &value[..length]);
            }
            if kind.is_dir() {
                self.add_files(place, &path);
            } else if kind.is_file() && !path.ends_with("log") && !path.ends_with("execs") {
                self.add(place, written(&path));
            } else {
                assert!(!kind.is_block_device() && !kind.is_char_device(), "{}", path.display());
            }
        }
    }
}

/// What of a file was ever written.
fn written(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Ok(start) = rustix::fs::seek(&file, Part::Data(at)) {
        let end = rustix::fs::seek(&file, Part::Hole(start)).unwrap();
        file.seek(SeekFrom::Start(start)).unwrap();
        Read::by_ref(&mut file).take(end - start).read_to_end(&mut bytes).unwrap();
        at = end;
    }
    bytes
}

fn metrics(address: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// What the log holds beyond a length.
fn log_from(path: &Path, length: u64) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(length)).unwrap();
    let mut text = Vec::new();
    file.read_to_end(&mut text).unwrap();
    text
}

/// What somebody is sent who is to help.
fn add_bundle(seen: &mut Seen, ground: &Ground, name: &str) {
    let file = ground.root.join(name);
    let made = ground.lagan(&["doctor", "--bundle", &text(&file)]);
    assert!(made.status.success(), "{made:?}");
    let lists = ground.lagan(&["volume", "list"]);
    seen.add("command line", [made.stdout, made.stderr, lists.stdout, lists.stderr].concat());
    seen.add("bundle", fs::read(file).unwrap());
}

#[tokio::test]
async fn no_secret_is_seen_at_any_level_on_any_path() {
    let mut ground = Ground::new(Kind::Image);
    ground.http = HTTP;
    let mut seen = Seen::default();
    let (mut codes, mut ids) = (BTreeSet::new(), Vec::new());
    for (number, level) in ["trace", "debug", "info", "warn", "error", "off"].into_iter().enumerate() {
        for format in ["text", "json"] {
            let before = fs::metadata(ground.log()).map_or(0, |log| log.len());
            let daemon = ground
                .connect(ground.spawn_in(BAD_TOOLS, &["--log-level", level, "--log-format", format]))
                .await;
            // The first one makes every template, and so starts every tool.
            let execs = ground.root.join("execs");
            let tracer =
                (number == 0 && format == "text").then(|| note(daemon.pid(), "execve", &text(&execs)));
            let mut speaker = Speaker::new(&daemon.channel, &daemon.channel);
            if level == "trace" {
                speaker.bare().await;
            }
            speaker.life(&ground).await;
            seen.add("answers", std::mem::take(&mut speaker.answers));
            ids.append(&mut speaker.ids);
            codes.extend(speaker.codes.into_values().flatten());
            seen.add("metrics", metrics(HTTP));
            seen.add_process(daemon.pid().as_raw_nonzero().get());
            assert!(daemon.stop().success());
            seen.add(&format!("{format} log, {level}"), log_from(&ground.log(), before));
            if let Some(mut tracer) = tracer {
                tracer.wait().unwrap();
                seen.add("programs", fs::read(&execs).unwrap());
            }
        }
    }
    seen.no_secret();
    // Each kind of answer was provoked, and the search sees what is no secret.
    let expected = [0, 3, 5, 6, 8, 9, 10, 11, 12, 13, 14];
    assert_eq!(codes, expected.into(), "codes of answers");
    for (number, id) in ids.iter().enumerate().take(6) {
        let place =
            format!("{} log, {}", ["text", "json"][number % 2], ["trace", "debug", "info"][number / 2]);
        assert!(seen.with(id).contains(&place), "{id} in {place}");
    }
    assert!(seen.with(CONTROL).contains("answers"));
    let programs = seen.with("mke2fs");
    assert!(programs.contains("programs") && seen.with("MKE2FS_CONFIG").contains("programs"), "{programs:?}");
    assert!(seen.with("lagan_rpcs_total").contains("metrics") && seen.with("serve").contains("cmdline"));
}

#[tokio::test]
async fn no_secret_is_kept() {
    let mut ground = Ground::new(Kind::Image);
    ground.http = HTTP;
    let daemon = ground.start().await;
    let mut speaker = Speaker::new(&daemon.channel, &daemon.channel);
    speaker.bare().await;
    speaker.life(&ground).await;
    // One that stays: where its name is not found, the search is blind.
    let how = crate::rig::filesystem("ext4");
    speaker.right("CreateVolume", &crate::requests::create_with(CONTROL, 16 << 20, &how)).await.unwrap();
    let mut seen = Seen::default();
    add_bundle(&mut seen, &ground, "bundle.tar");
    seen.add_files("pool, its disk included", &ground.pool());
    seen.add_files("state", &ground.root.join("state"));
    for directory in ["/tmp", "/var/tmp", "/run", "/dev/shm"] {
        let ours = |path: &PathBuf| text(path).contains("lagan") && !path.starts_with(&ground.root);
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(ours) {
            if entry.is_file() {
                seen.add("temporary files", written(&entry));
            }
        }
    }
    assert!(daemon.stop().success());
    seen.no_secret();
    assert_eq!(
        seen.with(CONTROL),
        ["bundle", "command line", "pool, its disk included"].map(str::to_owned).into(),
        "what is no secret is found"
    );
    fs::write(ground.root.join("state/planted"), CANARY).unwrap();
    let mut planted = Seen::default();
    planted.add_files("state", &ground.root.join("state"));
    let mut shown = sleeper(CANARY);
    // A process shows nothing for a moment after it has begun.
    while fs::read(format!("/proc/{}/cmdline", shown.id())).unwrap().is_empty() {}
    planted.add_process(shown.id().try_into().unwrap());
    shown.kill().unwrap();
    shown.wait().unwrap();
    assert_eq!(planted.with(CANARY), ["cmdline", "environ", "state"].map(str::to_owned).into());
}

#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
fn sleeper(secret: &str) -> Child {
    Command::new("sh")
        .args(["-c", "read line", secret])
        .env("SECRET", secret)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn no_secret_is_seen_on_its_way_through_a_router() {
    let mut ground = Ground::new(Kind::Image);
    ground.http = HTTP;
    let certificates = text(&ground.root.join("certs"));
    ground.settings = format!("[cluster]\ncertificates = \"{certificates}\"\nlisten = \"{HOST}\"\n");
    let made = ground.lagan(&["certs", "--dir", &certificates, "--host", "n1", "--router"]);
    assert!(made.status.success(), "{made:?}");
    let (mut seen, mut ids) = (Seen::default(), Vec::new());
    for format in ["text", "json"] {
        let serve = ["--log-level", "trace", "--log-format", format];
        let host = ground.connect(ground.spawn_in(BAD_TOOLS, &serve)).await;
        let router = router(&ground, &serve).await;
        let mut speaker = Speaker::new(&router.channel, &host.channel);
        speaker.bare().await;
        speaker.life(&ground).await;
        seen.add("answers", std::mem::take(&mut speaker.answers));
        ids.append(&mut speaker.ids);
        seen.add("metrics", metrics(ROUTER_HTTP));
        for daemon in [&host, &router] {
            seen.add_process(daemon.pid().as_raw_nonzero().get());
        }
        // Not even its own user may look into the memory of a process that nobody may dump.
        let process = format!("/proc/{}/environ", router.pid().as_raw_nonzero());
        assert_eq!(fs::metadata(process).unwrap().uid(), 0);
        assert!(router.stop().success());
        run("rm", &["-r", &text(&ground.root.join("router"))]);
        assert!(host.stop().success());
    }
    seen.add("log of the host", fs::read(ground.log()).unwrap());
    seen.add("log of the router", fs::read(ground.root.join("router.log")).unwrap());
    seen.no_secret();
    assert!(seen.with(CONTROL).contains("answers") && seen.with(&ids[0]).contains("log of the host"));
    assert!(seen.with("CreateVolume").contains("log of the router"));
}

/// A router needs no rights, so it runs as nobody.
async fn router(ground: &Ground, serve: &[&str]) -> Daemon {
    let (place, log) = (ground.root.join("router"), ground.root.join("router.log"));
    let root = text(&place);
    run("cp", &["-a", &text(&ground.root.join("certs")), &root]);
    let settings = format!(
        "endpoint = \"{root}/csi.sock\"\nhttp = \"{ROUTER_HTTP}\"\n[cluster]\ncertificates = \"{root}\"\n\
         default_host = \"n1\"\n[cluster.hosts]\nn1 = \"{HOST}\"\n"
    );
    let config = text(&place.join("router.toml"));
    fs::write(&config, settings).unwrap();
    run("chown", &["-R", "nobody", &root]);
    run("chmod", &["711", &text(&ground.root)]);
    let program = text(&place.join("lagan"));
    run("cp", &[&ground.program, &program]);
    let to = File::options().create(true).append(true).open(&log).unwrap();
    let arguments =
        ["--reuid", "nobody", "--clear-groups", &program, "--config", &config, "serve", "--mode", "router"];
    let child = start("setpriv", &[&arguments, serve].concat(), to);
    Daemon::connect(child, place.join("csi.sock"), log).await
}

#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
fn start(program: &str, arguments: &[&str], log: File) -> Child {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Memory may hold a secret for a while, so it is never written down.
#[tokio::test]
async fn a_crash_leaves_no_core() {
    let ground = Ground::new(Kind::Image);
    let here = format!("cd {} && ulimit -c unlimited", text(&ground.root));
    let control = run("sh", &["-c", &format!("{here}; (sh -c 'kill -ABRT $$'; true) 2>&1; ls")]);
    assert!(
        control.contains("core"),
        "this host writes no cores, that of the driver would not be missed: {control}"
    );
    for signal in [Signal::ABORT, Signal::QUIT, Signal::ILL] {
        let daemon = ground.connect(ground.spawn_in(&here, &[])).await;
        let mut speaker = Speaker::new(&daemon.channel, &daemon.channel);
        speaker.bare().await;
        let ended = daemon.end_by(signal);
        assert_eq!(ended.signal(), Some(signal.as_raw()));
        assert!(!ended.core_dumped(), "{signal:?}");
    }
}
