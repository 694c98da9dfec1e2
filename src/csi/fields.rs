//! Fields of requests, checked one by one against the limits of the specification ("Size Limits") before anything is
//! done with them.

use std::collections::BTreeMap;

use crate::{
    bytes::Bytes,
    capability::{Access, AccessMode, Capability},
    error::{Error, ErrorKind, Result},
    filesystem::Filesystem,
    id::{GroupId, NodeId, SnapshotId, TEXT_LIMIT, VolumeId},
    proto::{
        self,
        volume_capability::{AccessType, access_mode},
    },
};

/// Most bytes of a map, keys and values together, and of a list of mount flags.
const MAP_LIMIT: usize = 4096;
/// Most capabilities in one request.
const CAPABILITY_LIMIT: usize = 16;
/// Longest path: that of the operating system.
const PATH_LIMIT: usize = 4096;

pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

fn present<'t>(field: &str, text: &'t str, limit: usize) -> Result<&'t str> {
    match text.len() {
        0 => Err(invalid(format!("{field} is missing"))),
        length if length > limit => {
            Err(invalid(format!("{field} has {length} bytes, more than the {limit} that are allowed")))
        }
        _ => Ok(text),
    }
}

/// A name: any Unicode but the control characters that the specification excludes.
pub(super) fn name(text: &str) -> Result<&str> {
    let name = present("name", text, TEXT_LIMIT)?;
    let excluded =
        |c: char| matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}'..='\u{9f}');
    if name.contains(excluded) {
        return Err(invalid("name holds a control character"));
    }
    Ok(name)
}

/// A path, still as the caller wrote it.
pub(super) fn path<'t>(field: &str, text: &'t str) -> Result<&'t str> {
    present(field, text, PATH_LIMIT)
}

/// An id in a call that is about this one volume: what is not of our grammar does not exist here.
pub(super) fn volume_id(text: &str) -> Result<Option<VolumeId>> {
    present("volume_id", text, PATH_LIMIT).map(|text| text.parse().ok())
}

pub(super) fn snapshot_id(text: &str) -> Result<Option<SnapshotId>> {
    present("snapshot_id", text, PATH_LIMIT).map(|text| text.parse().ok())
}

pub(super) fn group_id(text: &str) -> Result<Option<GroupId>> {
    present("group_snapshot_id", text, PATH_LIMIT).map(|text| text.parse().ok())
}

/// A volume that must exist.
pub(super) fn existing_volume(text: &str) -> Result<VolumeId> {
    volume_id(text)?.ok_or_else(|| Error::new(ErrorKind::NotFound, "no volume here has such an id"))
}

pub(super) fn node_id(text: &str) -> Result<NodeId> {
    let text = present("node_id", text, 256)?;
    // What no node can be called does not exist.
    text.parse().map_err(|bad: crate::id::BadId| Error::new(ErrorKind::NotFound, bad.to_string()))
}

/// A map of strings within its limit.
pub(super) fn map<'m>(
    field: &str,
    map: &'m BTreeMap<String, String>,
) -> Result<&'m BTreeMap<String, String>> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAP_LIMIT {
        return Err(invalid(format!(
            "{field} holds {bytes} bytes, more than the {MAP_LIMIT} that are allowed"
        )));
    }
    Ok(map)
}

/// Least and greatest size; zero stands for "not given".
pub(super) fn capacity_range(range: Option<&proto::CapacityRange>) -> Result<(Option<Bytes>, Option<Bytes>)> {
    let Some(range) = range else { return Ok((None, None)) };
    let size = |field: &str, count: i64| match Bytes::try_from(count) {
        Ok(Bytes::ZERO) => Ok(None),
        Ok(size) => Ok(Some(size)),
        Err(_negative) => Err(invalid(format!("{field} is negative"))),
    };
    let (required, limit) =
        (size("required_bytes", range.required_bytes)?, size("limit_bytes", range.limit_bytes)?);
    if required.zip(limit).is_some_and(|(required, limit)| limit < required) {
        return Err(invalid("limit_bytes is less than required_bytes"));
    }
    Ok((required, limit))
}

