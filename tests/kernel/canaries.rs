//! Every call of the protocol with a canary wherever a secret may stand, as it should be and in every wrong form. The
//! places are read from the protocol itself: a field that becomes secret, or a call that is new, is covered by that alone.

use std::collections::{BTreeMap, BTreeSet};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, CreateSnapshotResponse, CreateVolumeGroupSnapshotResponse,
    CreateVolumeResponse, DeleteSnapshotRequest, GetSnapshotRequest, GetVolumeGroupSnapshotRequest,
    ListSnapshotsRequest, ListVolumesRequest, NodeExpandVolumeRequest, volume_capability::access_mode::Mode,
};
use prost::Message;
use protox::prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MethodDescriptor,
    ReflectMessage, Value,
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

use crate::{
    requests::{
        create_with, delete, group_of, hide_at, mount_with, publish_with, show_at, snapshot_of, stage_at,
        ungroup, unpublish_from, unstage_at,
    },
    rig::{Ground, MIB},
};

/// Never to be seen.
pub(crate) const CANARY: &str = "canary-4b1d-never-to-be-seen";
/// The name of a volume, which is no secret.
pub(crate) const CONTROL: &str = "control-77e0-to-be-seen";
/// Its mount flags may be secret, says the specification in words, without the mark.
const UNMARKED: &str = "csi.v1.VolumeCapability.MountVolume";
/// What Kubernetes puts into a field that is not secret: the tokens of a service account.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Says every call, and remembers what came back.
pub(crate) struct Speaker {
    protocol: DescriptorPool,
    controller: Channel,
    node: Channel,
    /// Which codes each call was answered with.
    pub(crate) codes: BTreeMap<String, BTreeSet<i32>>,
    /// Every answer, as it came.
    pub(crate) answers: Vec<u8>,
    /// Ids of the volumes that lived: no secrets, so where they are not seen the search is blind.
    pub(crate) ids: Vec<String>,
}

impl Speaker {
    pub(crate) fn new(controller: &Channel, node: &Channel) -> Self {
        let protocol = DescriptorPool::decode(descriptors().as_slice()).unwrap();
        let (codes, answers, ids) = Default::default();
        Self { protocol, controller: controller.clone(), node: node.clone(), codes, answers, ids }
    }

    fn method(&self, name: &str) -> MethodDescriptor {
        let mut methods = self.protocol.services().flat_map(|service| service.methods().collect::<Vec<_>>());
        methods.find(|method| method.name() == name && method.parent_file().name() == "csi.proto").unwrap()
    }

    /// Every call that there is, with nothing in it but secrets.
    pub(crate) async fn bare(&mut self) {
        let services = self.protocol.services().filter(|service| service.parent_file().name() == "csi.proto");
        let names: Vec<_> = services
            .flat_map(|service| service.methods().map(|m| m.name().to_owned()).collect::<Vec<_>>())
            .collect();
        assert!(names.len() > 30, "the protocol was not read: {names:?}");
        for name in names {
            self.wrong(&name, &[]).await;
        }
    }

    /// One call as it should be, with its secrets.
    pub(crate) async fn right(&mut self, name: &str, request: &impl Message) -> Result<Vec<u8>, Status> {
        let mut message = self.read(name, &request.encode_to_vec());
        plant(&mut message, false);
        self.send(name, &message).await
    }

    /// One call in every wrong form.
    async fn wrong(&mut self, name: &str, request: &[u8]) {
        let (mut right, mut flagged) = (self.read(name, request), self.read(name, request));
        plant(&mut right, false);
        plant(&mut flagged, true);
        let mut forms = vec![flagged];
        for field in right.descriptor().fields() {
            for value in nonsense(&field) {
                let mut form = right.clone();
                match value {
                    Some(value) => form.set_field(&field, value),
                    None if is_secret(&field) => continue,
                    None => form.clear_field(&field),
                }
                forms.push(form);
            }
        }
        for form in forms {
            drop(self.send(name, &form).await);
        }
    }

    async fn wrong_then_right(&mut self, name: &str, request: &impl Message) -> Result<Vec<u8>, Status> {
        self.wrong(name, &request.encode_to_vec()).await;
        self.right(name, request).await
    }

    async fn right_then_wrong(&mut self, name: &str, request: &impl Message) -> Result<Vec<u8>, Status> {
        let answer = self.right(name, request).await;
        self.wrong(name, &request.encode_to_vec()).await;
        answer
    }

