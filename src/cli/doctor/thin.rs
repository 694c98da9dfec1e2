//! What a thin pool suffers from, judged from what is known of it, with the remedy for each.

use super::{Finding, Verdict, finding};
use crate::{
    bytes::Bytes,
    config::Place,
    pool::thin::report::{KernelFacts, LvmFacts, RecordFacts, Report},
};

/// From which part of its space in use on a pool needs its operator.
const NEARLY_FULL_PERCENT: u32 = 80;

/// How the pool is configured.
pub(super) struct Terms<'c> {
    pub(super) place: &'c Place,
    pub(super) overcommit_percent: u32,
    /// At which use, in per cent, the driver extends it.
    pub(super) extend_at: Option<u32>,
}

impl Terms<'_> {
    /// How the pool gets longer data.
    fn extend(&self) -> String {
        match self.place {
            Place::Lvm { .. } => format!("`lagan pool extend --lvm {} --by SIZE`", self.place),
            _ => format!("make its disk longer, then `lagan pool extend --device {}`", self.place),
        }
    }

    /// How it gets longer metadata.
    fn extend_metadata(&self, by: Bytes) -> String {
        let mib = by.get().div_ceil(1 << 20).max(1);
        match self.place {
            Place::Lvm { .. } => format!("`lagan pool extend --lvm {} --metadata {mib}MiB`", self.place),
            _ => format!("it wants {mib} MiB more, which come with a longer disk: {}", self.extend()),
        }
    }
}

/// What is looked at, and what comes of it.
struct Judge<'r> {
    subject: String,
    terms: &'r Terms<'r>,
    findings: Vec<Finding>,
}

