//! The CSI messages, clients and servers that `build.rs` makes from `proto/csi.proto`. Nothing here is written
//! by hand but the one extension, and nothing here knows what a call does.
//!
//! Messages that carry secrets cannot be printed, so they cannot end up in a log by mistake:
//!
//! ```compile_fail,E0277
//! println!("{:?}", lagan::proto::CreateVolumeRequest::default());
//! ```
//!
//! Other messages can:
//!
//! ```
//! println!("{:?}", lagan::proto::CreateVolumeResponse::default());
//! ```
#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code brings its own exceptions, and a server is one long function"
)]

tonic::include_proto!("csi.v1");

/// How kubelet learns of a plugin, from `proto/pluginregistration.proto`.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// Key of the metadata beside a CreateVolume request that says what to make the volume of, where a person asks for it. No
/// parameter, since those come from the users of an orchestrator, who must not be able to name devices of a host.
pub const IMPORT: &str = "lagan-import-bin";

/// Key of the metadata beside a CreateVolume request that asks for the volume only if it exists: NOT_FOUND otherwise, and
/// nothing is made. A router asks so first, since no call of CSI looks up a name.
pub const ONLY_IF_EXISTS: &str = "lagan-only-if-exists";
