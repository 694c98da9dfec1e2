//! What calls of a node cost beside many mounts of others. They are binds inside one tmpfs, which goes as a whole.

use std::{fs, path::Path};

use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount},
};

use super::{
    Bench,
    driver::{Driver, Sort},
    floors,
    report::Report,
};
use crate::{
    bytes::Bytes,
    error::{Doing, Result},
};

const SCENARIO: &str = "mount";
/// Calls of each kind in a round.
const CALLS: usize = 20;
/// Where the mounts of others are, below our root.
const OTHERS: &str = "others";

/// Name of the time of a call.
pub(super) fn beside(call: &str, others: usize) -> String {
    format!("{call}, {others} other mounts")
}

impl Bench<'_> {
    pub(super) async fn mounts(&mut self) -> Result<()> {
        let others = self.args.mounts;
        for _ in 0..self.args.rounds {
            for turn in self.turns() {
                for others in [0, others, 0] {
                    add(&self.root, others)?;
                    let calls = async |driver: &Driver, report: &mut Report| {
                        for sort in [Sort::raw(Bytes::mib(64)), Sort::ext4(Bytes::mib(64))] {
                            calls(driver, sort, others, report).await?;
                        }
                        Ok(())
                    };
                    let done = self.attempt((SCENARIO, turn), calls).await;
                    remove(&self.root)?;
                    done?;
                }
            }
        }
        Ok(())
    }
}

async fn calls(driver: &Driver, sort: Sort, others: usize, report: &mut Report) -> Result<()> {
    let (made, _) = driver.create(sort, None).await?;
    for _ in 0..CALLS {
        let (context, _) = driver.grant(&made).await?;
        let kind = if sort.filesystem.is_some() { "ext4" } else { "raw" };
        let mut note = |call: &str, took: f64, floor| {
            if took > 0.0 {
                let what = beside(&format!("{kind}: {call}"), others);
                report.time((SCENARIO, &what, &driver.name), took, floor);
            }
        };
        let mounted = sort.filesystem.map(|_| floors::MOUNT);
        note("stage", driver.stage(&made, &context).await?.1, mounted);
        note("publish", driver.publish(&made, &context).await?.1, Some(floors::RPC));
        note("stats", driver.stats(&made).await?.1, Some(floors::RPC));
        note("unpublish", driver.unpublish(&made).await?.1, Some(floors::RPC));
        note("unstage", driver.unstage(&made).await?.1, mounted);
    }
    driver.ungrant(&made).await?;
    driver.delete(made).await.map(drop)
}

/// Adds so many mounts to this host.
fn add(root: &Path, count: usize) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let others = root.join(OTHERS);
    let what = || format!("mount below {}", others.display());
    fs::create_dir(&others).doing(what)?;
    mount("lagan-bench", &others, "tmpfs", MountFlags::empty(), None).doing(what)?;
    mount_change(&others, MountPropagationFlags::PRIVATE).doing(what)?;
    for n in 0..count {
        let point = others.join(n.to_string());
        fs::create_dir(&point).doing(what)?;
        mount_bind(&point, &point).doing(what)?;
    }
    Ok(())
}

/// Takes them away again; fine where there are none.
pub(super) fn remove(root: &Path) -> Result<()> {
    let others = root.join(OTHERS);
    match unmount(&others, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => super::super::scratch::gone(&others, fs::remove_dir),
        Err(error) => Err(error).doing(|| format!("unmount {}", others.display())),
    }
}
