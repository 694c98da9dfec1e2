//! Whole disks and partitions: what one is called, whether anything is on it, and how it is marked as taken.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use gpt::{
    GptConfig,
    disk::LogicalBlockSize,
    mbr::ProtectiveMBR,
    partition_types::{OperatingSystem, Type},
};
use rustix::fs::{Advice, fadvise, fstat, ioctl_blksszget};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    cmd::{AfterDeadline, Commands, Tool},
    device::DeviceNumber,
};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
};

/// What the table of partitions takes at either end, and more: where tools look for signatures.
pub const MARGIN: Bytes = Bytes::mib(1);
/// How much is read to tell a blank disk, and at how many places between its ends.
const SAMPLE: usize = 4096;
const SAMPLES: u64 = 4096;
/// The type of partitions of ours.
const PARTITION_TYPE: Uuid = Uuid::from_u128(0x1a6a_4e00_5d3b_4c0f_9a57_2e0d_83b1_c7f4);
const PATIENCE: Duration = Duration::from_secs(30);

/// A disk or partition.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    file: File,
    /// Its number.
    pub number: DeviceNumber,
    /// Its length.
    pub size: Bytes,
}

#[derive(Deserialize)]
struct Signatures {
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    #[serde(rename = "type")]
    kind: String,
    uuid: Option<String>,
}

/// What wipefs says of a disk: nothing at all where it bears no signature.
fn signatures_in(said: &str) -> Result<Vec<Signature>> {
    if said.is_empty() {
        return Ok(Vec::new());
    }
    let found: Signatures = serde_json::from_str(said)
        .map_err(|error| Error::new(ErrorKind::Unavailable, "read what wipefs says").because(error))?;
    Ok(found.signatures)
}

