//! The CSI messages, clients and servers that `build.rs` makes from `proto/csi.proto`. Nothing here is written
//! by hand, and nothing here knows what a call does.
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
