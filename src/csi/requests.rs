//! Controller requests that take more than a field or two, as typed values that cannot be invalid.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Topology,
    fields::{self, invalid},
};
use crate::{
    bytes::Bytes,
    capability::{Access, Capability},
    digest::Digest,
    engine::{
        groups::{Claim, NewGroup},
        snapshots::NewSnapshot,
        volumes::NewVolume,
    },
    error::{Error, ErrorKind, Result},
    filesystem::Filesystem,
    id::{GroupId, PoolName, VolumeId},
    node::check_flags,
    pool::record::{GROUP_LIMIT, Source, Volume},
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
fn check_capabilities(capabilities: &[Capability], meant: &[Filesystem]) -> Result<Option<Filesystem>> {
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
        let candidates = filesystem.as_ref().map_or(meant, std::slice::from_ref);
        let refused: Vec<_> = candidates
            .iter()
            .map(|candidate| check_flags(*candidate, flags))
            .take_while(Result::is_err)
            .collect();
        if refused.len() == candidates.len() {
            refused.into_iter().collect::<Result<()>>()?;
        }
    }
    Ok(named)
}

/// A CreateVolume request.
pub(crate) fn create_volume(request: &proto::CreateVolumeRequest, here: &Topology) -> Result<NewVolume> {
    let name = fields::name(&request.name)?.to_owned();
    let (required, limit) = fields::capacity_range(request.capacity_range.as_ref())?;
    let parameters = parameters(&request.parameters)?;
    let capabilities = fields::capabilities(&request.volume_capabilities, parameters.filesystem)?;
    let source = source(request.volume_content_source.as_ref())?;
    // A copy holds what its source does, whatever that is.
    let meant: &[_] = if source.is_none() { &[Filesystem::Ext4] } else { &Filesystem::ALL };
    let filesystem = check_capabilities(&capabilities, meant)?;
    if let Some(key) = fields::map("mutable_parameters", &request.mutable_parameters)?.keys().next() {
        let shown: String = key.chars().take(64).collect();
        return Err(invalid(format!("mutable parameter {shown:?} is not known: there are none")));
    }
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
        import: None,
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
    check_snapshot_parameters(&request.parameters)?;
    let volume = volume.ok_or_else(|| Error::new(ErrorKind::NotFound, "the source volume does not exist"))?;
    if !here.meets(request.accessibility_requirements.as_ref()) {
        let what = "a snapshot is where its volume is, which the topology that is asked for does not include";
        return Err(Error::new(ErrorKind::NoSpace, what));
    }
    Ok(NewSnapshot { name, volume })
}

fn check_snapshot_parameters(parameters: &BTreeMap<String, String>) -> Result<()> {
    match fields::map("parameters", parameters)?.keys().find(|key| !key.starts_with(KUBERNETES)) {
        None => Ok(()),
        Some(key) => {
            let shown: String = key.chars().take(64).collect();
            Err(invalid(format!("parameter {shown:?} is not known: snapshots have none")))
        }
    }
}

/// A CreateVolumeGroupSnapshot request.
pub(super) fn create_group(request: &proto::CreateVolumeGroupSnapshotRequest) -> Result<NewGroup> {
    let name = fields::name(&request.name)?.to_owned();
    let sources = &request.source_volume_ids;
    check_count("source_volume_ids", sources)?;
    if sources.is_empty() {
        return Err(invalid("source_volume_ids are missing"));
    }
    let ids: Vec<_> = sources.iter().map(|id| fields::volume_id(id)).collect::<Result<_>>()?;
    check_snapshot_parameters(&request.parameters)?;
    let gone = || Error::new(ErrorKind::NotFound, "a source volume does not exist");
    let volumes = ids.into_iter().collect::<Option<BTreeSet<_>>>().ok_or_else(gone)?;
    if volumes.len() < sources.len() {
        return Err(invalid("source_volume_ids name one volume twice"));
    }
    // Their order says nothing, and of parameters there are none.
    let texts: Vec<String> = volumes.iter().map(VolumeId::to_string).collect();
    let digest = Digest::of(texts.iter().map(String::as_bytes));
    Ok(NewGroup { name, volumes, digest })
}

/// The group that a request is about, `None` where its id is not of our grammar, and the snapshots that it takes for
/// the group's.
pub(super) fn group(id: &str, snapshots: &[String]) -> Result<(Option<GroupId>, Claim)> {
    let id = fields::group_id(id)?;
    check_count("snapshot_ids", snapshots)?;
    Ok((id, snapshots.iter().map(|id| id.parse().ok()).collect()))
}

fn check_count(field: &str, ids: &[String]) -> Result<()> {
    match ids.len() {
        count if count > GROUP_LIMIT => {
            Err(invalid(format!("{count} {field} are more than the {GROUP_LIMIT} that a group can have")))
        }
        _ => Ok(()),
    }
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

/// Checks the form of a ValidateVolumeCapabilities request; what is well formed but not supported is no error.
pub(super) fn validate(request: &proto::ValidateVolumeCapabilitiesRequest) -> Result<VolumeId> {
    fields::volume_id(&request.volume_id)?;
    fields::map("volume_context", &request.volume_context)?;
    fields::map("mutable_parameters", &request.mutable_parameters)?;
    let parameters = fields::map("parameters", &request.parameters)?;
    fields::check_form(&request.volume_capabilities, parameters.contains_key("fstype"))?;
    fields::existing_volume(&request.volume_id)
}

/// Whether a volume can be used in the ways that a request names, and was made as it says.
///
/// # Errors
/// The reason why not.
pub(super) fn supported(request: &proto::ValidateVolumeCapabilitiesRequest, volume: &Volume) -> Result<()> {
    let parameters = parameters(&request.parameters)?;
    let capabilities = fields::capabilities(&request.volume_capabilities, parameters.filesystem)?;
    let held = volume.content.filesystem();
    check_capabilities(&capabilities, held.as_ref().map_or(&Filesystem::ALL[..], std::slice::from_ref))?;
    let named = request.parameters.keys().any(|key| !key.starts_with(KUBERNETES));
    if named && digest(&request.parameters, volume.source) != volume.asked.digest {
        return Err(invalid("the volume was made with other parameters"));
    }
    if !request.mutable_parameters.is_empty() {
        return Err(invalid("there are no mutable parameters"));
    }
    let refusal = capabilities.iter().find_map(|capability| match (&capability.access, held) {
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
    });
    refusal.map_or(Ok(()), |refusal| Err(invalid(refusal)))
}
