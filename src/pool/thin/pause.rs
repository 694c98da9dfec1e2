//! Volumes in use that stand still for a moment: their devices are suspended, under the eyes of the minder.

use uuid::Uuid;

use super::Inner;
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    sys::{dm::Suspend, mount::mounted_roots},
};

impl Inner {
    /// Brings what was written to mounted volumes to their devices while writers still run: a pause then has little to
    /// flush.
    pub(super) fn settle(&self, owners: &[Uuid]) -> Result<()> {
        let mut numbers = Vec::new();
        for owner in owners {
            // One that goes with its last user is made to be mounted, and no other.
            let mounted = self.devices.attached(*owner)?.into_iter().filter(|(info, _)| info.transient);
            numbers.extend(mounted.map(|(info, _)| info.number));
        }
        if numbers.is_empty() {
            return Ok(());
        }
        let what = || "flush volumes before they are paused";
        mounted_roots(&numbers).doing(what)?.iter().try_for_each(rustix::fs::syncfs).doing(what)
    }

    /// Does `work` while nobody writes to volumes: their devices are suspended, and their filesystems with them, where
    /// they have one.
    pub(super) fn paused<T>(&self, owners: &[Uuid], work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut names = Vec::new();
        for owner in owners {
            names.extend(self.devices.attached(*owner)?.into_iter().map(|(info, _)| info.name));
        }
        self.paused_devices(&names, work)
    }

    /// The same with devices by their names.
    pub(super) fn paused_devices<T>(&self, names: &[String], work: impl FnOnce() -> Result<T>) -> Result<T> {
        if names.is_empty() {
            return work();
        }
        let Some(door) = self.devices.mapper.handle() else {
            return self.paused_model(names, work);
        };
        let Some(minder) = &self.minder else {
            let what = format!("{} is in use, and no minder runs that could end a pause", names.join(", "));
            return Err(Error::new(ErrorKind::Unavailable, what));
        };
        let limit = self.settings.freeze_limit;
        let resume = || {
            names
                .iter()
                .try_for_each(|name| self.devices.mapper.resume(name).doing(|| format!("resume {name}")))
        };
        let pause = minder.suspend(door, names, limit);
        if pause.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            // The minder has died, perhaps after it had begun.
            resume()?;
        }
        let pause = pause.map_err(|error| {
            let (reason, kind) = match error.kind() {
                std::io::ErrorKind::WouldBlock => ("another pause lasts", ErrorKind::Busy),
                std::io::ErrorKind::TimedOut => ("a write to it did not end in time", ErrorKind::InUse),
                std::io::ErrorKind::BrokenPipe => {
                    ("the minder is gone: restart the driver", ErrorKind::Unavailable)
                }
                _ => ("it could not be suspended", ErrorKind::Unavailable),
            };
            Error::io(format!("pause {}: {reason}", names.join(", ")), error).as_kind(kind)
        })?;
        let result = work();
        let in_time = match pause.end() {
            Ok(in_time) => in_time,
            // The minder has died: what it would have done.
            Err(_) => {
                resume()?;
                false
            }
        };
        let result = result?;
        if in_time {
            return Ok(result);
        }
        let limit = humantime::format_duration(limit);
        Err(Error::new(ErrorKind::Busy, format!("the pause took longer than {limit}")))
    }

    /// In a model nobody hangs who would need somebody else to end it.
    fn paused_model<T>(&self, names: &[String], work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mapper = &self.devices.mapper;
        let each = |change: &dyn Fn(&str) -> std::io::Result<()>| {
            names.iter().try_for_each(|name| change(name)).doing(|| format!("pause {}", names.join(", ")))
        };
        let result = each(&|name| mapper.suspend(name, Suspend::Clean)).and_then(|()| work());
        // All of them, as the minder does, which does not give up at once either.
        each(&|name| mapper.resume(name).or_else(|_failed| mapper.resume(name)))?;
        result
    }
}
