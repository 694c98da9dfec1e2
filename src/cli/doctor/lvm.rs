//! What a pool of LVM suffers from, judged from what is known of it, with the remedy for each.

use super::{Finding, Verdict, finding};
use crate::{
    bytes::Bytes,
    pool::thin::report::{KernelFacts, LvmFacts, RecordFacts, Report},
};

/// Bytes of metadata that map a thousand blocks of one thin device written in no order: 5.3 blocks of 4 KiB, measured.
const PER_THOUSAND: u64 = 21_709;
/// From which part of its space in use on a pool needs its operator.
const NEARLY_FULL_PERCENT: u32 = 80;
/// From which part on nothing new is made in it.
const METADATA_LIMIT_PERCENT: u32 = 75;

/// What is looked at, and what comes of it.
struct Judge<'r> {
    subject: String,
    /// How `lvextend` and friends call the pool.
    pool: &'r str,
    overcommit_percent: u32,
    findings: Vec<Finding>,
}

/// Judges a report; `pool` is VG/POOL.
pub(super) fn judge(subject: &str, pool: &str, overcommit_percent: u32, report: &Report) -> Vec<Finding> {
    let mut judge = Judge { subject: subject.to_owned(), pool, overcommit_percent, findings: Vec::new() };
    judge.host(report);
    if report.mapper.is_err() {
        return judge.findings;
    }
    match &report.lvm {
        Ok(lvm) => judge.lvm(lvm, report.kernel.as_ref().ok()),
        Err(why) => judge.fails("LVM", why.clone()),
    }
    match (&report.kernel, &report.records) {
        // One reason for both is said once, by whoever looked for the pool.
        (Err(why), Err(other)) if why == other => judge.fails("device", why.clone()),
        (kernel, records) => {
            match kernel {
                Ok(kernel) => judge.kernel(kernel),
                Err(why) => judge.fails("device", why.clone()),
            }
            if let Err(why) = records {
                let what = format!("{why}. `lagan pool restore` takes them back from a backup");
                judge.fails("records", what);
            }
        }
    }
    if let (Ok(lvm), Ok(kernel), Ok(records)) = (&report.lvm, &report.kernel, &report.records) {
        judge.metadata(lvm, kernel, records);
        judge.promises(lvm, kernel, records);
    }
    judge.devices(report);
    judge.findings
}

