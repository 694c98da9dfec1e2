//! Mount flags that a request may carry. A list for each filesystem says which; a flag that is not on it is refused,
//! and each goes to the kernel by itself, so that none can carry another one in.

use crate::{
    digest::Digest,
    error::{Error, ErrorKind, Result},
    filesystem::Filesystem,
    sys::kernel::Attributes,
};

/// What a list of mount flags comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountOptions {
    /// For the one mount.
    pub(super) attributes: Attributes,
    /// `ro` was among them.
    pub(super) read_only: bool,
    /// For the filesystem, in the order given.
    pub(super) options: Vec<(String, Option<String>)>,
}

impl MountOptions {
    /// A fingerprint of what concerns the filesystem as a whole, short enough for a device's label.
    pub(super) fn fingerprint(&self, read_only: bool) -> String {
        let mut parts: Vec<&[u8]> = vec![if read_only { b"ro" } else { b"rw" }];
        for (key, value) in &self.options {
            parts.push(key.as_bytes());
            parts.push(value.as_deref().unwrap_or_default().as_bytes());
        }
        Digest::of(parts).short().to_owned()
    }
}

/// What may stand behind the `=` of an option.
#[derive(Clone, Copy)]
enum Value {
    /// Nothing, and no `=`.
    None,
    /// A decimal number, with `k`, `m` or `g` behind it or not.
    Number,
    /// One of these words.
    Word(&'static [&'static str]),
    /// An SELinux context.
    Context,
}

/// Options of the kernel's filesystem layer, the same for every filesystem.
const COMMON: &[(&str, Value)] = &[
    ("sync", Value::None),
    ("async", Value::None),
    ("dirsync", Value::None),
    ("lazytime", Value::None),
    ("nolazytime", Value::None),
    ("context", Value::Context),
];

const EXT4: &[(&str, Value)] = &[
    ("discard", Value::None),
    ("nodiscard", Value::None),
    ("commit", Value::Number),
    ("auto_da_alloc", Value::None),
    ("noauto_da_alloc", Value::None),
    ("delalloc", Value::None),
    ("nodelalloc", Value::None),
    ("errors", Value::Word(&["continue", "remount-ro"])),
    ("data", Value::Word(&["ordered", "writeback", "journal"])),
    ("stripe", Value::Number),
    ("max_batch_time", Value::Number),
    ("min_batch_time", Value::Number),
    ("journal_ioprio", Value::Number),
    ("dioread_lock", Value::None),
    ("dioread_nolock", Value::None),
    ("init_itable", Value::Number),
    ("noinit_itable", Value::None),
];

const XFS: &[(&str, Value)] = &[
    ("discard", Value::None),
    ("nodiscard", Value::None),
    ("allocsize", Value::Number),
    ("inode32", Value::None),
    ("inode64", Value::None),
    ("largeio", Value::None),
    ("nolargeio", Value::None),
    ("logbufs", Value::Number),
    ("logbsize", Value::Number),
    ("nouuid", Value::None),
    ("swalloc", Value::None),
    ("filestreams", Value::None),
];

const BTRFS: &[(&str, Value)] = &[
    ("discard", Value::Word(&["sync", "async"])),
    ("discard", Value::None),
    ("nodiscard", Value::None),
    ("commit", Value::Number),
    ("compress", Value::Word(&["zlib", "lzo", "zstd", "no"])),
    ("compress-force", Value::Word(&["zlib", "lzo", "zstd", "no"])),
    ("autodefrag", Value::None),
    ("noautodefrag", Value::None),
    ("nodatacow", Value::None),
    ("datacow", Value::None),
    ("nodatasum", Value::None),
    ("datasum", Value::None),
    ("ssd", Value::None),
    ("nossd", Value::None),
    ("flushoncommit", Value::None),
    ("noflushoncommit", Value::None),
    ("max_inline", Value::Number),
    ("thread_pool", Value::Number),
];

