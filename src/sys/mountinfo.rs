//! The kernel's table of mounts, /proc/self/mountinfo, as data. Read only where the question is "who else?"; "is
//! this a mount?" is asked of one file by statx, which does not grow with the table.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use super::device::DeviceNumber;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, as /proc/PID/fdinfo knows it too.
    pub id: u64,
    /// Device number of its files (`st_dev`).
    pub device: DeviceNumber,
    /// What of the filesystem is mounted: `/`, or the file or directory that was bound.
    pub root: String,
    /// Where.
    pub mount_point: PathBuf,
    /// Options of this mount, such as `ro` and `nosuid`.
    pub options: Vec<String>,
    /// Mounts made below it appear in other mount namespaces too.
    pub shared: bool,
    /// The filesystem's type.
    pub filesystem: String,
    /// What it was mounted from.
    pub source: String,
}

/// Reads the table of this process.
///
/// # Errors
/// Those of reading the file; `InvalidData` where a line is not understood, or the table is not whole: one that is half
/// understood would let "nobody uses it" be a guess.
pub fn read() -> io::Result<Vec<Entry>> {
    let table = read_of(Path::new("/proc/self"))?;
    // What we run in is mounted.
    if table.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the table of mounts is empty"));
    }
    Ok(table)
}

/// The number of the mount that an open file is in. Its filesystem is not asked.
///
/// # Errors
/// Those of reading /proc/self/fdinfo; `InvalidData` where it does not say.
pub fn id_of(file: BorrowedFd<'_>) -> io::Result<u64> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = told.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "fdinfo names no mount"))
}

/// Reads the table of another process, by its directory under /proc.
pub(super) fn read_of(process: &Path) -> io::Result<Vec<Entry>> {
    parse(&std::fs::read(process.join("mountinfo"))?)
}

fn parse(table: &[u8]) -> io::Result<Vec<Entry>> {
    if table.last().is_some_and(|last| *last != b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the table of mounts is cut off"));
    }
    let lines = table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let text = String::from_utf8_lossy(line);
            parse_line(&text).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("mountinfo line not understood: {text}"))
            })
        })
        .collect()
}

/// One line, as proc_pid_mountinfo(5) describes it: `id parent major:minor root point options [tags…] - type source
/// super-options`.
fn parse_line(line: &str) -> Option<Entry> {
    let (own, shared) = line.split_once(" - ")?;
    let mut own = own.split(' ');
    let mut shared = shared.split(' ');
    let id = own.next()?.parse().ok()?;
    let (major, minor) = own.nth(1)?.split_once(':')?;
    Some(Entry {
        id,
        device: DeviceNumber::new(major.parse().ok()?, minor.parse().ok()?),
        root: unescape(own.next()?),
        mount_point: unescape(own.next()?).into(),
        options: own.next()?.split(',').map(str::to_owned).collect(),
        shared: own.any(|tag| tag.starts_with("shared:")),
        filesystem: shared.next()?.to_owned(),
        source: unescape(shared.next()?),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let table = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                      86 30 0:6 /loop3 /pods/x/dev rw,nosuid shared:5 - devtmpfs devtmpfs rw,size=4k\n";
        let entries = parse(table).unwrap();
        assert_eq!(entries[0].mount_point, PathBuf::from("/mnt 2"));
        assert_eq!(entries[0].options, ["rw", "noatime"]);
        assert_eq!((entries[0].id, entries[1].id), (36, 86));
        assert_eq!(entries[1].device, DeviceNumber::new(0, 6));
        assert_eq!((entries[0].shared, entries[1].shared), (false, true));
        assert_eq!((entries[1].root.as_str(), entries[1].filesystem.as_str()), ("/loop3", "devtmpfs"));
    }

    #[test]
    fn a_line_not_understood_is_an_error() {
        for line in ["", "1 2", "1 2 x:y / / rw - a b c", "1 2 8:1 / / rw"] {
            assert!(parse_line(line).is_none(), "{line:?}");
        }
        assert!(parse(b"nonsense\n").is_err());
        let line = b"36 35 98:0 / /mnt rw shared:5 - ext3 /dev/root rw";
        assert!(parse(line).is_err(), "it may have been cut off");
        assert_eq!(parse(&[line, b"\n".as_slice()].concat()).unwrap().len(), 1);
    }

    #[test]
    fn reads_the_table_of_this_machine() {
        assert!(read().unwrap().iter().any(|entry| entry.mount_point == std::path::Path::new("/proc")));
    }

    #[test]
    fn hostile_input() {
        let table = std::fs::read("/proc/self/mountinfo").unwrap();
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n";
        crate::hostile::feed("mountinfo", &[&table[..table.len().min(4096)], line], |input| {
            let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
            assert!(parse(input).is_err() || parse(input).is_ok_and(|entries| entries.len() == lines));
        });
    }
}