impl Judge<'_> {
    fn add(&mut self, verdict: Verdict, part: &str, what: impl Into<String>) {
        self.findings.push(finding(verdict, &format!("{}: {part}", self.subject), what));
    }

    fn well(&mut self, part: &str, what: impl Into<String>) {
        self.add(Verdict::Well, part, what);
    }

    fn warns(&mut self, part: &str, what: impl Into<String>) {
        self.add(Verdict::Warning, part, what);
    }

    fn fails(&mut self, part: &str, what: impl Into<String>) {
        self.add(Verdict::Failure, part, what);
    }

    fn host(&mut self, report: &Report) {
        match &report.mapper {
            Ok(()) => self.well("device-mapper", "answers"),
            Err(why) => {
                let what = format!("{why}: run `modprobe dm_mod`; in a container mount the host's /dev");
                self.fails("device-mapper", what);
            }
        }
        if report.thin_target {
            self.well("dm_thin_pool", "the kernel has it");
        } else {
            self.fails("dm_thin_pool", "the kernel has it not loaded: run `modprobe dm_thin_pool`");
        }
        match &report.groups {
            Ok(1) | Err(_) => {}
            Ok(0) => self.fails("volume group", "there is none of this name: is its disk there (`pvs`)?"),
            Ok(count) => {
                let what = format!(
                    "{count} groups have this name, and LVM takes neither: rename one by its uuid (`vgs -o +vg_uuid`, \
                     `vgrename UUID NAME`)"
                );
                self.fails("volume group", what);
            }
        }
        for complaint in &report.complaints {
            let what = format!(
                "{complaint}. Where two devices show one identity, as copies and multipath do, take one away or \
                 exclude it (global_filter in lvm.conf, or `lvmdevices`)"
            );
            self.warns("LVM complains", what);
        }
    }

    fn lvm(&mut self, lvm: &LvmFacts, kernel: Option<&KernelFacts>) {
        if lvm.zeroing {
            self.well("zeroing", "new blocks are zeroed");
        } else {
            let what = format!(
                "new blocks are not zeroed, so one tenant can read what another has deleted: run \
                 `lvchange --zero y {}`",
                self.pool
            );
            self.fails("zeroing", what);
        }
        if let Some(kernel) = kernel.filter(|kernel| kernel.transaction != lvm.transaction) {
            let what = format!(
                "the kernel counts {} changes and LVM {}, so LVM changes nothing in the pool any more: stop what uses \
                 it, then `vgcfgbackup`, set transaction_id, `vgcfgrestore --force`",
                kernel.transaction, lvm.transaction
            );
            self.fails("count of changes", what);
        }
        match (lvm.monitored, lvm.threshold) {
            (true, threshold @ 1..=99) => {
                let what = format!("LVM extends the pool at {threshold} % while the group has room");
                self.well("monitoring", what);
            }
            _ => {
                let what = format!(
                    "LVM does not extend the pool by itself ({}; the group has {} left): watch it, or set \
                     thin_pool_autoextend_threshold below 100 in lvm.conf and run `lvchange --monitor y {}`",
                    if lvm.monitored { "the threshold is 100" } else { "not monitored" },
                    lvm.free,
                    self.pool
                );
                self.warns("monitoring", what);
            }
        }
    }

    fn kernel(&mut self, kernel: &KernelFacts) {
        if let Some(trouble) = &kernel.trouble {
            self.fails("state", trouble.clone());
            return;
        }
        let (used, total) = kernel.data;
        let what = format!("{used} of {total} are used");
        let extend = format!("extend it (`lvextend -L +SIZE {}`), or delete", self.pool);
        if kernel.full {
            self.fails("data", format!("it is full, and writes wait or fail: {extend}"));
        } else if used > total.percent(NEARLY_FULL_PERCENT) {
            self.warns("data", format!("{what}: {extend}"));
        } else {
            self.well("data", what);
        }
    }

    /// Metadata must never fill: that breaks the pool.
    fn metadata(&mut self, lvm: &LvmFacts, kernel: &KernelFacts, records: &RecordFacts) {
        let (used, total) = kernel.metadata;
        let whole = needed(kernel.data.1, lvm.chunk);
        let promised = records.promised.plus(records.snapshots).plus(lvm.promised);
        let worst = needed(promised, lvm.chunk);
        let room = total.percent(METADATA_LIMIT_PERCENT);
        let extend = |size: Bytes| {
            let mib = size.minus(total).get().div_ceil(1 << 20).max(1);
            format!("`lvextend --poolmetadatasize +{mib}m {}`", self.pool)
        };
        let chunks = format!("blocks of {}", lvm.chunk);
        // 100/75 of what has to fit below the limit.
        let least = whole.percent(134);
        if used > room {
            let what =
                format!("{used} of {total} are used, and it must never fill: {}", extend(total.percent(200)));
            self.fails("metadata", what);
        } else if whole > room {
            let what = format!(
                "{total} cannot map all of the pool in {chunks}, for which {least} are needed: {}",
                extend(least)
            );
            self.warns("metadata", what);
        } else if worst > total {
            let what = format!(
                "{used} of {total} are used; if every volume and snapshot were overwritten in full, {worst} would be, \
                 and nothing new is made from {room} on: {}",
                extend(worst)
            );
            self.warns("metadata", what);
        } else {
            self.well("metadata", format!("{used} of {total} are used, in {chunks}"));
        }
    }

    fn promises(&mut self, lvm: &LvmFacts, kernel: &KernelFacts, records: &RecordFacts) {
        let promised = records.promised.plus(lvm.promised);
        let (total, limit) = (kernel.data.1, kernel.data.1.percent(self.overcommit_percent));
        let what = format!(
            "{promised} are promised of {total} ({} to volumes, {} to thin volumes of LVM)",
            records.promised, lvm.promised
        );
        if promised > limit {
            let what = format!(
                "{what}, more than overcommit_percent = {} allows: extend the pool, or delete",
                self.overcommit_percent
            );
            self.warns("promises", what);
        } else if promised > total {
            self.warns("promises", format!("{what}: writers alone can fill the pool, watch its data"));
        } else {
            self.well("promises", what);
        }
        if records.damaged > 0 {
            let what = format!(
                "{} cannot be read; nothing new is made under a name that is not known: `lagan pool restore` takes \
                 them back from a backup",
                records.damaged
            );
            self.fails("records", what);
        }
    }

    fn devices(&mut self, report: &Report) {
        for device in &report.suspended {
            let (owner, remedy) = if device.ours {
                ("of ours", "start the daemon, which lets it go on; without it")
            } else {
                ("of LVM", "if no command of LVM is at work on it")
            };
            let what = format!(
                "{} {owner} stands still, and with it whoever reads or writes it: {remedy}, `dmsetup resume {}`",
                device.name, device.name
            );
            self.fails("suspended", what);
        }
        match &report.strangers {
            Err(why) if report.kernel.is_ok() => {
                self.warns("thin devices", format!("cannot be listed: {why}"));
            }
            Err(_) => {}
            Ok(strangers) if strangers.is_empty() => {
                self.well("thin devices", "a record belongs to each");
            }
            Ok(strangers) => {
                for device in strangers {
                    let what = format!(
                        "no record belongs to thin device {} ({} of data). It is left alone and its number never \
                         given away; `lagan volume import NAME --thin-id {}` makes a volume of it",
                        device.number, device.mapped, device.number
                    );
                    self.warns("thin devices", what);
                }
            }
        }
    }
}

