//! What a process leaves in device-mapper that dies at work: devices of a moment, such as stand still or were never started,
//! and notes of pauses. It is seen by whoever looks, and cleared away by the next start.

use std::time::Duration;

use super::devices::{Devices, is_work, remove};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    sys::{device::DeviceNumber, dm::OURS},
};

/// What the names of notes begin with.
const NOTE: &str = "lagan-pause-";
/// Apart from each other, so that the pause of a snapshot is not taken for one that lasts.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

impl Devices {
    /// What a process that was killed has left: devices of a moment, or such as stand still or were never started. Looked for
    /// twice, since a call that is under way has such too.
    pub(super) fn leftovers(&self) -> Result<Vec<String>> {
        let first = self.leftovers_now()?;
        if first.is_empty() {
            return Ok(first);
        }
        std::thread::sleep(BETWEEN_LOOKS);
        Ok(self.leftovers_now()?.into_iter().filter(|found| first.contains(found)).collect())
    }

    fn leftovers_now(&self) -> Result<Vec<String>> {
        let what = || "look for devices that were left";
        let mut found = Vec::new();
        let ours = format!("{OURS}{}-", self.pool);
        for (name, _) in self.mapper.list().doing(what)? {
            let Some(info) = self.mapper.info(&name).doing(what)?.filter(|it| it.uuid.starts_with(&ours))
            else {
                continue;
            };
            let label = info.uuid.splitn(4, '-').nth(3).unwrap_or_default();
            if info.suspended {
                found.push(format!("device {name} stands still"));
            } else if !info.active {
                found.push(format!("device {name} was never started"));
            } else if is_work(label) && info.open_count == 0 {
                found.push(format!("device {name} was made for a moment, and left"));
            }
        }
        Ok(found)
    }

    /// Lets every device of ours go on that stands still, and takes away those of a moment that were left.
    pub(super) fn sweep(&self) -> Result<Vec<String>> {
        let what = || "look for devices that stand still";
        let mut done = Vec::new();
        let ours = format!("{OURS}{}-", self.pool);
        for (name, _) in self.mapper.list().doing(what)? {
            if !name.starts_with("lagan-") {
                continue;
            }
            let Some(info) = self.mapper.info(&name).doing(what)?.filter(|it| it.uuid.starts_with(&ours))
            else {
                continue;
            };
            // Never started, and to be looked at only: no device of an object.
            if name.starts_with("lagan-look-") {
                remove(&self.mapper, &name)?;
                continue;
            }
            if name.starts_with(NOTE) {
                done.extend(self.end_noted_pause(&name)?);
                continue;
            }
            // Killed before it was started: it would hold what is below it for ever, and be seen by nobody.
            if !info.active && info.open_count == 0 {
                if remove(&self.mapper, &name)? {
                    done.push(format!("removed device {name}, which was never started"));
                }
                continue;
            }
            if info.suspended {
                self.mapper.resume(&name).doing(|| format!("resume {name}"))?;
                done.push(format!("let device {name} go on"));
            }
            if info.uuid.splitn(4, '-').nth(3).is_some_and(is_work) && remove(&self.mapper, &name)? {
                done.push(format!("removed device {name}"));
            }
        }
        Ok(done)
    }

    /// Notes that a device of somebody else is about to stand still: as a device without a table, which lasts as long as
    /// that one does.
    pub(super) fn note_pause(&self, number: DeviceNumber) -> Result<()> {
        let (name, uuid) = (format!("{NOTE}{number}"), format!("{OURS}{}-pause-{number}", self.pool));
        let what = || format!("note the pause of device {number}");
        // One that is left says the same.
        if self.mapper.info(&name).doing(what)?.is_none() {
            self.mapper.create(&name, &uuid).doing(what)?;
        }
        Ok(())
    }

    /// Takes the note away once the device goes on.
    pub(super) fn forget_pause(&self, number: DeviceNumber, device: &str) -> Result<()> {
        let what = || format!("forget the pause of device {number}");
        if self.mapper.info(device).doing(what)?.is_some_and(|info| info.suspended) {
            return Err(Error::new(ErrorKind::Unsettled, format!("{}: it stands still", what())));
        }
        remove(&self.mapper, &format!("{NOTE}{number}")).map(drop)
    }

    /// Lets a device of somebody else go on, if a note says that we made it stand still.
    fn end_noted_pause(&self, note: &str) -> Result<Option<String>> {
        let what = || format!("end the pause that {note} notes");
        let number = note.strip_prefix(NOTE).unwrap_or_default();
        let mut all = self.mapper.list().doing(what)?.into_iter();
        let mut done = None;
        if let Some((name, _)) = all.find(|(_, known)| known.to_string() == number)
            && self.mapper.info(&name).doing(what)?.is_some_and(|info| info.suspended && info.active)
        {
            self.mapper.resume(&name).doing(what)?;
            done = Some(format!("let device {name} go on"));
        }
        remove(&self.mapper, note)?;
        Ok(done)
    }
}
