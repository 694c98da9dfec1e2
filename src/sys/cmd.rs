//! Programs of other projects: the only place where a process is started. A fixed list of tools at fixed paths, no
//! shell, no input, an empty environment, bounded output, bounded time.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt, io,
    io::{PipeReader, Read},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{PidfdFlags, pidfd_open},
};

use crate::error::{Error, ErrorKind, Result};

/// Where tools are looked for.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// How much of a tool's output is kept; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 4 << 20;

/// A program that Lagan may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// Makes an ext4.
    MkfsExt4,
    /// Makes an XFS.
    MkfsXfs,
    /// Makes a btrfs.
    MkfsBtrfs,
    /// Checks an ext4.
    CheckExt4,
    /// Checks an XFS.
    CheckXfs,
    /// Checks a btrfs.
    CheckBtrfs,
    /// The logical volume manager.
    Lvm,
    /// Checks the metadata of a thin pool.
    ThinCheck,
    /// Writes it anew, as far as it can be read.
    ThinRepair,
    /// Tells what signatures a disk bears.
    Wipefs,
}

impl Tool {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::MkfsExt4,
        Self::MkfsXfs,
        Self::MkfsBtrfs,
        Self::CheckExt4,
        Self::CheckXfs,
        Self::CheckBtrfs,
        Self::Lvm,
        Self::ThinCheck,
        Self::ThinRepair,
        Self::Wipefs,
    ];

    /// The program's file name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MkfsExt4 => "mke2fs",
            Self::MkfsXfs => "mkfs.xfs",
            Self::MkfsBtrfs => "mkfs.btrfs",
            Self::CheckExt4 => "e2fsck",
            Self::CheckXfs => "xfs_repair",
            Self::CheckBtrfs => "btrfs",
            Self::Lvm => "lvm",
            Self::ThinCheck => "thin_check",
            Self::ThinRepair => "thin_repair",
            Self::Wipefs => "wipefs",
        }
    }

    /// The Debian package that holds it.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::MkfsExt4 | Self::CheckExt4 => "e2fsprogs",
            Self::MkfsXfs | Self::CheckXfs => "xfsprogs",
            Self::MkfsBtrfs | Self::CheckBtrfs => "btrfs-progs",
            Self::Lvm => "lvm2",
            Self::ThinCheck | Self::ThinRepair => "thin-provisioning-tools",
            Self::Wipefs => "util-linux",
        }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens when a program is not done in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDeadline {
    /// It is killed: it only read, or only wrote what nobody knows of yet.
    Kill,
    /// It goes on; only the caller stops waiting. For what would be half-done.
    LeaveRunning,
}

/// The tools found on this host, and a count of what was started.
#[derive(Debug)]
pub struct Commands {
    found: BTreeMap<Tool, Found>,
    started: AtomicU64,
}

/// A tool that is installed.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    mark: String,
}

impl Found {
    fn at(path: PathBuf) -> Option<Self> {
        let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let mark = format!("{} bytes of {}.{:09}", metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        Some(Self { path, mark })
    }
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// The first 4 MiB of standard output and standard error, as they came: LVM may have much to report.
    pub output: String,
}

impl Commands {
    /// Looks for every tool.
    #[must_use]
    pub fn find() -> Self {
        let locate = |tool: Tool| {
            let place = |directory| Path::new(directory).join(tool.name());
            DIRECTORIES.into_iter().map(place).find_map(Found::at).map(|found| (tool, found))
        };
        Self { found: Tool::ALL.into_iter().filter_map(locate).collect(), started: AtomicU64::new(0) }
    }

    /// Where a tool is, if it is installed.
    #[must_use]
    pub fn path(&self, tool: Tool) -> Option<&Path> {
        self.found.get(&tool).map(|found| found.path.as_path())
    }

    /// What tells one version of a tool from another without starting it: length and time of its file.
    #[must_use]
    pub fn mark(&self, tool: Tool) -> Option<&str> {
        self.found.get(&tool).map(|found| found.mark.as_str())
    }

    /// Programs started so far.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Runs a tool to its end, whatever its exit status. Blocks.
    ///
    /// # Errors
    /// `Unavailable` where it is not installed or cannot be started; `Unsettled` where it is not done in time.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        tool: Tool,
        arguments: &[A],
        patience: Duration,
        then: AfterDeadline,
    ) -> Result<Finished> {
        let Some(found) = self.found.get(&tool) else {
            let what =
                format!("{tool} is not installed on this host: install the package {}", tool.package());
            return Err(Error::new(ErrorKind::Unavailable, what));
        };
        self.started.fetch_add(1, Ordering::Relaxed);
        let start = |error| Error::io(format!("start {tool}"), error).as_kind(ErrorKind::Unavailable);
        let (mut child, pipe) = spawn(&found.path, arguments).map_err(start)?;
        match wait(&mut child, pipe, patience) {
            Ok(Some(finished)) => Ok(finished),
            Ok(None) => {
                let what = format!("{tool} was not done within {}", humantime::format_duration(patience));
                Err(abandon(child, then, Error::new(ErrorKind::Unsettled, what)))
            }
            // What becomes of it is not seen any more. Left alone it would go on, and stay when it has ended.
            Err(error) => Err(abandon(child, then, Error::io(format!("wait for {tool}"), error).half_done())),
        }
    }