/// Metadata that mapping this much takes.
fn needed(mapped: Bytes, chunk: Bytes) -> Bytes {
    let chunks = mapped.get().div_ceil(chunk.get().max(1));
    Bytes::new(chunks.saturating_mul(PER_THOUSAND) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::PoolId, pool::thin::report::Suspended, sys::thin_metadata::ThinDevice};

    /// A pool of which nothing bad can be said.
    fn healthy() -> Report {
        Report {
            mapper: Ok(()),
            thin_target: true,
            groups: Ok(1),
            complaints: Vec::new(),
            lvm: Ok(LvmFacts {
                zeroing: true,
                chunk: Bytes::new(64 << 10),
                free: Bytes::gib(10),
                transaction: 7,
                monitored: true,
                threshold: 70,
                promised: Bytes::mib(4),
            }),
            kernel: Ok(KernelFacts {
                trouble: None,
                full: false,
                transaction: 7,
                data: (Bytes::gib(1), Bytes::gib(10)),
                metadata: (Bytes::mib(1), Bytes::mib(64)),
            }),
            records: Ok(RecordFacts {
                id: PoolId::random(),
                damaged: 0,
                promised: Bytes::gib(5),
                snapshots: Bytes::gib(5),
            }),
            suspended: Vec::new(),
            strangers: Ok(Vec::new()),
        }
    }

    /// What is found beside what is well, after a change to the healthy pool: one finding, of a subject and a verdict.
    #[track_caller]
    fn finds(change: impl FnOnce(&mut Report), part: &str, verdict: Verdict, remedy: &str) {
        let mut report = healthy();
        change(&mut report);
        let mut findings = judge("p", "vg/pool", 200, &report);
        findings.retain(|finding| finding.verdict != Verdict::Well);
        let said: Vec<_> =
            findings.iter().map(|it| (it.verdict, it.subject.as_str(), it.what.as_str())).collect();
        let [(found, subject, what)] = said[..] else { panic!("{said:?}") };
        assert_eq!((found, subject), (verdict, format!("p: {part}").as_str()), "{what}");
        assert!(what.contains(remedy), "{remedy:?} in {what}");
    }

    fn lvm(report: &mut Report) -> &mut LvmFacts {
        report.lvm.as_mut().unwrap()
    }

    fn kernel(report: &mut Report) -> &mut KernelFacts {
        report.kernel.as_mut().unwrap()
    }

    fn records(report: &mut Report) -> &mut RecordFacts {
        report.records.as_mut().unwrap()
    }

    #[test]
    fn a_healthy_pool() {
        let findings = judge("p", "vg/pool", 200, &healthy());
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Well));
        assert_eq!(findings.len(), 8, "each thing that was looked at is said");
    }

    #[test]
    fn what_the_host_lacks() {
        let failure = Verdict::Failure;
        finds(|it| it.mapper = Err("no".into()), "device-mapper", failure, "modprobe dm_mod");
        finds(|it| it.thin_target = false, "dm_thin_pool", failure, "modprobe dm_thin_pool");
        finds(|it| it.groups = Ok(2), "volume group", failure, "vgrename");
        finds(|it| it.groups = Ok(0), "volume group", failure, "pvs");
        let complains = |it: &mut Report| it.complaints.push("PV x was already found".into());
        finds(complains, "LVM complains", Verdict::Warning, "PV x was already found. Where two devices");
    }

    #[test]
    fn what_is_wrong_with_the_pool() {
        let (failure, warning) = (Verdict::Failure, Verdict::Warning);
        finds(|it| lvm(it).zeroing = false, "zeroing", failure, "lvchange --zero y vg/pool");
        finds(|it| lvm(it).transaction = 8, "count of changes", failure, "vgcfgrestore");
        finds(|it| lvm(it).monitored = false, "monitoring", warning, "lvchange --monitor y vg/pool");
        finds(|it| lvm(it).threshold = 100, "monitoring", warning, "threshold is 100");
        finds(|it| it.lvm = Err("gone".into()), "LVM", failure, "gone");
        finds(|it| kernel(it).trouble = Some("sick".into()), "state", failure, "sick");
        finds(|it| kernel(it).full = true, "data", failure, "lvextend -L +SIZE vg/pool");
        finds(|it| kernel(it).data.0 = Bytes::gib(9), "data", warning, "lvextend -L +SIZE vg/pool");
        finds(|it| it.records = Err("holds no records".into()), "records", failure, "lagan pool restore");
        finds(|it| records(it).damaged = 2, "records", failure, "lagan pool restore");
        let lost = |it: &mut Report| {
            (it.kernel, it.records) = (Err("not active".into()), Err("not active".into()));
            it.strangers = Err("not active".into());
        };
        finds(lost, "device", failure, "not active");
    }

    #[test]
    fn metadata_that_cannot_last() {
        let metadata = |used, total| move |it: &mut Report| kernel(it).metadata = (used, total);
        let full = metadata(Bytes::mib(60), Bytes::mib(64));
        finds(full, "metadata", Verdict::Failure, "lvextend --poolmetadatasize +64m vg/pool");
        // 163,840 blocks take 868 blocks of metadata: 3.4 MiB, which has to be 75 % of it.
        let small = metadata(Bytes::mib(1), Bytes::mib(4));
        finds(small, "metadata", Verdict::Warning, "lvextend --poolmetadatasize +1m vg/pool");
        let promised = |it: &mut Report| records(it).snapshots = Bytes::gib(1000);
        finds(promised, "metadata", Verdict::Warning, "+277m");
        let larger = |it: &mut Report| {
            promised(it);
            lvm(it).chunk = Bytes::mib(1);
        };
        let mut report = healthy();
        larger(&mut report);
        assert!(judge("p", "vg/pool", 200, &report).iter().all(|it| it.verdict == Verdict::Well));
    }

    #[test]
    fn promises() {
        let promised = |size| move |it: &mut Report| records(it).promised = size;
        finds(promised(Bytes::gib(15)), "promises", Verdict::Warning, "watch its data");
        finds(promised(Bytes::gib(25)), "promises", Verdict::Warning, "overcommit_percent = 200");
    }

    #[test]
    fn devices_that_stand_still_or_are_nobodys() {
        let still =
            |ours| move |it: &mut Report| it.suspended.push(Suspended { name: "lagan-x".into(), ours });
        finds(still(true), "suspended", Verdict::Failure, "start the daemon");
        finds(still(false), "suspended", Verdict::Failure, "dmsetup resume lagan-x");
        let stranger = ThinDevice { number: 1_048_580, mapped: Bytes::mib(1), time: 0 };
        let found = |it: &mut Report| it.strangers = Ok(vec![stranger]);
        finds(found, "thin devices", Verdict::Warning, "--thin-id 1048580");
        finds(|it| it.strangers = Err("busy".into()), "thin devices", Verdict::Warning, "busy");
    }
}
