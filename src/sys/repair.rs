//! An ext4 that recorded errors is mended before it is mounted, as far as that is safe without a person.

use std::time::Duration;

use super::{
    cmd::{AfterDeadline, Commands, Tool},
    device::Device,
};
use crate::error::{Error, ErrorKind, Result};

/// How long a caller waits for the checker. It is never stopped.
const PATIENCE: Duration = Duration::from_secs(100);

/// Runs `e2fsck -p`, which mends what cannot lose data and gives up on the rest.
///
/// # Errors
/// `Unavailable` where a person is needed, and what to run; `Unsettled` while the checker still runs.
pub(super) fn repair_ext4(device: &Device, commands: &Commands) -> Result<()> {
    let path = device.path.display().to_string();
    let finished = commands.run(Tool::CheckExt4, &["-p", &path], PATIENCE, AfterDeadline::LeaveRunning)?;
    // e2fsck(8): bit 0 is "errors corrected"; 0 and 1 leave a clean filesystem.
    if matches!(finished.status.code(), Some(0 | 1)) {
        return Ok(());
    }
    let what = format!(
        "the ext4 on {path} is damaged beyond what can be mended unattended: run `e2fsck -f {path}` on this host, \
         or restore a snapshot ({})",
        finished.output.trim()
    );
    Err(Error::new(ErrorKind::Unavailable, what))
}
