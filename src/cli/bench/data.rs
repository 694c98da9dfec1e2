//! Input and output: the same fio on a published volume and on a bare file of the same filesystem.

use std::fs;

use super::{
    Bench,
    driver::{Driver, Sort},
    hand::{Pattern, fill, fio},
    report::{MACHINE, Report, Unit},
};
use crate::{bytes::Bytes, error::Result};

const SCENARIO: &str = "data";
/// Length of file and volume.
const SIZE: Bytes = Bytes::gib(1);
/// How long one pattern runs.
const SECS: u32 = 2;

/// What is measured.
pub(super) const PATTERNS: [Pattern; 6] = [
    Pattern { name: "read 4 KiB, 32 at a time", rw: "randread", block: "4k", depth: "32" },
    Pattern { name: "read 4 KiB, one at a time", rw: "randread", block: "4k", depth: "1" },
    Pattern { name: "write 4 KiB, 32 at a time", rw: "randwrite", block: "4k", depth: "32" },
    Pattern { name: "write 4 KiB, one at a time", rw: "randwrite", block: "4k", depth: "1" },
    Pattern { name: "read 1 MiB streams", rw: "read", block: "1m", depth: "8" },
    Pattern { name: "write 1 MiB streams", rw: "write", block: "1m", depth: "8" },
];

impl Bench<'_> {
    pub(super) async fn data(&mut self) -> Result<()> {
        let file = self.bare.join("bench-file");
        fill(&file, SIZE, true)?;
        for turn in 0..self.drivers.len() {
            let rounds = self.args.rounds;
            let run = async |driver: &Driver, report: &mut Report| {
                let (made, _) = driver.create(Sort::raw(SIZE), None).await?;
                driver.use_it(&made).await?;
                let target = driver.target(&made);
                fill(&target, SIZE, false)?;
                for _ in 0..rounds {
                    for pattern in PATTERNS {
                        // Each on both, in turns.
                        for (path, who) in [(&file, MACHINE), (&target, driver.name.as_str())] {
                            report.watch();
                            let (operations, mib) = fio(path, pattern, SECS)?;
                            let of = (SCENARIO, pattern.name, who);
                            match pattern.block {
                                "1m" => report.add(of, Unit::MibPerSecond, mib, None),
                                _ => report.add(of, Unit::PerSecond, operations, None),
                            }
                            // ^C is heard between two runs.
                            tokio::task::yield_now().await;
                        }
                    }
                }
                driver.leave_it(&made).await?;
                driver.delete(made).await.map(drop)
            };
            self.attempt((SCENARIO, turn), run).await?;
        }
        super::super::scratch::gone(&file, fs::remove_file)
    }
}