    /// Runs a tool that is expected to succeed.
    ///
    /// # Errors
    /// Those of [`Commands::run`]; `Broken` with what the tool said where its exit status is not 0.
    pub fn succeed<A: AsRef<OsStr>>(
        &self,
        tool: Tool,
        arguments: &[A],
        patience: Duration,
    ) -> Result<Finished> {
        let finished = self.run(tool, arguments, patience, AfterDeadline::Kill)?;
        if finished.status.success() {
            return Ok(finished);
        }
        let said = finished.output.trim();
        Err(Error::new(ErrorKind::Broken, format!("{tool} failed ({}): {said}", finished.status)))
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
fn spawn<A: AsRef<OsStr>>(path: &Path, arguments: &[A]) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let search: OsString = DIRECTORIES.join(":").into();
    let child = Command::new(path)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", search)
        // What a filesystem looks like is decided by our arguments, not by a file of the host.
        .env("MKE2FS_CONFIG", "/dev/null")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    Ok((child, reader))
}

/// Reads the output until the program ends; `None` where it does not end in time.
fn wait(child: &mut Child, mut pipe: PipeReader, patience: Duration) -> io::Result<Option<Finished>> {
    let id = i32::try_from(child.id()).map_err(io::Error::other)?;
    let id = rustix::process::Pid::from_raw(id).ok_or(io::ErrorKind::NotFound)?;
    let ended = pidfd_open(id, PidfdFlags::empty())?;
    let deadline = Instant::now() + patience;
    let mut output = Vec::new();
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut watched = vec![PollFd::new(&ended, PollFlags::IN)];
        if open {
            watched.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
        }
        if left.is_zero()
            || poll(&mut watched, Some(&Timespec::try_from(left).map_err(io::Error::other)?))? == 0
        {
            return Ok(None);
        }
        let (exited, readable) = (!watched[0].revents().is_empty(), open && !watched[1].revents().is_empty());
        if readable {
            let mut chunk = [0; 4096];
            let length = pipe.read(&mut chunk)?;
            open = length > 0;
            output.extend_from_slice(&chunk[..length.min(OUTPUT_LIMIT - output.len())]);
        } else if exited {
            let output = String::from_utf8_lossy(&output).into_owned();
            return Ok(Some(Finished { status: child.wait()?, output }));
        }
    }
}

/// Stops waiting, for this reason. A thread of its own collects the process when it ends, which a process that hangs in the
/// kernel may not do for long, killed or not.
fn abandon(mut child: Child, then: AfterDeadline, error: Error) -> Error {
    let killed = if then == AfterDeadline::Kill { child.kill() } else { Ok(()) };
    std::thread::spawn(move || child.wait());
    match killed {
        Ok(()) => error,
        Err(cause) => error.because(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `e2fsck -V` and friends are everywhere; a shell stands in for a tool that misbehaves.
    fn shell(script: &str, patience: Duration) -> Result<Finished> {
        let shell = Found::at("/bin/sh".into()).unwrap();
        let commands = Commands { found: [(Tool::CheckExt4, shell)].into(), started: AtomicU64::new(0) };
        let finished = commands.run(Tool::CheckExt4, &["-c", script], patience, AfterDeadline::Kill);
        assert_eq!(commands.started(), 1);
        finished
    }

    #[test]
    fn output_and_status_come_back() {
        let finished = shell("echo out; echo err >&2; exit 3", Duration::from_secs(10)).unwrap();
        assert_eq!((finished.output.as_str(), finished.status.code()), ("out\nerr\n", Some(3)));
    }

    #[test]
    fn output_is_bounded() {
        let finished = shell("head -c 10000000 /dev/zero", Duration::from_secs(10)).unwrap();
        assert_eq!(finished.output.len(), OUTPUT_LIMIT);
    }

    #[test]
    fn time_is_bounded() {
        let error = shell("sleep 60", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsettled);
    }

    #[test]
    fn the_environment_is_empty() {
        let finished = shell("env", Duration::from_secs(10)).unwrap();
        let mut names: Vec<_> = finished.output.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "MKE2FS_CONFIG", "PATH", "PWD"]);
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let commands = Commands { found: BTreeMap::new(), started: AtomicU64::new(0) };
        let error = commands.succeed(Tool::MkfsXfs, &["x"], Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("xfsprogs"), "{error}");
    }
}
