//! What tenants write is not for LVM of the host to read: a copied or invented physical volume inside a volume would stop
//! every command. Those of ours look past the devices of volumes, whatever the host's own settings are.

use super::devices;
use crate::{
    error::{Doing, Result},
    sys::{dm::Mapper, loopdev},
};

/// What `lvm lvmconfig` is asked for: the host's own patterns, which go on applying.
pub(super) const SETTING: &str = "devices/filter";

/// Names of devices, below /dev, on which tenants write.
pub(super) fn devices() -> Result<Vec<String>> {
    let what = || "list the devices that tenants write to";
    let mapper = Mapper::open().doing(|| "open device-mapper")?;
    let mut found = Vec::new();
    for (name, number) in mapper.list().doing(what)? {
        if devices::is_ours(&mapper, &name).doing(what)? {
            found.push(format!("dm-{}", number.minor()));
        }
    }
    // Files of volumes; and devices of volumes shown once more, as a kubelet does it.
    for (name, bound) in loopdev::list(|_| true).doing(what)? {
        if bound.on_device || is_volume(&name) {
            found.push(format!("loop{}", bound.number));
        }
    }
    Ok(found)
}

/// Whether a file is named as those of volumes are.
fn is_volume(name: &str) -> bool {
    let digits = name.strip_suffix(".raw").unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A setting that hides these devices, before the patterns that the host has set.
pub(super) fn hiding(devices: &[String], own: &str) -> String {
    let own = own.lines().find_map(|line| line.strip_prefix("filter=")).unwrap_or_default();
    let own = own.trim_matches(['[', ']']);
    let comma = if own.is_empty() { "" } else { "," };
    format!(" devices{{filter=[\"r#^/dev/({})$#\"{comma}{own}]}}", devices.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_the_host_stay() {
        let devices = ["dm-7".to_owned(), "loop0".to_owned()];
        assert_eq!(hiding(&devices, ""), " devices{filter=[\"r#^/dev/(dm-7|loop0)$#\"]}");
        for own in ["  WARNING\nfilter=[\"a|x|\",\"r|.*|\"]\n", "filter=\"a|x|\",\"r|.*|\""] {
            let both = " devices{filter=[\"r#^/dev/(dm-7|loop0)$#\",\"a|x|\",\"r|.*|\"]}";
            assert_eq!(hiding(&devices, own), both);
        }
    }

    #[test]
    fn volumes_by_their_names() {
        assert!(is_volume("0123456789abcdef0123456789abcdef.raw"));
        assert!(!is_volume("disk.img") && !is_volume(".raw"));
    }

    #[test]
    fn hostile_input() {
        crate::hostile::feed("lvm-filter", &[b"filter=[\"a|x|\",\"r|.*|\"]\n"], |input| {
            let text = hiding(&["dm-7".to_owned()], &String::from_utf8_lossy(input));
            assert!(
                text.starts_with(" devices{filter=[\"r#^/dev/(dm-7)$#\"") && text.ends_with("]}"),
                "{text}"
            );
        });
    }
}