impl Disk {
    /// Opens a disk to be read, whoever uses it.
    ///
    /// # Errors
    /// Those of open(2); `Invalid` where it is no block device.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, OpenOptions::new().read(true))
    }

    /// Opens a disk to be written, if nobody uses it.
    ///
    /// # Errors
    /// Likewise; `InUse` where it is mounted, or part of something.
    pub fn open_alone(path: &Path) -> Result<Self> {
        Self::open_with(path, OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL))
    }

    /// Opens a disk of ours to be written beside the devices that lie on it.
    ///
    /// # Errors
    /// Likewise.
    pub fn open_beside(path: &Path) -> Result<Self> {
        Self::open_with(path, OpenOptions::new().read(true).write(true))
    }

    fn open_with(path: &Path, options: &OpenOptions) -> Result<Self> {
        let what = || format!("open {}", path.display());
        let kind = fs::metadata(path).doing(what)?.file_type();
        if !kind.is_block_device() {
            return Err(Error::new(ErrorKind::Invalid, format!("{}: it is no block device", what())));
        }
        let file = options.open(path).doing(what)?;
        let number = DeviceNumber::of_special_file(&fstat(&file).map_err(io::Error::from).doing(what)?);
        let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from);
        let size = Bytes::new(size.doing(what)?);
        Ok(Self { path: path.to_owned(), file, number, size })
    }

    /// Reads what lies on the disk now, past what the kernel remembers of it: others write below that.
    ///
    /// # Errors
    /// Those of reading.
    pub fn fresh(&self) -> Result<&File> {
        let what = || format!("read {}", self.path.display());
        fadvise(&self.file, 0, None, Advice::DontNeed).map_err(io::Error::from).doing(what)?;
        Ok(&self.file)
    }

    /// What the disk can be named by so that no other is meant: its serial number, world-wide name, or uuids that lie on it.
    ///
    /// # Errors
    /// Those of looking.
    pub fn identities(&self, commands: &Commands) -> Result<Vec<String>> {
        let home = PathBuf::from(format!("/sys/dev/block/{}", self.number));
        let names = ["serial", "device/serial", "wwid", "device/wwid", "dm/uuid"];
        let named = names.iter().filter_map(|name| fs::read_to_string(home.join(name)).ok());
        let mut all: Vec<String> =
            named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        all.extend(self.signatures(commands)?.into_iter().filter_map(|found| found.uuid));
        all.dedup();
        Ok(all)
    }

    fn signatures(&self, commands: &Commands) -> Result<Vec<Signature>> {
        let arguments = ["--no-act".as_ref(), "--json".as_ref(), "--".as_ref(), self.path.as_os_str()];
        let finished = commands.run(Tool::Wipefs, &arguments, PATIENCE, AfterDeadline::Kill)?;
        let said = finished.output.trim();
        if !finished.status.success() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("look at {}: {said}", self.path.display()),
            ));
        }
        signatures_in(said)
    }

    /// What is on the disk, for people; `None` where it is blank. What cannot be read is an error, never blank.
    ///
    /// # Errors
    /// Those of reading.
    pub fn content(&self, commands: &Commands) -> Result<Option<String>> {
        let signatures = self.signatures(commands)?;
        if !signatures.is_empty() {
            let kinds: Vec<String> = signatures
                .into_iter()
                .map(|found| found.kind + &found.uuid.map(|uuid| format!(" {uuid}")).unwrap_or_default())
                .collect();
            return Ok(Some(kinds.join(", ")));
        }
        let (end, length) = (self.size.get(), SAMPLE as u64);
        let between =
            (0..SAMPLES).map(|index| ((end / SAMPLES * index).min(end.saturating_sub(length)), length));
        let last = end.saturating_sub(MARGIN.get());
        let ends = [(0, MARGIN.get().min(end)), (last, end - last)];
        for (offset, length) in ends.into_iter().chain(between) {
            let mut sample = vec![0; usize::try_from(length).unwrap_or_default()];
            self.file
                .read_exact_at(&mut sample, offset)
                .doing(|| format!("read {} at byte {offset}", self.path.display()))?;
            if sample.iter().any(|byte| *byte != 0) {
                return Ok(Some(format!("data at byte {offset}, of no kind that is known")));
            }
        }
        Ok(None)
    }

    /// Wipes both ends: where tools look for signatures.
    ///
    /// # Errors
    /// Those of writing.
    pub fn wipe(&self) -> Result<()> {
        let zeros = vec![0; usize::try_from(MARGIN.get()).unwrap_or_default()];
        for offset in [0, self.size.get().saturating_sub(MARGIN.get())] {
            self.file.write_all_at(&zeros, offset).doing(|| format!("wipe {}", self.path.display()))?;
        }
        Ok(())
    }

    /// Marks the disk as taken: a GPT with one partition of a type of ours, from end to end.
    ///
    /// # Errors
    /// Those of writing.
    pub fn take(&mut self, id: Uuid) -> Result<()> {
        let what = || format!("write a table of partitions to {}", self.path.display());
        let sector = ioctl_blksszget(&self.file).map_err(io::Error::from).doing(what)?;
        let sector = LogicalBlockSize::try_from(u64::from(sector)).doing(what)?;
        let unit = sector.as_u64();
        let last = u32::try_from(self.size.get() / unit - 1).unwrap_or(u32::MAX);
        let mbr = ProtectiveMBR::with_lb_size(last);
        mbr.overwrite_lba0(&mut self.file).map_err(io::Error::other).doing(what)?;
        let config = GptConfig::new().writable(true).logical_block_size(sector);
        let table = config.create_from_device(&mut self.file, Some(id)).and_then(|mut table| {
            let length = self.size.minus(MARGIN).minus(MARGIN).round_down(MARGIN).get();
            let ours = Type { guid: PARTITION_TYPE, os: OperatingSystem::Linux };
            table.add_partition_at("lagan", 1, MARGIN.get() / unit, length / unit, ours, 0)?;
            table.write()
        });
        table.map_err(io::Error::other).doing(what)?;
        self.file.sync_all().doing(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"{"signatures": [
      {"device":"sda", "offset":"0x218", "type":"LVM2_member", "uuid":"a-b", "label":null},
      {"device":"sda", "offset":"0x1fe", "type":"PMBR", "uuid":null, "label":null}
   ]}"#;

    #[test]
    fn what_is_half_said_is_not_blank() {
        assert_eq!(signatures_in(SAID).unwrap().len(), 2);
        for cut in 1..SAID.len() {
            assert!(signatures_in(&SAID[..cut]).is_err(), "{cut}");
        }
        for noise in ["wipefs: error: /dev/sda: probing initialization failed", "{}", "[]", "null"] {
            assert!(signatures_in(noise).is_err(), "{noise}");
        }
    }

    #[test]
    fn hostile_input() {
        crate::hostile::feed("wipefs", &[SAID.as_bytes()], |input| {
            drop(signatures_in(String::from_utf8_lossy(input).trim()));
        });
    }
}
