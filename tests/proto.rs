//! Holds `proto/csi.proto` equal to the file published with the CSI specification, comments aside, and the
//! generated code to its promise that no message with a secret can be printed.
//! The published file comes with a Go module pinned in `csi-sanity/go.mod`; without Go these tests fail.

use std::{
    collections::BTreeSet,
    fmt::{Debug, Write},
    fs,
    marker::PhantomData,
    path::Path,
    process::Command,
};

use lagan::proto;
use protox::{
    Compiler,
    file::{File, FileResolver, GoogleFileResolver},
    prost_reflect::{DescriptorPool, DynamicMessage, Kind, Value},
};

const OURS: &str = include_str!("../proto/csi.proto");
const SPECIFICATION: &str = "github.com/container-storage-interface/spec";

#[test]
fn equals_the_published_file() {
    let differences = differences(&facts(&published()), &facts(OURS));
    let first = differences.iter().take(20).fold(String::new(), |mut text, line| {
        writeln!(text, "  {line}").unwrap();
        text
    });
    let count = differences.len();
    assert!(count == 0, "{count} differences (- published, + proto/csi.proto), the first of them:\n{first}");
}

/// The comparison must be able to fail: for every kind of fact, a file that differs only there is told apart.
#[test]
fn sees_every_kind_of_difference() {
    check_seen("string name = 1;", "string name = 77;", "GetPluginInfoResponse].field[name].number");
    check_seen("string vendor_version", "bytes vendor_version", "field[vendor_version].type = TYPE_BYTES");
    check_seen("string vendor_version", "string vendor", "field[vendor_version].json_name = vendorVersion");
    check_seen("repeated PluginCapability", "PluginCapability", "field[capabilities].label = LABEL_OPTIONAL");
    check_seen("Volume volume = 1;", "Snapshot volume = 1;", "field[volume].type_name = .csi.v1.Snapshot");
    check_seen("INODES = 2;", "INODES = 3;", "enum_type[Unit].value[INODES].number = 3");
    check_seen("reserved 11;", "", "reserved_range[0].start = 11");
    check_seen("reserved 2;", "", "reserved_range[0].start = 2");
    check_seen("oneof access_type", "oneof kind", "oneof_decl[access_type]");
    check_seen(" [(csi_secret) = true]", "", "field[secrets].options.(csi.v1.csi_secret) = true");
    check_seen(", (alpha_field) = true", "", "field[secrets].options.(csi.v1.alpha_field) = true");
    check_seen(" [(alpha_enum_value) = true]", "", "options.(csi.v1.alpha_enum_value) = true");
    check_seen("option (alpha_message) = true;", "", "options.(csi.v1.alpha_message) = true");
    check_seen("option (alpha_method) = true;", "", "options.(csi.v1.alpha_method) = true");
    check_seen("option (alpha_service) = true;", "", "options.(csi.v1.alpha_service) = true");
    check_seen("bool alpha_enum = 1060", "bool alpha_enum = 1061", "extension[alpha_enum].number = 1061");
    check_seen("(stream GetMetadataDeltaResponse)", "(GetMetadataDeltaResponse)", "server_streaming = true");
    check_seen("rpc Probe(ProbeRequest)", "rpc Probe(NodeGetInfoRequest)", "method[Probe].input_type");
    check_seen("spec/lib/go/csi", "spec/lib/go/other", "options.go_package");
    check_seen("package csi.v1;", "package csi.v2;", "package = csi.v2");
    check_seen(
        "import \"google/protobuf/descriptor.proto\";",
        "import \"google/protobuf/any.proto\";\nimport \"google/protobuf/descriptor.proto\";",
        "dependency[0] = google/protobuf/any.proto",
    );
    let mut moved = OURS.replacen("message GetPluginInfoRequest {}", "", 1);
    moved.push_str("message GetPluginInfoRequest {}");
    let seen = differences(&facts(OURS), &facts(&moved));
    assert!(seen.iter().any(|line| line.starts_with("order")), "{seen:?}");
}

/// Replaces the first `from` by `to` in our file and expects a difference that mentions `expected`.
#[track_caller]
fn check_seen(from: &str, to: &str, expected: &str) {
    assert!(OURS.contains(from), "proto/csi.proto no longer contains {from:?}");
    let seen = differences(&facts(OURS), &facts(&OURS.replacen(from, to, 1)));
    assert!(seen.iter().any(|line| line.contains(expected)), "no {expected:?} in {seen:#?}");
}

/// Says at compile time whether a type can be printed: its own constant, if there, hides that of the trait.
struct Print<T>(PhantomData<T>);

impl<T: Debug> Print<T> {
    const POSSIBLE: bool = true;
}

trait Impossible {
    const POSSIBLE: bool = false;
}

impl<T> Impossible for Print<T> {}

/// The names of those of the given messages that cannot be printed.
macro_rules! unprintable {
    ($($message:ident)*) => {
        [$((stringify!($message), Print::<proto::$message>::POSSIBLE)),*]
            .into_iter()
            .filter_map(|(name, printable)| (!printable).then(|| name.to_owned()))
            .collect::<BTreeSet<String>>()
    };
}

