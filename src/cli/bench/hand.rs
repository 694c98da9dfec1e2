//! The same job by the commands that other drivers run, as a baseline; and fio(1). Only here the benchmark starts programs: what
//! they cost is what is asked.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
};

/// Runs a program that is expected to succeed; what it printed.
#[expect(clippy::disallowed_methods, reason = "the cost of starting programs is what is measured")]
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let what = || format!("run {program}");
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().doing(what)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(ErrorKind::Broken, format!("{}: {}", what(), said.trim())))
}

/// An ext4 made and mounted by hand, and what undoes it.
pub(super) struct ByHand {
    file: PathBuf,
    points: [PathBuf; 2],
    device: Option<String>,
    mounted: usize,
}

impl ByHand {
    /// Prepares one: a file in `directory`, mount points in `root`.
    pub(super) fn new(directory: &Path, root: &Path) -> Result<Self> {
        let points = ["hand-staging", "hand"].map(|name| root.join(name));
        for point in &points {
            fs::create_dir(point).doing(|| format!("make {}", point.display()))?;
        }
        Ok(Self { file: directory.join("by-hand"), points, device: None, mounted: 0 })
    }

    /// truncate, losetup, mkfs, mount, mount --bind; milliseconds.
    pub(super) fn up(&mut self, size: Bytes) -> Result<f64> {
        let begun = Instant::now();
        let file = self.file.display().to_string();
        let [staging, target] = self.points.each_ref().map(|point| point.display().to_string());
        run("truncate", &["-s", &size.get().to_string(), &file])?;
        let device = run("losetup", &["-f", "--show", "--direct-io=on", &file])?.trim().to_owned();
        self.device = Some(device.clone());
        run("mkfs.ext4", &["-q", &device])?;
        run("mount", &[&device, &staging])?;
        self.mounted = 1;
        run("mount", &["--bind", &staging, &target])?;
        self.mounted = 2;
        Ok(begun.elapsed().as_secs_f64() * 1000.0)
    }

    /// umount twice, losetup -d; milliseconds.
    pub(super) fn down(&mut self) -> Result<f64> {
        let begun = Instant::now();
        while self.mounted > 0 {
            run("umount", &[&self.points[self.mounted - 1].display().to_string()])?;
            self.mounted -= 1;
        }
        if let Some(device) = self.device.take() {
            run("losetup", &["-d", &device])?;
        }
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        super::super::scratch::gone(&self.file, fs::remove_file)?;
        Ok(took)
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        // Whatever fails here was reported before.
        self.down().map(drop).unwrap_or_default();
        self.points.iter().for_each(|point| fs::remove_dir(point).unwrap_or_default());
    }
}

/// One pattern of input and output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    pub(super) name: &'static str,
    pub(super) rw: &'static str,
    pub(super) block: &'static str,
    pub(super) depth: &'static str,
}

/// Runs fio on a file or device for some seconds; operations and MiB a second.
pub(super) fn fio(path: &Path, pattern: Pattern, secs: u32) -> Result<(f64, f64)> {
    let (path, secs) = (path.display().to_string(), secs.to_string());
    let said = run(
        "fio",
        &[
            "--name=bench",
            "--ioengine=io_uring",
            "--direct=1",
            "--time_based",
            "--output-format=json",
            "--size=1g",
            "--rw",
            pattern.rw,
            "--bs",
            pattern.block,
            "--iodepth",
            pattern.depth,
            "--runtime",
            &secs,
            "--filename",
            &path,
        ],
    )?;
    // Warnings come before the report.
    let report: serde_json::Value = said
        .find('{')
        .and_then(|start| serde_json::from_str(&said[start..]).ok())
        .ok_or_else(|| Error::new(ErrorKind::Broken, format!("fio said: {}", said.trim())))?;
    let side = if pattern.rw.ends_with("read") { "read" } else { "write" };
    let job = &report["jobs"][0][side];
    let figure = |name: &str| job[name].as_f64().unwrap_or_default();
    Ok((figure("iops"), figure("bw_bytes") / 1_048_576.0))
}

/// A file full of bytes that are not zero.
pub(super) fn fill(path: &Path, size: Bytes, make: bool) -> Result<()> {
    use std::io::Write;

    let what = || format!("fill {}", path.display());
    let mut file = File::options().write(true).create_new(make).open(path).doing(what)?;
    let mut left = size.get();
    let chunk = vec![0x5a; 1 << 20];
    while left > 0 {
        file.write_all(&chunk).doing(what)?;
        left = left.saturating_sub(1 << 20);
    }
    file.sync_all().doing(what)
}
