//! Controller requests that take more than a field or two, as typed values that cannot be invalid.

use std::collections::BTreeMap;

use super::{
    Topology,
    fields::{self, invalid},
};
use crate::{
    bytes::Bytes,
    capability::{Access, Capability},
    digest::Digest,
    engine::{snapshots::NewSnapshot, volumes::NewVolume},
    error::{Error, ErrorKind, Result},
    filesystem::Filesystem,
    id::{PoolName, VolumeId},
    node::check_flags,
    pool::record::Source,
    proto::{self, volume_content_source},
};

/// Keys under this prefix are Kubernetes' own; what they say is not asked for here.
const KUBERNETES: &str = "csi.storage.k8s.io/";

/// Parameters of a StorageClass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) pool: Option<PoolName>,
    pub(super) filesystem: Option<Filesystem>,
}

/// Reads the parameters; a key that is not known is an error, not a wish.
pub(super) fn parameters(map: &BTreeMap<String, String>) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    for (key, value) in fields::map("parameters", map)? {
        let wrong = |reason: &dyn std::fmt::Display| invalid(format!("parameter {key}: {reason}"));
        match key.as_str() {
            "pool" => parameters.pool = Some(value.parse().map_err(|bad: crate::id::BadId| wrong(&bad))?),
            "fstype" => {
                let parsed =
                    value.parse().map_err(|bad: crate::filesystem::UnknownFilesystem| wrong(&bad))?;
                parameters.filesystem = Some(parsed);
            }
            "access" if value == "host" => {}
            "access" if value == "network" => {
                return Err(wrong(&"network is not offered yet: expected host"));
            }
            "access" => return Err(wrong(&"expected host")),
            key if key.starts_with(KUBERNETES) => {}
            key => {
                let shown: String = key.chars().take(64).collect();
                return Err(invalid(format!(
                    "parameter {shown:?} is not known: expected pool, fstype or access"
                )));
            }
        }
    }
    Ok(parameters)
}

/// Checks that volumes here can be used as a request says; the filesystem that its mounts name.
fn check_capabilities(capabilities: &[Capability]) -> Result<Option<Filesystem>> {
    let mut named = None;
    for capability in capabilities {
        if capability.mode.writes_across_nodes() {
            return Err(invalid(
                "a volume here is reached by one node: multi-node writers are not supported",
            ));
        }
        let Access::Mount { filesystem, flags } = &capability.access else { continue };
        match (named, filesystem) {
            (Some(one), Some(other)) if one != *other => {
                return Err(invalid(format!("one volume cannot hold both {one} and {other}")));
            }
            (None, Some(filesystem)) => named = Some(*filesystem),
            _ => {}
        }
        // Found out now rather than when the first workload starts.
        check_flags(filesystem.unwrap_or(Filesystem::Ext4), flags)?;
    }
    Ok(named)
}

/// A CreateVolume request.
pub(super) fn create_volume(request: &proto::CreateVolumeRequest, here: &Topology) -> Result<NewVolume> {
    let name = fields::name(&request.name)?.to_owned();
    let (required, limit) = fields::capacity_range(request.capacity_range.as_ref())?;
    let parameters = parameters(&request.parameters)?;
    let capabilities = fields::capabilities(&request.volume_capabilities, parameters.filesystem)?;
    let filesystem = check_capabilities(&capabilities)?;
    if let Some(key) = fields::map("mutable_parameters", &request.mutable_parameters)?.keys().next() {
        let shown: String = key.chars().take(64).collect();
        return Err(invalid(format!("mutable parameter {shown:?} is not known: there are none")));
    }
    let source = source(request.volume_content_source.as_ref())?;
    let block = capabilities.iter().any(|capability| capability.access == Access::Block);
    let mount = capabilities.iter().any(|capability| capability.access != Access::Block);
    Ok(NewVolume {
        name,
        required,
        limit,
        block,
        mount,
        filesystem,
        pool: parameters.pool,
        source,
        digest: digest(&request.parameters, source),
        reachable: here.meets(request.accessibility_requirements.as_ref()),
    })
}

