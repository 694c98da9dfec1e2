//! `lagan doctor`: what is missing on this host, and the remedy. `--check` is the accountant: every object of ours in
//! the kernel and on disk against the records.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use super::{Common, Output, block_on, client::Daemon, out};
use crate::{
    app::{self, OLDEST_KERNEL},
    config::{Config, Mode, Place},
    engine::accountant::audit,
    error::{Chain, Result},
    filesystem::Filesystem,
    pool::thin::report,
    proto::ProbeRequest,
    sys::{cmd::Commands, file::Directory, host, mountinfo},
};

mod bundle;
mod cluster;
mod orphans;
mod thin;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Match every object of ours in the kernel and on disk with the records; exit status 0 only if all agree.
    #[arg(long)]
    check: bool,
    /// Look at every host of the cluster: reachable, certificates, clocks, versions, pools, names that are there twice.
    #[arg(long, conflicts_with = "check")]
    cluster: bool,
    /// Compare the hosts' volumes and snapshots with those that the orchestrator knows: a file of their ids (volume and
    /// snapshot handles), one a line, or `-`.
    #[arg(long, value_name = "FILE", requires = "cluster")]
    known: Option<PathBuf>,
    /// Write all of it into one archive, for somebody who is to help: findings, volumes, pools, metrics, configuration
    /// without comments. No secret, key or content of a volume is in it.
    #[arg(long, value_name = "FILE.tar", conflicts_with_all = ["check", "cluster"])]
    bundle: Option<PathBuf>,
}

/// How a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Well,
    /// It works, but something will not.
    Warning,
    /// It does not work.
    Failure,
}

struct Finding {
    verdict: Verdict,
    subject: String,
    what: String,
}

/// What the accountant says.
#[derive(Default)]
struct Account {
    volumes: usize,
    snapshots: usize,
    devices: usize,
    findings: Vec<String>,
}

#[expect(clippy::needless_pass_by_value, reason = "as every command takes them")]
pub(super) fn run(common: &Common, args: DoctorArgs) -> Result<ExitCode> {
    if args.cluster {
        // That of a router or of a host.
        let config = common.load(Mode::Router).or_else(|_| common.load(Mode::All))?;
        let known = args.known.as_deref().map(orphans::read).transpose()?;
        return print(&block_on(cluster::examine(&config, known.as_ref()))?, common.output);
    }
    if let Some(file) = &args.bundle {
        return block_on(bundle::write(common, file)).map(|()| ExitCode::SUCCESS);
    }
    let config = common.load(Mode::All)?;
    if args.check {
        print_account(&block_on(check(&config))?, common.output)
    } else {
        print(&block_on(examine(&config))?, common.output)
    }
}

async fn check(config: &Config) -> Result<Account> {
    let mut account = Account::default();
    for (name, facts) in app::facts(config).await? {
        match facts {
            Err(error) => account.findings.push(format!("pool {name}: {}", Chain(&error))),
            Ok(facts) => {
                account.volumes += facts.listing.volumes.len();
                account.snapshots += facts.listing.snapshots.len();
                account.devices += facts.devices.len();
                account
                    .findings
                    .extend(audit(&facts).into_iter().map(|finding| format!("pool {name}: {finding}")));
            }
        }
    }
    Ok(account)
}

impl Account {
    fn json(&self) -> String {
        let Self { volumes, snapshots, devices, findings } = self;
        let report = json!({
            "volumes": volumes, "snapshots": snapshots, "devices": devices, "findings": findings,
        });
        format!("{report:#}")
    }
}

fn print_account(account: &Account, output: Output) -> Result<ExitCode> {
    let Account { volumes, snapshots, devices, findings } = account;
    match output {
        Output::Json => out::line(&account.json())?,
        Output::Table => {
            findings.iter().try_for_each(|finding| out::line(finding))?;
            let verdict =
                if findings.is_empty() { "all agree".into() } else { format!("{} findings", findings.len()) };
            out::talk(&format!("{volumes} volumes, {snapshots} snapshots, {devices} devices: {verdict}"));
        }
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn examine(config: &Config) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    examine_kernel(&mut findings);
    examine_tools(config, &mut findings);
    for pool in &config.pools {
        // The built-in one is made at the first start; one that is configured was made by somebody.
        let missing = if config.default_pool { Verdict::Warning } else { Verdict::Failure };
        let subject = format!("pool {}", pool.name);
        examine_pool(&pool.place, &subject, missing, &mut findings);
        if let Ok(place) = app::thin_place(&pool.place) {
            let terms = thin::Terms {
                place: &pool.place,
                overcommit_percent: pool.overcommit_percent,
                extend_at: pool.extend.map(|(at, _)| at),
            };
            findings.extend(thin::judge(&subject, &terms, &report::report(&place, &Commands::find())));
        }
    }
    examine_roots(config, &mut findings);
    findings.push(examine_daemon(config).await);
    Ok(findings)
}

fn rows(findings: &[Finding]) -> out::Rows {
    let mut rows = out::Rows::new(&["verdict", "subject", "finding"]);
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Well => "ok",
            Verdict::Warning => "warning",
            Verdict::Failure => "FAILURE",
        };
        rows.add([verdict.into(), finding.subject.as_str().into(), finding.what.as_str().into()]);
    }
    rows
}

