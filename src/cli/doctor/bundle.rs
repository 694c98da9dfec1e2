//! `lagan doctor --bundle`: what somebody needs who is to help, in one archive. Each part stands for itself: what cannot be
//! had is said in its place.

use std::{io::Write, os::unix::fs::OpenOptionsExt, path::Path, time::SystemTime};

use super::{check, cluster, examine, rows};
use crate::{
    cli::{Common, Output, client::figures, out, pool, snapshot, volume},
    config::{Config, Mode},
    error::{Chain, Doing, Error, ErrorKind, Result},
    sys::host,
};

/// A part of it: the name of a file, and what it says, or why nothing.
type Part = (&'static str, Result<String>);

pub(super) async fn write(common: &Common, path: &Path) -> Result<()> {
    let doing = || format!("write {}", path.display());
    // What is there is never overwritten; nobody else reads it.
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path).doing(doing)?;
    let parts = collect(common).await;
    let mut archive = tar::Builder::new(file);
    for (name, said) in &parts {
        let (name, text) = match said {
            Ok(text) => ((*name).to_owned(), text.clone()),
            Err(error) => (format!("{name}.error"), format!("{}\n", Chain(error))),
        };
        add(&mut archive, &name, &text).doing(doing)?;
    }
    archive.into_inner().and_then(|mut file| file.flush().and_then(|()| file.sync_all())).doing(doing)?;
    let failed = parts.iter().filter(|(_, said)| said.is_err()).count();
    out::talk(&format!("{} parts, {failed} that could not be had", parts.len()));
    out::talk("add what the log says: journalctl -u lagan --since -2h, or that of the container");
    Ok(())
}

fn add(archive: &mut tar::Builder<std::fs::File>, name: &str, text: &str) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(text.len()).map_err(std::io::Error::other)?);
    header.set_mode(0o600);
    header.set_mtime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs());
    archive.append_data(&mut header, format!("lagan/{name}"), text.as_bytes())
}

async fn collect(common: &Common) -> Vec<Part> {
    let mut parts = vec![("about.txt", Ok(about())), ("config.json", settings(common))];
    let config = match common.load(Mode::All) {
        Ok(config) => config,
        Err(error) => {
            parts.push(("doctor.json", Err(error)));
            return parts;
        }
    };
    parts.extend([
        ("doctor.json", examine(&config).await.map(|findings| rows(&findings).json())),
        ("check.json", check(&config).await.map(|account| account.json())),
        ("pools.json", pool::listed(&config, None, Output::Json).await.map(|rows| rows.json())),
        ("volumes.json", volume::listed(&config, Output::Json).await.map(|rows| rows.json())),
        ("snapshots.json", snapshot::listed(&config, None, Output::Json).await.map(|rows| rows.json())),
        ("metrics.txt", figures(&config).await),
        ("mounts.txt", mounts(&config)),
    ]);
    if config.cluster.is_some() {
        parts.push((
            "cluster.json",
            cluster::examine(&config, None).await.map(|findings| rows(&findings).json()),
        ));
    }
    parts
}

fn about() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    format!("lagan {}\nkernel {}\ntime {now}\n", env!("CARGO_PKG_VERSION"), host::kernel_release())
}

/// The configuration as it was understood, without comments: they may say anything.
fn settings(common: &Common) -> Result<String> {
    let Some(file) = common.file() else {
        return Ok("{}\n".to_owned());
    };
    let doing = || format!("read {}", file.display());
    let text = std::fs::read_to_string(&file).doing(doing)?;
    let table: toml::Table =
        toml::from_str(&text).map_err(|error| Error::new(ErrorKind::Invalid, doing()).because(error))?;
    serde_json::to_string_pretty(&table)
        .map_err(|error| Error::new(ErrorKind::Broken, doing()).because(error))
}

/// Mounts of ours, and no others: what else the host runs is nobody's business.
fn mounts(config: &Config) -> Result<String> {
    let all = std::fs::read_to_string("/proc/self/mountinfo").doing(|| "read mountinfo".to_owned())?;
    let ours = |line: &&str| line.contains("lagan") || line.contains(&config.driver_name);
    Ok(all.lines().filter(ours).map(|line| format!("{line}\n")).collect())
}