#[test]
fn messages_with_secrets_cannot_be_printed() {
    // The last one has no secrets: it shows that the macro tells the two apart.
    let unprintable = unprintable! {
        CreateVolumeRequest DeleteVolumeRequest ControllerPublishVolumeRequest
        ControllerUnpublishVolumeRequest ValidateVolumeCapabilitiesRequest ControllerListVolumeHealthRequest
        ControllerGetVolumeHealthRequest ControllerModifyVolumeRequest CreateSnapshotRequest
        DeleteSnapshotRequest ListSnapshotsRequest GetSnapshotRequest ControllerExpandVolumeRequest
        NodeStageVolumeRequest NodePublishVolumeRequest NodeGetStorageHealthRequest NodeExpandVolumeRequest
        CreateVolumeGroupSnapshotRequest DeleteVolumeGroupSnapshotRequest GetVolumeGroupSnapshotRequest
        GetMetadataAllocatedRequest GetMetadataDeltaRequest Volume
        VolumeCapability GetCapacityRequest NodeGetStorageHealthResponse
    };
    let pool = compile(OURS);
    let mark = pool.get_extension_by_name("csi.v1.csi_secret").unwrap();
    let mut secret: BTreeSet<String> = pool
        .all_messages()
        .filter(|message| message.fields().any(|field| field.options().has_extension(&mark)))
        .map(|message| message.name().to_owned())
        .collect();
    // They hold mount flags, which may be secret and bear no mark.
    let unmarked = ["VolumeCapability", "GetCapacityRequest", "NodeGetStorageHealthResponse"];
    secret.extend(unmarked.map(str::to_owned));
    assert_eq!(unprintable, secret);
}

/// What the two lists do not share, sorted by path; failing that, the first place where their order differs.
fn differences(published: &[String], ours: &[String]) -> Vec<String> {
    let (left, right) = (published.iter().collect::<BTreeSet<_>>(), ours.iter().collect::<BTreeSet<_>>());
    let apart: Vec<String> = left
        .symmetric_difference(&right)
        .map(|&fact| format!("{} {fact}", if left.contains(fact) { "-" } else { "+" }))
        .collect();
    if !apart.is_empty() {
        return apart;
    }
    let moved = published.iter().zip(ours).find(|(published, ours)| published != ours);
    moved.map(|(published, ours)| format!("order: - {published}, + {ours}")).into_iter().collect()
}

/// Everything a file says, one line each, such as `message_type[Volume].field[volume_id].number = 2`.
fn facts(proto: &str) -> Vec<String> {
    let pool = compile(proto);
    let file = pool.get_file_by_name("csi.proto").expect("it was compiled under this name").encode_to_vec();
    let kind = pool.get_message_by_name("google.protobuf.FileDescriptorProto").expect("csi.proto imports it");
    // Read through the pool, which knows the options that csi.proto defines; prost's own type would drop them.
    let file = DynamicMessage::decode(kind, file.as_slice()).expect("the pool encoded it");
    let mut facts = Vec::new();
    tell_message("", &file, &mut facts);
    facts
}

fn tell_message(path: &str, message: &DynamicMessage, facts: &mut Vec<String>) {
    assert_eq!(message.unknown_fields().count(), 0, "{path} holds something that cannot be compared");
    let before = facts.len();
    let dot = if path.is_empty() { "" } else { "." };
    for (field, value) in message.fields().filter(|(field, _)| field.name() != "source_code_info") {
        tell(&format!("{path}{dot}{}", field.name()), &field.kind(), value, facts);
    }
    for (option, value) in message.extensions() {
        tell(&format!("{path}{dot}({})", option.full_name()), &option.kind(), value, facts);
    }
    if facts.len() == before {
        facts.push(format!("{path} = empty"));
    }
}

/// Tells a value; the items of a list go by their names where they have one.
fn tell(path: &str, kind: &Kind, value: &Value, facts: &mut Vec<String>) {
    match (value, kind) {
        (Value::Message(message), _) => tell_message(path, message, facts),
        (Value::List(items), _) => {
            for (index, item) in items.iter().enumerate() {
                let name = item.as_message().and_then(|item| item.get_field_by_name("name"));
                let name = name.and_then(|name| name.as_str().map(str::to_owned));
                tell(&format!("{path}[{}]", name.unwrap_or(index.to_string())), kind, item, facts);
            }
        }
        (Value::String(text), _) => facts.push(format!("{path} = {text}")),
        (Value::EnumNumber(number), Kind::Enum(names)) => {
            let value = names.get_value(*number).expect("the compiler only uses known values");
            facts.push(format!("{path} = {}", value.name()));
        }
        (plain, _) => facts.push(format!("{path} = {plain}")),
    }
}

/// A `csi.proto` given as text; imports come from the files that protox carries with it.
struct Text(String);

impl FileResolver for Text {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == "csi.proto" {
            File::from_source(name, &self.0)
        } else {
            GoogleFileResolver::new().open_file(name)
        }
    }
}

fn compile(proto: &str) -> DescriptorPool {
    let mut compiler = Compiler::with_file_resolver(Text(proto.to_owned()));
    match compiler.open_file("csi.proto") {
        Ok(compiler) => compiler.descriptor_pool(),
        Err(error) => panic!("{error:?}"),
    }
}

/// The file that belongs to the pinned version of the specification, downloaded if need be.
fn published() -> String {
    let find = || go(&["list", "-m", "-f", "{{.Dir}}", SPECIFICATION]);
    let mut dir = find();
    if dir.is_empty() {
        go(&["mod", "download", SPECIFICATION]);
        dir = find();
    }
    let path = Path::new(&dir).join("csi.proto");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What `go` prints when run in `csi-sanity`.
#[expect(clippy::disallowed_methods, reason = "a test may ask the Go toolchain; the rule is for the driver")]
fn go(arguments: &[&str]) -> String {
    let output = Command::new("go")
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/csi-sanity"))
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run go ({error}): install Go 1.25 or newer and put it on PATH")
        });
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "go {} failed: {complaint}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
