//! Pages of docs/ for each orchestrator, held to the truth: what a person would paste is run where it can run, and what
//! they would copy is what lies in deploy/.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    disk::text,
    rig::{Ground, Kind},
};

const LAGAN: &str = env!("CARGO_BIN_EXE_lagan");
const PAGES: [&str; 4] = ["nomad", "swarm", "mesos", "plain"];

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Code blocks of a page: what follows the fence, and the text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let page = read(&format!("docs/{page}.md"));
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind.to_owned(), String::new())),
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some((_, block)), None) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

/// A host's own files in the place of the machine's, and something small in the place of systemd: it starts what a unit
/// says, and that is all.
const PLAIN: &str = r#"
mount --make-rprivate /
over() { mkdir -p "$ROOT$1" "$ROOT/work$1"; mount -t overlay overlay -o "lowerdir=$1,upperdir=$ROOT$1,workdir=$ROOT/work$1" "$1"; }
own() { mkdir -p "$ROOT$1"; mount --bind "$ROOT$1" "$1"; }
over /etc
own /srv
own /var/lib
own /usr/local/bin
mount -t tmpfs tmpfs /run
mkdir -p /etc/systemd/system /etc/udev/rules.d /run/files/target/release
ln -s "$LAGAN" /run/files/target/release/lagan
ln -s "$REPOSITORY/deploy" /run/files/deploy
cd /run/files
systemctl() {
	local action=$1 unit=${*: -1} file key=ExecStart
	[ "$2" = --now ]
	[ "$action" = enable ] || key=ExecStop
	file=/etc/systemd/system/${unit%%@*}
	case $unit in *@*) file=$file@ ;; esac
	set -- $(sed -n "s|^$key=||p" "$file.service" | sed "s|%i|${unit#*@}|g")
	if grep -q '^Type=notify' "$file.service"; then
		"$@" --log-level warn &
		daemon=$!
		for _ in $(seq 200); do [ ! -S /run/lagan/csi.sock ] || return 0; sleep 0.05; done
		return 1
	fi
	"$@"
}
trap 'kill ${daemon:-} || true; wait' EXIT
"#;

#[test]
#[expect(clippy::disallowed_methods, reason = "tests do what a person would")]
fn every_command_for_plain_hosts_works() {
    let ground = Ground::sized(Kind::On("xfs"), 300);
    let shell: Vec<_> =
        blocks("plain").into_iter().filter(|(kind, _)| kind == "bash").map(|(_, text)| text).collect();
    // The first block is theirs to fill in.
    let commands: String = shell[1..].concat();
    assert!(commands.contains("volume mount") && commands.contains("volume grow"), "{commands}");
    let sizes = "POOL_SIZE=1200MiB VOLUME_SIZE=300MiB GROWN_SIZE=400MiB\n";
    for name in sizes.split_whitespace().map(|given| given.split('=').next().unwrap()) {
        assert!(shell[0].contains(name), "{name}");
    }
    // Its own daemon may not meet the one of another test.
    let end = "test -z \"$(findmnt -rno TARGET | grep ^/srv/volumes/)\"\n";
    let done = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "bash",
            "-euo",
            "pipefail",
            "-c",
        ])
        .arg([PLAIN, "set -x\n", sizes, &commands, end].concat())
        .env_remove("CSI_ENDPOINT")
        .env("ROOT", ground.root.join("plain"))
        .env("LAGAN", LAGAN)
        .env("REPOSITORY", repository())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("GROWN_SIZE") || said.contains("--size 400MiB"), "{said}");
}

/// A block that names a file shows a part of it, line for line.
#[test]
fn what_pages_show_is_what_lies_in_deploy() {
    let mut shown = BTreeSet::new();
    for page in PAGES {
        for (kind, block) in blocks(page) {
            let Some((_, file)) = kind.split_once(' ') else {
                assert!(
                    ["bash", "toml", "text", ""].contains(&kind.as_str()),
                    "{page}: a block of kind {kind:?} names no file"
                );
                continue;
            };
            assert!(read(file).contains(&block), "{page}: {file} has no such lines:\n{block}");
            shown.insert(file.to_owned());
        }
    }
    assert!(shown.iter().any(|file| file.starts_with("deploy/nomad")), "{shown:?}");
    assert!(shown.iter().any(|file| file.starts_with("deploy/swarm")), "{shown:?}");
    assert!(shown.iter().any(|file| file.starts_with("deploy/mesos")), "{shown:?}");
}

/// Files that a page names by their path are there, and every file of deploy/ is on a page.
#[test]
fn every_file_is_on_a_page() {
    let pages: String = PAGES.iter().map(|page| read(&format!("docs/{page}.md"))).collect();
    for directory in ["nomad", "swarm", "mesos", "systemd"] {
        for entry in fs::read_dir(repository().join("deploy").join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                pages.contains(&format!("deploy/{directory}/{name}")),
                "deploy/{directory}/{name} is on no page"
            );
        }
    }
    for word in pages.split(|c: char| c.is_whitespace() || "`()<>,;\"".contains(c)) {
        if let Some(path) = word.strip_prefix("deploy/").map(|rest| rest.trim_end_matches(['.', ':'])) {
            assert!(
                repository().join("deploy").join(path).exists(),
                "deploy/{path} is named, and is not there"
            );
        }
    }
}

/// Commands of ours on the pages exist, with their flags.
#[test]
#[expect(clippy::disallowed_methods, reason = "tests do what a person would")]
fn commands_exist() {
    let mut seen = 0;
    for page in PAGES {
        for (_, block) in blocks(page).iter().filter(|(kind, _)| kind == "bash") {
            for line in block.lines().filter_map(|line| {
                line.split("lagan ").nth(1).filter(|_| {
                    line.trim_start_matches("sudo ").starts_with("lagan ") || line.contains("$(lagan ")
                })
            }) {
                let words: Vec<_> = line.split_whitespace().take_while(|word| *word != "|").collect();
                let verbs: Vec<_> = words
                    .iter()
                    .take(2)
                    .filter(|word| word.chars().all(|c| c.is_ascii_lowercase()))
                    .collect();
                let help = Command::new(LAGAN).args(verbs.iter()).arg("--help").output().unwrap();
                let said = String::from_utf8_lossy(&help.stdout);
                assert!(help.status.success(), "{page}: {line}");
                for flag in words.iter().filter(|word| word.starts_with("--")) {
                    assert!(said.contains(*flag), "{page}: {line}: {flag} is none of {said}");
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "{seen} commands");
    assert!(Path::new(LAGAN).exists() && !text(Path::new(LAGAN)).is_empty());
}
