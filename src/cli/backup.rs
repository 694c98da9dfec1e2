//! `lagan pool backup` and `lagan pool restore`: the records of a pool as text, and back.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::{out, pool::Where};
use crate::{
    app::thin_place,
    error::{Doing, Error, ErrorKind, Result},
    pool::{backup::Backup, file, thin},
    sys::{cmd::Commands, file::Directory},
};

/// Longest backup that is read: a hundred thousand records.
const LIMIT: u64 = 256 << 20;

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    place: Where,
    /// Write to this file, which must not be there yet [default: standard output].
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// What `lagan pool backup` has written.
    file: PathBuf,
    #[command(flatten)]
    place: Where,
    /// Put records of the backup in the place of readable ones that say something else.
    #[arg(long)]
    replace: bool,
}

/// Writes the records. Exit status 1 where some could not be read: all others are written.
pub(super) fn backup(args: BackupArgs) -> Result<ExitCode> {
    let backup = match thin_place(&args.place.place()) {
        Ok(place) => thin::backup(&place, &Commands::find())?,
        Err(directory) => file::backup(directory)?,
    };
    let text = backup.to_text()?;
    match &args.file {
        None => out::line(text.trim_end())?,
        Some(path) => write_new(path, &text).doing(|| format!("write {}", path.display()))?,
    }
    out::talk(&format!("{} records of pool {}", backup.lines.len(), backup.header.pool));
    for missing in &backup.missing {
        out::talk(&format!("not in the backup, since it cannot be read: {missing}"));
    }
    Ok(if backup.missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes a file that is there as a whole and durably, or not at all; names of volumes are nobody else's business.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        std::fs::remove_file(path)?;
        return written;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Directory::open(parent.unwrap_or(Path::new(".")))?.flush()
}

/// Puts the records back. Exit status 1 where some could not be: each is named.
pub(super) fn restore(machine: &str, args: RestoreArgs) -> Result<ExitCode> {
    let what = || format!("read {}", args.file.display());
    let mut text = String::new();
    std::fs::File::open(&args.file).doing(what)?.take(LIMIT + 1).read_to_string(&mut text).doing(what)?;
    if text.len() as u64 > LIMIT {
        return Err(Error::new(ErrorKind::Invalid, format!("{}: it is too long to be a backup", what())));
    }
    let backup = Backup::from_text(&text).map_err(|error| error.within(what()))?;
    let done = match thin_place(&args.place.place()) {
        Ok(place) => thin::restore(&place, machine, &backup, args.replace, &Commands::find())?,
        Err(directory) => file::restore(directory, &backup, args.replace)?,
    };
    let pool = backup.header.pool;
    out::talk(&format!("{} records of pool {pool} put back, {} were there", done.written, done.kept));
    for skipped in &done.skipped {
        out::talk(&format!("not put back: {skipped}"));
    }
    Ok(if done.skipped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
