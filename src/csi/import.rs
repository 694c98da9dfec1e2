//! What CreateVolume is to make a volume of, where a person asks for it: a piece of metadata beside the request.

use tonic::metadata::MetadataMap;

use super::fields::invalid;
use crate::{digest::Digest, engine::volumes::NewVolume, error::Result, pool::import::Import, proto::IMPORT};

/// Reads it; `None` where there is none, as in every call of an orchestrator.
pub(super) fn read(metadata: &MetadataMap) -> Result<Option<Import>> {
    let Some(value) = metadata.get_bin(IMPORT) else { return Ok(None) };
    let bytes = value.to_bytes().map_err(|bad| invalid(format!("{IMPORT}: {bad}")))?;
    let text = std::str::from_utf8(&bytes).map_err(|bad| invalid(format!("{IMPORT}: {bad}")))?;
    text.parse().map(Some).map_err(|bad: crate::pool::import::BadImport| invalid(bad.to_string()))
}

/// The volume that is wanted, made of something that is not ours: it will hold what that does, and may be used raw.
pub(super) fn of(wanted: NewVolume, import: Import) -> Result<NewVolume> {
    if wanted.source.is_some() {
        return Err(invalid("a volume is made of one source: volume_content_source, or an import"));
    }
    let digest = Digest::of([wanted.digest.to_string().as_bytes(), import.to_string().as_bytes()]);
    Ok(NewVolume { import: Some(import), digest, block: true, mount: false, filesystem: None, ..wanted })
}