/// A way of using a volume. `default` is the filesystem that a parameter names: where one is named, a capability
/// without an access type (Docker Swarm sends it) means a mount.
pub(super) fn capability(
    capability: Option<&proto::VolumeCapability>,
    default: Option<Filesystem>,
) -> Result<Capability> {
    let capability = capability.ok_or_else(|| invalid("volume_capability is missing"))?;
    let mode = capability.access_mode.as_ref().ok_or_else(|| invalid("access_mode is missing"))?;
    let mode = match access_mode::Mode::try_from(mode.mode) {
        Ok(access_mode::Mode::SingleNodeWriter) => AccessMode::SingleNodeWriter,
        Ok(access_mode::Mode::SingleNodeReaderOnly) => AccessMode::SingleNodeReaderOnly,
        Ok(access_mode::Mode::MultiNodeReaderOnly) => AccessMode::MultiNodeReaderOnly,
        Ok(access_mode::Mode::MultiNodeSingleWriter) => AccessMode::MultiNodeSingleWriter,
        Ok(access_mode::Mode::MultiNodeMultiWriter) => AccessMode::MultiNodeMultiWriter,
        Ok(access_mode::Mode::SingleNodeSingleWriter) => AccessMode::SingleNodeSingleWriter,
        Ok(access_mode::Mode::SingleNodeMultiWriter) => AccessMode::SingleNodeMultiWriter,
        Ok(access_mode::Mode::Unknown) | Err(_) => return Err(invalid("access_mode is unknown")),
    };
    let access = match (&capability.access_type, default) {
        (Some(AccessType::Block(_)), _) => Access::Block,
        (Some(AccessType::Mount(mount)), default) => self::mount(mount, default)?,
        (None, Some(filesystem)) => Access::Mount { filesystem: Some(filesystem), flags: Vec::new() },
        (None, None) => {
            return Err(invalid("access_type is missing, and no fstype parameter says what is meant"));
        }
    };
    Ok(Capability { access, mode })
}

/// The same at a node, which finds in the record what the volume holds: one without an access type is a mount of that.
pub(super) fn capability_at_node(capability: Option<&proto::VolumeCapability>) -> Result<Capability> {
    let typed = capability.map(|capability| proto::VolumeCapability {
        access_mode: capability.access_mode,
        access_type: capability.access_type.clone().or_else(|| Some(AccessType::Mount(Default::default()))),
    });
    self::capability(typed.as_ref(), None)
}

fn mount(mount: &proto::volume_capability::MountVolume, default: Option<Filesystem>) -> Result<Access> {
    check_mount_form(mount)?;
    if !mount.volume_mount_group.is_empty() {
        return Err(invalid("volume_mount_group is not supported"));
    }
    let filesystem = match mount.fs_type.as_str() {
        "" => default,
        name => {
            Some(name.parse().map_err(|bad: crate::filesystem::UnknownFilesystem| invalid(bad.to_string()))?)
        }
    };
    Ok(Access::Mount { filesystem, flags: mount.mount_flags.clone() })
}

/// All capabilities of a request, at least one.
pub(super) fn capabilities(
    capabilities: &[proto::VolumeCapability],
    default: Option<Filesystem>,
) -> Result<Vec<Capability>> {
    check_form(capabilities, default.is_some())?;
    capabilities.iter().map(|capability| self::capability(Some(capability), default)).collect()
}