/// What a later request of the same name must have in common: parameters, but for those that Kubernetes adds, and
/// source.
fn digest(parameters: &BTreeMap<String, String>, source: Option<Source>) -> Digest {
    let source = match source {
        None => String::new(),
        Some(Source::Snapshot(id)) => id.to_string(),
        Some(Source::Volume(id)) => id.to_string(),
    };
    let mut parts = vec![source.as_bytes()];
    for (key, value) in parameters.iter().filter(|(key, _)| !key.starts_with(KUBERNETES)) {
        parts.push(key.as_bytes());
        parts.push(value.as_bytes());
    }
    Digest::of(parts)
}

fn source(source: Option<&proto::VolumeContentSource>) -> Result<Option<Source>> {
    let gone = |what: &str| Error::new(ErrorKind::NotFound, format!("the source {what} does not exist"));
    let Some(source) = source else { return Ok(None) };
    match &source.r#type {
        None => Err(invalid("volume_content_source has no type")),
        Some(volume_content_source::Type::Snapshot(source)) => {
            let id = fields::snapshot_id(&source.snapshot_id)?.ok_or_else(|| gone("snapshot"))?;
            Ok(Some(Source::Snapshot(id)))
        }
        Some(volume_content_source::Type::Volume(source)) => {
            let id = fields::volume_id(&source.volume_id)?.ok_or_else(|| gone("volume"))?;
            Ok(Some(Source::Volume(id)))
        }
    }
}

/// A CreateSnapshot request.
pub(super) fn create_snapshot(
    request: &proto::CreateSnapshotRequest,
    here: &Topology,
) -> Result<NewSnapshot> {
    let name = fields::name(&request.name)?.to_owned();
    let volume = fields::volume_id(&request.source_volume_id)?;
    for key in fields::map("parameters", &request.parameters)?.keys() {
        if !key.starts_with(KUBERNETES) {
            let shown: String = key.chars().take(64).collect();
            return Err(invalid(format!("parameter {shown:?} is not known: snapshots have none")));
        }
    }
    let volume = volume.ok_or_else(|| Error::new(ErrorKind::NotFound, "the source volume does not exist"))?;
    if !here.meets(request.accessibility_requirements.as_ref()) {
        let what = "a snapshot is where its volume is, which the topology that is asked for does not include";
        return Err(Error::new(ErrorKind::NoSpace, what));
    }
    Ok(NewSnapshot { name, volume })
}

/// A ControllerExpandVolume request: the volume, the least and the greatest size.
pub(super) fn expand(
    request: &proto::ControllerExpandVolumeRequest,
) -> Result<(VolumeId, Bytes, Option<Bytes>)> {
    fields::volume_id(&request.volume_id)?;
    if request.capacity_range.is_none() {
        return Err(invalid("capacity_range is missing"));
    }
    let (required, limit) = fields::capacity_range(request.capacity_range.as_ref())?;
    if required.is_none() && limit.is_none() {
        return Err(invalid("capacity_range names no size"));
    }
    let capability = request.volume_capability.as_ref();
    capability.map(|capability| fields::capability(Some(capability), Some(Filesystem::Ext4))).transpose()?;
    let volume = fields::existing_volume(&request.volume_id)?;
    Ok((volume, required.unwrap_or_default(), limit))
}

/// Whether volumes made with these parameters could be used in these ways; the reason why not.
pub(super) fn unsupported(
    capabilities: &[Capability],
    volume: &crate::pool::record::Volume,
) -> Option<String> {
    if let Err(error) = check_capabilities(capabilities) {
        return Some(error.to_string());
    }
    capabilities.iter().find_map(|capability| match (&capability.access, volume.content.filesystem()) {
        (Access::Block, _) if !volume.block => {
            Some("the volume was not made for use as a raw device".to_owned())
        }
        (Access::Mount { filesystem: Some(asked), .. }, Some(held)) if *asked != held => {
            Some(format!("the volume holds {held}, not {asked}"))
        }
        (Access::Mount { .. }, None) if volume.source.is_none() => {
            Some("the volume was made as a raw device".to_owned())
        }
        _ => None,
    })
}