/// Flags of the mount rather than the filesystem, and what each sets and clears.
const ATTRIBUTES: &[(&str, Attributes, Attributes)] = &[
    ("defaults", Attributes::NONE, Attributes::NONE),
    ("rw", Attributes::NONE, Attributes::READ_ONLY),
    ("ro", Attributes::READ_ONLY, Attributes::NONE),
    // Always set; asking for them changes nothing, and asking for the opposite is refused.
    ("nosuid", Attributes::NOSUID, Attributes::NONE),
    ("nodev", Attributes::NODEV, Attributes::NONE),
    ("noexec", Attributes::NOEXEC, Attributes::NONE),
    ("exec", Attributes::NONE, Attributes::NOEXEC),
    ("noatime", Attributes::NOATIME, Attributes::STRICTATIME),
    ("strictatime", Attributes::STRICTATIME, Attributes::NOATIME),
    ("relatime", Attributes::NONE, Attributes::NOATIME.and(Attributes::STRICTATIME)),
    ("nodiratime", Attributes::NODIRATIME, Attributes::NONE),
    ("diratime", Attributes::NONE, Attributes::NODIRATIME),
];

/// Sorts mount flags into what they ask for.
///
/// # Errors
/// `Invalid` where one is not on the list. The message shows at most its key: a value may be secret.
pub(super) fn parse(filesystem: Filesystem, flags: &[String]) -> Result<MountOptions> {
    let own = match filesystem {
        Filesystem::Ext4 => EXT4,
        Filesystem::Xfs => XFS,
        Filesystem::Btrfs => BTRFS,
    };
    let mut parsed = MountOptions { attributes: Attributes::NONE, read_only: false, options: Vec::new() };
    for flag in flags {
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| name == flag) {
            parsed.attributes = parsed.attributes.without(*clear).and(*set);
            continue;
        }
        let (key, value) = match flag.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (flag.as_str(), None),
        };
        let mut listed = COMMON.iter().chain(own).filter(|(name, _)| *name == key).peekable();
        if listed.peek().is_none() {
            let shown: String = key.chars().filter(|c| c.is_ascii_graphic()).take(32).collect();
            return Err(invalid(filesystem, &format!("mount flag {shown:?} is not on the list")));
        }
        let fitting = listed.find_map(|(_, grammar)| accept(*grammar, value));
        let value =
            fitting.ok_or_else(|| invalid(filesystem, &format!("the value of mount flag {key} is wrong")))?;
        parsed.options.push((key.to_owned(), value));
    }
    parsed.read_only = parsed.attributes.contains(Attributes::READ_ONLY);
    Ok(parsed)
}

fn invalid(filesystem: Filesystem, what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{what} of those that {filesystem} volumes allow"))
}