/// Checks that capabilities have all their parts, whatever these ask for. `typed` where a parameter names a
/// filesystem.
pub(super) fn check_form(capabilities: &[proto::VolumeCapability], typed: bool) -> Result<()> {
    match capabilities.len() {
        0 => return Err(invalid("volume_capabilities are missing")),
        count if count > CAPABILITY_LIMIT => {
            return Err(invalid(format!(
                "{count} volume_capabilities are more than the {CAPABILITY_LIMIT} that are allowed"
            )));
        }
        _ => {}
    }
    for capability in capabilities {
        let mode = capability.access_mode.as_ref().ok_or_else(|| invalid("access_mode is missing"))?;
        if mode.mode == i32::from(access_mode::Mode::Unknown) {
            return Err(invalid("access_mode is unknown"));
        }
        match &capability.access_type {
            None if !typed => {
                return Err(invalid("access_type is missing, and no fstype parameter says what is meant"));
            }
            Some(AccessType::Mount(mount)) => check_mount_form(mount)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_mount_form(mount: &proto::volume_capability::MountVolume) -> Result<()> {
    if mount.fs_type.len() > TEXT_LIMIT {
        return Err(invalid("fs_type is too long"));
    }
    if mount.mount_flags.iter().map(String::len).sum::<usize>() > MAP_LIMIT {
        return Err(invalid(format!("mount_flags hold more than {MAP_LIMIT} bytes")));
    }
    Ok(())
}

/// Where a page begins and how long it may be. The token is the last id of the page before, so it survives the
/// deletion of anything, itself included.
pub(crate) fn page<Id: std::str::FromStr>(max_entries: i32, token: &str) -> Result<(Option<Id>, usize)> {
    let limit = match max_entries {
        0 => usize::MAX - 1,
        count => usize::try_from(count).map_err(|_negative| invalid("max_entries is negative"))?,
    };
    let after = match token {
        "" => None,
        token => Some(token.parse().map_err(|_not_ours| {
            Error::new(ErrorKind::Busy, "starting_token is not one of ours: start the list again")
        })?),
    };
    Ok((after, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in
            ["a", "ein Name mit Ümlaut", "\u{1F4A7}", "tab\tand\nnewline", &"x".repeat(128), "../../etc"]
        {
            assert!(name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "nul\0", "bell\u{7}", "\u{7f}", "\u{85}", &"x".repeat(129), &"\u{1F4A7}".repeat(33)] {
            assert_eq!(name(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn ranges() {
        let check = |required_bytes, limit_bytes| {
            capacity_range(Some(&proto::CapacityRange { required_bytes, limit_bytes }))
                .map_err(|error| error.kind())
        };
        assert_eq!(check(0, 0), Ok((None, None)));
        assert_eq!(check(1, 0), Ok((Some(Bytes::new(1)), None)));
        assert_eq!(check(-1, 0), Err(ErrorKind::Invalid));
        assert_eq!(check(0, -1), Err(ErrorKind::Invalid));
        assert_eq!(check(2, 1), Err(ErrorKind::Invalid));
        assert_eq!(check(2, 2), Ok((Some(Bytes::new(2)), Some(Bytes::new(2)))));
    }

    #[test]
    fn a_capability_without_a_type_is_a_mount_only_where_a_filesystem_is_named() {
        let mode = proto::volume_capability::AccessMode { mode: access_mode::Mode::SingleNodeWriter.into() };
        let bare = proto::VolumeCapability { access_mode: Some(mode), access_type: None };
        assert!(capability(Some(&bare), None).is_err());
        let mount = capability(Some(&bare), Some(Filesystem::Xfs)).unwrap();
        assert_eq!(mount.access, Access::Mount { filesystem: Some(Filesystem::Xfs), flags: Vec::new() });
        assert!(capability(None, Some(Filesystem::Xfs)).is_err());
        assert!(capability(Some(&proto::VolumeCapability::default()), Some(Filesystem::Xfs)).is_err());
        let mount = capability_at_node(Some(&bare)).unwrap();
        assert_eq!(mount.access, Access::Mount { filesystem: None, flags: Vec::new() });
        assert!(capability_at_node(None).is_err());
        assert!(capability_at_node(Some(&proto::VolumeCapability::default())).is_err());
    }

    #[test]
    fn tokens_are_ids() {
        assert!(page::<VolumeId>(0, "").unwrap().0.is_none());
        assert_eq!(page::<VolumeId>(0, "5").unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(page::<VolumeId>(-1, "").unwrap_err().kind(), ErrorKind::Invalid);
    }
}