    fn read(&self, name: &str, request: &[u8]) -> DynamicMessage {
        DynamicMessage::decode(self.method(name).input(), request).unwrap()
    }

    async fn send(&mut self, name: &str, message: &DynamicMessage) -> Result<Vec<u8>, Status> {
        let method = self.method(name);
        let service = method.parent_service().clone();
        let path = PathAndQuery::try_from(format!("/{}/{name}", service.full_name())).unwrap();
        let channel = if service.name() == "Node" { &self.node } else { &self.controller };
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let answer = grpc.unary(Request::new(message.encode_to_vec()), path, Raw).await;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.codes.entry(name.to_owned()).or_default().insert(code.into());
        match answer {
            Ok(answer) => {
                self.answers.extend(format!("{:?}", answer.metadata()).into_bytes());
                self.answers.extend(answer.get_ref());
                Ok(answer.into_inner())
            }
            Err(status) => {
                self.answers.extend(format!("{status:?} {}", status.message()).into_bytes());
                Err(status)
            }
        }
    }

    /// A whole life of a volume, each call of it right and wrong.
    pub(crate) async fn life(&mut self, ground: &Ground) {
        let how = mount_with(Mode::SingleNodeWriter, "ext4", &["noatime"]);
        let (staging, target) = (ground.path("staging"), ground.path("target"));
        let created = self.right_then_wrong("CreateVolume", &create_with(CONTROL, 16 * MIB, &how)).await;
        let created = CreateVolumeResponse::decode(created.unwrap().as_slice()).unwrap();
        let id = created.volume.unwrap().volume_id;
        self.ids.push(id.clone());
        for (name, mib, filesystem) in
            [("too-big", 1 << 30, "ext4"), ("no-tool", 128, "btrfs"), ("bad-tool", 300, "xfs")]
        {
            let how = mount_with(Mode::SingleNodeWriter, filesystem, &[]);
            drop(self.right("CreateVolume", &create_with(name, mib * MIB, &how)).await);
        }
        let mut small = create_with("too-small", 0, &how);
        small.capacity_range = Some(CapacityRange { required_bytes: 0, limit_bytes: 1 });
        drop(self.right("CreateVolume", &small).await);
        drop(self.wrong_then_right("ControllerPublishVolume", &publish_with(&id, &how)).await);
        drop(self.right("DeleteVolume", &delete(&id)).await);
        drop(self.wrong_then_right("NodeStageVolume", &stage_at(&id, &staging, &how)).await);
        drop(self.wrong_then_right("NodePublishVolume", &show_at(&id, &staging, &target, &how)).await);
        let capacity_range = Some(CapacityRange { required_bytes: 20 * MIB, limit_bytes: 0 });
        let grow =
            ControllerExpandVolumeRequest { volume_id: id.clone(), capacity_range, ..Default::default() };
        drop(self.wrong_then_right("ControllerExpandVolume", &grow).await);
        let grow = NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: target.clone(),
            capacity_range,
            ..Default::default()
        };
        drop(self.wrong_then_right("NodeExpandVolume", &grow).await);
        let listed = ListVolumesRequest { starting_token: "nonsense".to_owned(), max_entries: 1 };
        drop(self.wrong_then_right("ListVolumes", &listed).await);
        self.copies(&id).await;
        drop(self.wrong_then_right("NodeUnpublishVolume", &hide_at(&id, &target)).await);
        drop(self.wrong_then_right("NodeUnstageVolume", &unstage_at(&id, &staging)).await);
        drop(self.wrong_then_right("ControllerUnpublishVolume", &unpublish_from(&id, "n1")).await);
        drop(self.wrong_then_right("DeleteVolume", &delete(&id)).await);
    }

    async fn copies(&mut self, id: &str) {
        let snapshot = self.right_then_wrong("CreateSnapshot", &snapshot_of(id, "visible")).await.unwrap();
        let snapshot = CreateSnapshotResponse::decode(snapshot.as_slice()).unwrap().snapshot.unwrap();
        let snapshot_id = snapshot.snapshot_id;
        let list = ListSnapshotsRequest { snapshot_id: snapshot_id.clone(), ..Default::default() };
        drop(self.wrong_then_right("ListSnapshots", &list).await);
        let get = GetSnapshotRequest { snapshot_id: snapshot_id.clone(), ..Default::default() };
        drop(self.wrong_then_right("GetSnapshot", &get).await);
        let group =
            self.right_then_wrong("CreateVolumeGroupSnapshot", &group_of(&[id], "group")).await.unwrap();
        let group =
            CreateVolumeGroupSnapshotResponse::decode(group.as_slice()).unwrap().group_snapshot.unwrap();
        let get = GetVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: vec![group.snapshots[0].snapshot_id.clone()],
            ..Default::default()
        };
        drop(self.wrong_then_right("GetVolumeGroupSnapshot", &get).await);
        drop(self.wrong_then_right("DeleteVolumeGroupSnapshot", &ungroup(&group)).await);
        let unsnap = DeleteSnapshotRequest { snapshot_id, ..Default::default() };
        drop(self.wrong_then_right("DeleteSnapshot", &unsnap).await);
    }
}