/// The value as the kernel is to get it, where it fits the grammar.
fn accept(grammar: Value, value: Option<&str>) -> Option<Option<String>> {
    match (grammar, value) {
        (Value::None, None) => Some(None),
        (Value::Number, Some(text)) => is_number(text).then(|| Some(text.to_owned())),
        (Value::Word(words), Some(text)) => words.contains(&text).then(|| Some(text.to_owned())),
        (Value::Context, Some(text)) => {
            // Kubelet quotes it because its commas would end an option in an option string. There is none here.
            let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
            let plain = bare.bytes().all(|b| b.is_ascii_alphanumeric() || b":,._-".contains(&b));
            (plain && !bare.is_empty() && bare.len() <= 255).then(|| Some(bare.to_owned()))
        }
        _ => None,
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']).unwrap_or(text);
    (1..=12).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(filesystem: Filesystem, flags: &[&str]) -> Result<MountOptions> {
        parse(filesystem, &flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_go_where_they_belong() {
        let parsed = check(Filesystem::Ext4, &["noatime", "discard", "commit=30", "ro", "noexec"]).unwrap();
        let expected = Attributes::NOATIME.and(Attributes::READ_ONLY).and(Attributes::NOEXEC);
        assert_eq!((parsed.attributes, parsed.read_only), (expected, true));
        assert_eq!(parsed.options, [("discard".into(), None), ("commit".into(), Some("30".into()))]);
        let last_wins = check(Filesystem::Xfs, &["noatime", "strictatime", "ro", "rw"]).unwrap();
        assert_eq!((last_wins.attributes, last_wins.read_only), (Attributes::STRICTATIME, false));
    }

    #[test]
    fn a_context_loses_its_quotes_and_keeps_its_commas() {
        let flag = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let parsed = check(Filesystem::Xfs, &[flag]).unwrap();
        let context = "system_u:object_r:container_file_t:s0:c1,c2".to_owned();
        assert_eq!(parsed.options, [("context".into(), Some(context))]);
        for wrong in ["context=", "context=\"\"", "context=a\"b", "context=a b", "context=a\\,b"] {
            assert!(check(Filesystem::Xfs, &[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_else_passes() {
        for flag in [
            "suid",
            "dev",
            "noatime,suid",
            "discard,dev",
            "logdev=/dev/sda",
            "journal_path=/etc",
            "usrjquota=x",
            "commit",
            "commit=",
            "commit=-1",
            "commit=1,suid",
            "data=journal,x",
            "errors=panic",
            "discard=async",
            "nouuid",
            "subvol=x",
            "source=/dev/sda",
            "",
            "=",
            "ro=1",
            "bind",
            "remount",
            "move",
            "x-systemd.a",
            "user",
            "norecovery",
            "noload",
            "-o",
            "fscontext=x",
            "uid=0",
            "DISCARD",
            "discard ",
        ] {
            assert!(check(Filesystem::Ext4, &[flag]).is_err(), "{flag:?}");
        }
        assert!(check(Filesystem::Btrfs, &["discard=async", "compress=zstd"]).is_ok());
        assert!(check(Filesystem::Btrfs, &["device=/dev/sda"]).is_err());
        assert!(check(Filesystem::Xfs, &["norecovery"]).is_err());
    }

    #[test]
    fn an_error_does_not_repeat_a_value() {
        let error = check(Filesystem::Ext4, &["password=hunter2"]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn the_fingerprint_tells_options_apart() {
        let of = |flags: &[&str], read_only| check(Filesystem::Ext4, flags).unwrap().fingerprint(read_only);
        assert_eq!(of(&["discard"], false), of(&["noatime", "discard"], false), "attributes are the mount's");
        assert_ne!(of(&["discard"], false), of(&[], false));
        assert_ne!(of(&["discard"], false), of(&["discard"], true));
    }

    /// What passes is on the list, and goes to the kernel with nothing in it that could be a second option.
    #[test]
    fn hostile_input() {
        let samples: [&[u8]; 3] =
            [b"noatime\ndiscard\ncommit=30", b"compress=zstd\nro", b"context=\"u:r:t:s0:c1,c2\""];
        crate::hostile::feed("mount-options", &samples, |input| {
            let text = String::from_utf8_lossy(input);
            let flags: Vec<_> = text.split('\n').map(str::to_owned).collect();
            for (filesystem, own) in
                [(Filesystem::Ext4, EXT4), (Filesystem::Xfs, XFS), (Filesystem::Btrfs, BTRFS)]
            {
                let Ok(parsed) = parse(filesystem, &flags) else { continue };
                for (key, value) in &parsed.options {
                    assert!(COMMON.iter().chain(own).any(|(name, _)| name == key), "{key}");
                    let plain = |c: char| {
                        c.is_ascii_alphanumeric() || ":._-".contains(c) || (c == ',' && key == "context")
                    };
                    assert!(value.iter().all(|value| value.chars().all(plain)), "{key}={value:?}");
                }
                assert!(!parsed.fingerprint(false).is_empty());
            }
        });
    }
}
