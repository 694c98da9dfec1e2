//! What the sequences have in common: places as orchestrators make them, and capabilities that a driver shows.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path};

use lagan::proto::{
    ControllerGetCapabilitiesRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest,
    NodeGetCapabilitiesRequest, ProbeRequest, controller_service_capability, node_service_capability,
    plugin_capability,
};

use crate::rig::Daemon;

/// As `mkdir -p` by an agent that runs as root.
pub(crate) fn make_directory(path: &str) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).unwrap();
}

/// Whether something is mounted exactly there, a file included.
pub(crate) fn is_mount(path: &str) -> bool {
    let table = lagan::sys::mountinfo::read().unwrap();
    table.iter().any(|entry| entry.mount_point == Path::new(path))
}

/// A driver that is ready, and what it calls itself.
pub(crate) async fn probe(daemon: &mut Daemon) -> (String, String) {
    let ready = daemon.identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_ne!(ready, Some(false), "it answers once it is ready");
    let info = daemon.identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert!(!info.name.is_empty() && !info.vendor_version.is_empty(), "{info:?}");
    (info.name, info.vendor_version)
}

/// Plugin capabilities, by their numbers.
pub(crate) async fn plugin_services(daemon: &mut Daemon) -> Vec<i32> {
    let request = GetPluginCapabilitiesRequest {};
    let answer = daemon.identity.get_plugin_capabilities(request).await.unwrap().into_inner();
    let service = |capability: lagan::proto::PluginCapability| match capability.r#type? {
        plugin_capability::Type::Service(service) => Some(service.r#type),
        plugin_capability::Type::VolumeExpansion(_) => None,
    };
    answer.capabilities.into_iter().filter_map(service).collect()
}

/// What the controller offers, by its numbers.
pub(crate) async fn controller_calls(daemon: &mut Daemon) -> Vec<i32> {
    let request = ControllerGetCapabilitiesRequest {};
    let answer = daemon.controller.controller_get_capabilities(request).await.unwrap().into_inner();
    let call = |capability: lagan::proto::ControllerServiceCapability| {
        let controller_service_capability::Type::Rpc(rpc) = capability.r#type.unwrap();
        rpc.r#type
    };
    answer.capabilities.into_iter().map(call).collect()
}

/// What the node offers, by its numbers.
pub(crate) async fn node_calls(daemon: &mut Daemon) -> Vec<i32> {
    let answer = daemon.node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    let call = |capability: lagan::proto::NodeServiceCapability| {
        let node_service_capability::Type::Rpc(rpc) = capability.r#type.unwrap();
        rpc.r#type
    };
    answer.capabilities.into_iter().map(call).collect()
}
