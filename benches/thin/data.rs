//! The data path: the same fio on a volume of ours and on a thin volume of LVM in the same pool, in turn.

use lagan::pool::{Attach, Pool};

use crate::{
    Ours, disk,
    group::{POOL, VG, lvm},
};

/// What is measured: reads, which wait for a disk, and writes, one after the other and many at a time.
const LOADS: [(&str, &str); 4] =
    [("randread", "1"), ("randread", "16"), ("randwrite", "1"), ("randwrite", "16")];
const ROUNDS: usize = 11;

/// Operations a second of one run.
fn fio(device: &str, load: (&str, &str)) -> f64 {
    let said = disk::run(
        "fio",
        &[
            "--name=bench",
            &format!("--filename={device}"),
            &format!("--rw={}", load.0),
            &format!("--iodepth={}", load.1),
            "--bs=4k",
            "--direct=1",
            "--ioengine=libaio",
            "--time_based",
            "--runtime=4",
            "--size=60m",
            "--output-format=terse",
        ],
    );
    // fio(1), terse format: operations a second of reads and of writes.
    let fields: Vec<&str> = said.lines().find(|line| line.starts_with("3;")).unwrap().split(';').collect();
    fields[7].parse::<f64>().unwrap() + fields[48].parse::<f64>().unwrap()
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// Measures and prints.
pub(crate) fn run(ours: &Ours) {
    let volume = ours.create(None);
    let how = Attach { read_only: false, transient: false, label: "bench".into() };
    let held = ours.runtime.block_on(ours.pool.attach(volume.id, &how)).unwrap();
    let our = held.attached.device.path.to_string_lossy().into_owned();
    lvm(&["lvcreate", "-y", "-n", "data", "-V", "64m", "--thinpool", &format!("{VG}/{POOL}")]);
    let theirs = format!("/dev/{VG}/data");
    for device in [&our, &theirs] {
        disk::run("dd", &["if=/dev/urandom", &format!("of={device}"), "bs=1M", "count=64", "oflag=direct"]);
    }
    for load in LOADS {
        let round = |index| {
            // Whoever comes first changes.
            if index % 2 == 0 {
                let ours = fio(&our, load);
                ours / fio(&theirs, load)
            } else {
                let theirs = fio(&theirs, load);
                fio(&our, load) / theirs
            }
        };
        let ratio = median((0..ROUNDS).map(round).collect());
        println!(
            "  fio {} of 4 KiB, {} at a time: {:.1} % of a thin volume of LVM",
            load.0,
            load.1,
            100.0 * ratio
        );
    }
}