/// The protocol, as a compiled file.
fn descriptors() -> Vec<u8> {
    let mut compiler = protox::Compiler::new([concat!(env!("CARGO_MANIFEST_DIR"), "/proto")]).unwrap();
    compiler.include_imports(true).open_file("csi.proto").unwrap();
    compiler.encode_file_descriptor_set()
}

fn is_secret(field: &FieldDescriptor) -> bool {
    let mark = field.parent_pool().get_extension_by_name("csi.v1.csi_secret").unwrap();
    field.options().get_extension(&mark).as_bool() == Some(true)
}

/// Puts a canary wherever a secret may stand, however deep. Mount flags are only taken where they are none.
fn plant(message: &mut DynamicMessage, flags: bool) {
    let pairs = |pairs: [(String, String); 2]| {
        Value::Map(pairs.map(|(key, value)| (MapKey::String(key), Value::String(value))).into())
    };
    for field in message.descriptor().fields() {
        if is_secret(&field) {
            assert!(field.is_map(), "a secret of a new kind: {}", field.full_name());
            let secrets =
                [("password".to_owned(), CANARY.to_owned()), (format!("key.{CANARY}"), "x".to_owned())];
            message.set_field(&field, pairs(secrets));
        } else if field.name() == "volume_context" {
            let tokens = format!("{{\"\":{{\"token\":\"{CANARY}\"}}}}");
            let context = [
                (TOKENS.to_owned(), tokens),
                ("csi.storage.k8s.io/ephemeral".to_owned(), "false".to_owned()),
            ];
            message.set_field(&field, pairs(context));
        } else if field.name() == "mount_flags" && message.descriptor().full_name() == UNMARKED && flags {
            let secret = [format!("password={CANARY}"), CANARY.to_owned()];
            message.set_field(&field, Value::List(secret.map(Value::String).into()));
        } else if message.has_field(&field) {
            match message.get_field_mut(&field) {
                Value::Message(inner) => plant(inner, flags),
                Value::List(list) => list.iter_mut().for_each(|value| {
                    if let Value::Message(inner) = value {
                        plant(inner, flags);
                    }
                }),
                _ => {}
            }
        }
    }
}

/// What a field should not hold; `None` is nothing at all.
fn nonsense(field: &FieldDescriptor) -> Vec<Option<Value>> {
    let long = || Value::String(CANARY.repeat(200));
    if field.is_map() {
        let values = is_secret(field) || field.name() == "volume_context";
        // Only where a canary belongs: elsewhere it would be no secret.
        let text = if values { long() } else { Value::String("x".repeat(5000)) };
        return vec![None, Some(Value::Map([(MapKey::String("k".to_owned()), text)].into()))];
    }
    let value = |kind: &Kind| match kind {
        Kind::String => vec![Value::String("nonsense\u{7}".to_owned()), Value::String("n".repeat(5000))],
        Kind::Bool => vec![Value::Bool(true)],
        Kind::Int32 => vec![Value::I32(-1)],
        Kind::Int64 => vec![Value::I64(-1), Value::I64(i64::MAX)],
        Kind::Enum(_) => vec![Value::EnumNumber(99)],
        Kind::Message(inner) => {
            let mut empty = DynamicMessage::new(inner.clone());
            plant(&mut empty, true);
            vec![Value::Message(empty)]
        }
        _ => Vec::new(),
    };
    let values = value(&field.kind());
    let wrap =
        |value| if field.cardinality() == Cardinality::Repeated { Value::List(vec![value]) } else { value };
    std::iter::once(None).chain(values.into_iter().map(wrap).map(Some)).collect()
}

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; prost::bytes::Buf::remaining(buffer)];
        prost::bytes::Buf::copy_to_slice(buffer, &mut item);
        Ok(Some(item))
    }
}