/// Judges a report.
pub(super) fn judge(subject: &str, terms: &Terms<'_>, report: &Report) -> Vec<Finding> {
    let mut judge = Judge { subject: subject.to_owned(), terms, findings: Vec::new() };
    judge.host(report);
    if report.mapper.is_err() {
        return judge.findings;
    }
    match &report.lvm {
        None => {}
        Some(Ok(lvm)) => judge.lvm(lvm, report.kernel.as_ref().ok()),
        Some(Err(why)) => judge.fails("LVM", why.clone()),
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
    if let (Ok(kernel), Ok(records)) = (&report.kernel, &report.records) {
        let lvm = report.lvm.as_ref().and_then(|lvm| lvm.as_ref().ok());
        judge.metadata(kernel);
        judge.promises(lvm.map(|lvm| lvm.promised).unwrap_or_default(), kernel, records);
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
            None | Some(Ok(1) | Err(_)) => {}
            Some(Ok(0)) => {
                self.fails("volume group", "there is none of this name: is its disk there (`pvs`)?")
            }
            Some(Ok(count)) => {
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
                self.terms.place
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
            _ if self.terms.extend_at.is_some() => {
                let at = self.terms.extend_at.unwrap_or_default();
                let what = format!("the driver extends the pool at {at} %; the group has {} left", lvm.free);
                self.well("monitoring", what);
            }
            (true, threshold @ 1..=99) => {
                let what = format!("LVM extends the pool at {threshold} % while the group has room");
                self.well("monitoring", what);
            }
            _ => {
                let what = format!(
                    "nobody extends the pool by itself (LVM: {}; the group has {} left): set extend_at_percent for the \
                     pool; or thin_pool_autoextend_threshold below 100 in lvm.conf, and `lvchange --monitor y {}`",
                    if lvm.monitored { "the threshold is 100" } else { "not monitored" },
                    lvm.free,
                    self.terms.place
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
        let extend = format!("extend it ({}), or delete", self.terms.extend());
        if kernel.full {
            self.fails("data", format!("it is full, and writes wait or fail: {extend}"));
        } else if used > total.percent(NEARLY_FULL_PERCENT) {
            self.warns("data", format!("{what}: {extend}"));
        } else {
            self.well("data", what);
        }
    }

    /// Metadata must never fill: that breaks the pool.
    fn metadata(&mut self, kernel: &KernelFacts) {
        let (used, total) = kernel.metadata;
        let usable = total.percent(95);
        let (whole, worst, chunk) = (kernel.whole, kernel.worst, kernel.chunk);
        if used > total.percent(NEARLY_FULL_PERCENT) {
            let extend = self.terms.extend_metadata(total);
            self.fails("metadata", format!("{used} of {total} are used, and it must never fill: {extend}"));
        } else if worst > usable {
            let what = format!(
                "{used} of {total} are used, but {worst} would be if every block of every volume were overwritten: \
                 nothing new is made. {}",
                self.terms.extend_metadata(worst.minus(usable))
            );
            self.warns("metadata", what);
        } else if whole > usable {
            let what = format!(
                "{total} cannot map all of the pool in blocks of {chunk}, for which {whole} are needed: {}",
                self.terms.extend_metadata(whole.minus(usable))
            );
            self.warns("metadata", what);
        } else {
            self.well("metadata", format!("{used} of {total} are used, in blocks of {chunk}"));
        }
    }

    fn promises(&mut self, lvm: Bytes, kernel: &KernelFacts, records: &RecordFacts) {
        let promised = records.promised.plus(lvm);
        let (total, limit) = (kernel.data.1, kernel.data.1.percent(self.terms.overcommit_percent));
        let what = format!(
            "{promised} are promised of {total} ({} to volumes, {lvm} to thin volumes of LVM)",
            records.promised
        );
        if promised > limit {
            let what = format!(
                "{what}, more than overcommit_percent = {} allows: extend the pool, or delete",
                self.terms.overcommit_percent
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::PoolId, pool::thin::report::Suspended, sys::thin_metadata::ThinDevice};

    /// A pool of which nothing bad can be said.
    fn healthy() -> Report {
        Report {
            mapper: Ok(()),
            thin_target: true,
            groups: Some(Ok(1)),
            complaints: Vec::new(),
            lvm: Some(Ok(LvmFacts {
                zeroing: true,
                free: Bytes::gib(10),
                transaction: 7,
                monitored: true,
                threshold: 70,
                promised: Bytes::mib(4),
            })),
            kernel: Ok(KernelFacts {
                trouble: None,
                full: false,
                transaction: 7,
                data: (Bytes::gib(1), Bytes::gib(10)),
                metadata: (Bytes::mib(1), Bytes::mib(64)),
                chunk: Bytes::new(64 << 10),
                whole: Bytes::mib(10),
                worst: Bytes::mib(20),
            }),
            records: Ok(RecordFacts { id: PoolId::random(), damaged: 0, promised: Bytes::gib(5) }),
            suspended: Vec::new(),
            strangers: Ok(Vec::new()),
        }
    }

    fn group() -> Place {
        Place::Lvm { vg: "vg".into(), thin_pool: "pool".into() }
    }

    fn judged(place: &Place, extend_at: Option<u32>, report: &Report) -> Vec<Finding> {
        judge("p", &Terms { place, overcommit_percent: 200, extend_at }, report)
    }

    /// What is found beside what is well, after a change to the healthy pool: one finding, of a subject and a verdict.
    #[track_caller]
    fn finds(change: impl FnOnce(&mut Report), part: &str, verdict: Verdict, remedy: &str) {
        let mut report = healthy();
        change(&mut report);
        let mut findings = judged(&group(), None, &report);
        findings.retain(|finding| finding.verdict != Verdict::Well);
        let said: Vec<_> =
            findings.iter().map(|it| (it.verdict, it.subject.as_str(), it.what.as_str())).collect();
        let [(found, subject, what)] = said[..] else { panic!("{said:?}") };
        assert_eq!((found, subject), (verdict, format!("p: {part}").as_str()), "{what}");
        assert!(what.contains(remedy), "{remedy:?} in {what}");
    }

    fn lvm(report: &mut Report) -> &mut LvmFacts {
        report.lvm.as_mut().unwrap().as_mut().unwrap()
    }

    fn kernel(report: &mut Report) -> &mut KernelFacts {
        report.kernel.as_mut().unwrap()
    }

    fn records(report: &mut Report) -> &mut RecordFacts {
        report.records.as_mut().unwrap()
    }

    #[test]
    fn a_healthy_pool() {
        let findings = judged(&group(), None, &healthy());
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Well));
        assert_eq!(findings.len(), 8, "each thing that was looked at is said");
    }

    #[test]
    fn what_the_host_lacks() {
        let failure = Verdict::Failure;
        finds(|it| it.mapper = Err("no".into()), "device-mapper", failure, "modprobe dm_mod");
        finds(|it| it.thin_target = false, "dm_thin_pool", failure, "modprobe dm_thin_pool");
        finds(|it| it.groups = Some(Ok(2)), "volume group", failure, "vgrename");
        finds(|it| it.groups = Some(Ok(0)), "volume group", failure, "pvs");
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
        finds(|it| it.lvm = Some(Err("gone".into())), "LVM", failure, "gone");
        finds(|it| kernel(it).trouble = Some("sick".into()), "state", failure, "sick");
        finds(|it| kernel(it).full = true, "data", failure, "lagan pool extend --lvm vg/pool --by SIZE");
        finds(
            |it| kernel(it).data.0 = Bytes::gib(9),
            "data",
            warning,
            "lagan pool extend --lvm vg/pool --by SIZE",
        );
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
        let full = |it: &mut Report| kernel(it).metadata.0 = Bytes::mib(60);
        finds(full, "metadata", Verdict::Failure, "lagan pool extend --lvm vg/pool --metadata 64MiB");
        let small = |it: &mut Report| kernel(it).whole = Bytes::mib(64);
        finds(small, "metadata", Verdict::Warning, "cannot map all of the pool in blocks of 64.0 KiB");
        let promised = |it: &mut Report| kernel(it).worst = Bytes::mib(164);
        finds(promised, "metadata", Verdict::Warning, "--metadata 104MiB");
    }

    #[test]
    fn a_pool_on_a_disk_of_its_own_or_extended_by_the_driver() {
        let mut report = healthy();
        (report.groups, report.lvm) = (None, None);
        kernel(&mut report).full = true;
        let findings = judged(&Place::Block("/dev/sdx".into()), None, &report);
        let full = findings.iter().find(|it| it.verdict != Verdict::Well).unwrap();
        assert!(full.what.contains("`lagan pool extend --device /dev/sdx`"), "{}", full.what);
        let mut report = healthy();
        lvm(&mut report).monitored = false;
        assert!(judged(&group(), Some(80), &report).iter().all(|it| it.verdict == Verdict::Well));
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
