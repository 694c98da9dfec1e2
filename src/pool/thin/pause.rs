//! A volume in use that stands still for a moment: its device is suspended, under the eyes of the minder.

use uuid::Uuid;

use super::Inner;
use crate::error::{Doing, Error, ErrorKind, Result};

impl Inner {
    /// Does `work` while nobody writes to a volume: its device is suspended, and its filesystem with it, if it has one.
    pub(super) fn paused<T>(&self, owner: Uuid, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let names: Vec<String> =
            self.devices.attached(owner)?.into_iter().map(|(info, _)| info.name).collect();
        self.paused_devices(&names, &owner.simple().to_string(), work)
    }

    /// The same with devices by their names; `whose` is for people.
    pub(super) fn paused_devices<T>(
        &self,
        names: &[String],
        whose: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if names.is_empty() {
            return work();
        }
        let Some(minder) = &self.minder else {
            let what = format!("{whose} is in use, and no minder runs that could end a pause");
            return Err(Error::new(ErrorKind::Unavailable, what));
        };
        let limit = self.settings.freeze_limit;
        let resume = || {
            names
                .iter()
                .try_for_each(|name| self.devices.mapper.resume(name).doing(|| format!("resume {name}")))
        };
        let pause = minder.suspend(&self.devices.mapper, names, limit);
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
            Error::io(format!("pause {whose}: {reason}"), error).as_kind(kind)
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
}