fn print(findings: &[Finding], output: Output) -> Result<ExitCode> {
    rows(findings).print(output)?;
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn finding(verdict: Verdict, subject: &str, what: impl Into<String>) -> Finding {
    Finding { verdict, subject: subject.to_owned(), what: what.into() }
}

fn examine_kernel(findings: &mut Vec<Finding>) {
    let (major, minor) = OLDEST_KERNEL;
    let release = host::kernel_release();
    findings.push(if host::kernel_at_least(major, minor) {
        finding(Verdict::Well, "kernel", release)
    } else {
        finding(Verdict::Failure, "kernel", format!("{release} is too old: install {major}.{minor} or later"))
    });
    findings.push(if host::may_mount() {
        finding(Verdict::Well, "mounting", "allowed")
    } else {
        finding(
            Verdict::Failure,
            "mounting",
            "CAP_SYS_ADMIN is missing: run as root, in a container privileged",
        )
    });
    findings.push(if host::may_grow_ext4() {
        finding(Verdict::Well, "growing a mounted ext4", "allowed")
    } else {
        let what = "CAP_SYS_RESOURCE is missing: a mounted ext4 cannot be grown. Add the capability, or use xfs or btrfs";
        finding(Verdict::Warning, "growing a mounted ext4", what)
    });
    findings.push(if Path::new("/dev/loop-control").exists() {
        finding(Verdict::Well, "loop devices", "available")
    } else {
        let what = "/dev/loop-control is missing: run `modprobe loop`; in a container mount the host's /dev";
        finding(Verdict::Failure, "loop devices", what)
    });
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for filesystem in Filesystem::ALL {
        let name = filesystem.name();
        let there = known.lines().any(|line| line.split_whitespace().last() == Some(name));
        findings.push(if there {
            finding(Verdict::Well, name, "the kernel mounts it")
        } else {
            finding(Verdict::Warning, name, format!("the kernel has it not loaded: run `modprobe {name}`"))
        });
    }
}

fn examine_tools(config: &Config, findings: &mut Vec<Finding>) {
    let commands = Commands::find();
    for tool in app::needed(config) {
        findings.push(match commands.path(tool) {
            Some(path) => finding(Verdict::Well, tool.name(), path.display().to_string()),
            None => finding(Verdict::Warning, tool.name(), format!("is missing: install {}", tool.package())),
        });
    }
}

fn examine_pool(place: &Place, subject: &str, missing: Verdict, findings: &mut Vec<Finding>) {
    let identified = super::pool::identify(place, &Commands::find());
    findings.push(match &identified {
        Ok((id, machine)) => {
            let foreign = host::machine_id().is_ok_and(|own| own != *machine);
            let what = format!("{id} in {place}");
            if foreign {
                finding(
                    Verdict::Failure,
                    subject,
                    format!("{what} belongs to machine {machine}: see `lagan pool adopt`"),
                )
            } else {
                finding(Verdict::Well, subject, what)
            }
        }
        Err(error) => finding(missing, subject, Chain(error).to_string()),
    });
    let Place::File(path) = place else { return };
    // The nearest directory that exists tells the filesystem that the pool is or would be on.
    let Some(directory) = path.ancestors().find_map(|path| Directory::open(path).ok()) else { return };
    if let (Ok(Some(Filesystem::Ext4)), false) = (directory.filesystem(), path.join("pool.img").exists()) {
        let what = "ext4 cannot share blocks, so snapshots and clones are copies: `lagan pool init DIR --image SIZE` \
                    makes a pool that can, on any filesystem";
        findings.push(finding(Verdict::Warning, subject, what));
    }
}

fn examine_roots(config: &Config, findings: &mut Vec<Finding>) {
    let table = mountinfo::read().unwrap_or_default();
    if !config.target_roots.iter().any(|root| root.exists()) {
        let what =
            "none exists on this host: set them to where the orchestrator keeps staging and target paths";
        findings.push(finding(Verdict::Warning, "target_roots", what));
    }
    for root in config.target_roots.iter().filter(|root| root.exists()) {
        let real = std::fs::canonicalize(root).unwrap_or_else(|_| root.clone());
        let below = table.iter().filter(|entry| real.starts_with(&entry.mount_point));
        let shared =
            below.max_by_key(|entry| entry.mount_point.as_os_str().len()).is_some_and(|entry| entry.shared);
        let subject = root.display().to_string();
        findings.push(if shared {
            finding(Verdict::Well, &subject, "mounts made here reach containers")
        } else {
            let what = "its mounts are private: containers started before a publish do not see it. Make it shared \
                        (`mount --make-rshared`), in Kubernetes with mountPropagation: Bidirectional";
            finding(Verdict::Warning, &subject, what)
        });
    }
}

async fn examine_daemon(config: &Config) -> Finding {
    let subject = "daemon";
    match Daemon::connect(config).await {
        Err(error) => finding(Verdict::Warning, subject, Chain(&error).to_string()),
        Ok(daemon) => match daemon.identity().probe(ProbeRequest {}).await {
            Ok(_) => finding(Verdict::Well, subject, format!("answers on {}", config.endpoint)),
            Err(status) => finding(Verdict::Failure, subject, super::client::refused(status).to_string()),
        },
    }
}
