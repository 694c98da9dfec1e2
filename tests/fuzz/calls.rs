//! Calls as nobody should make them, written from the protocol's own description: every service and every field that the
//! files of `proto/` have, so that one which is added is tried without a word here.

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes as Buffer};
use lagan::proto::{IMPORT, ONLY_IF_EXISTS};
use protox::{
    Compiler,
    prost_reflect::{
        DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    },
};

use tonic::{
    body::Body,
    metadata::{MetadataMap, MetadataValue},
};

use crate::hostile::Random;

/// A call as it is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    /// `/service/method`.
    pub(crate) path: String,
    /// What comes beside the message.
    pub(crate) import: Option<Vec<u8>>,
    pub(crate) only_if_exists: bool,
    /// The message, in its frame.
    pub(crate) body: Vec<u8>,
}

impl Call {
    /// One line, then the body.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let hex = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let import = self.import.as_ref().map(hex).unwrap_or_default();
        let mut bytes = format!("{} {} {import}\n", self.path, u8::from(self.only_if_exists)).into_bytes();
        bytes.extend(&self.body);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let [path, only, hex] = head.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let digits: Vec<_> =
            hex.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
        let import = digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect();
        Self {
            path: path.to_owned(),
            import: Some(import).filter(|_| !hex.is_empty()),
            only_if_exists: only == "1",
            body: bytes[end + 1..].to_vec(),
        }
    }

    /// As it goes over the wire.
    pub(crate) fn into_request(self) -> Request<Body> {
        let mut beside = MetadataMap::new();
        if let Some(import) = &self.import {
            beside.insert_bin(IMPORT, MetadataValue::from_bytes(import));
        }
        if self.only_if_exists {
            beside.insert(ONLY_IF_EXISTS, MetadataValue::from_static("true"));
        }
        let request =
            Request::post(format!("http://host{}", self.path)).header("content-type", "application/grpc");
        let mut request = request.body(Body::new(Full::new(Buffer::from(self.body)))).unwrap();
        request.headers_mut().extend(beside.into_headers());
        request
    }

    /// The message, where it is alone in its frame.
    pub(crate) fn message(&self) -> Option<&[u8]> {
        let (head, message) = self.body.split_at_checked(5)?;
        let length = u32::from_be_bytes(head[1..].try_into().ok()?);
        (head[0] == 0 && usize::try_from(length) == Ok(message.len())).then_some(message)
    }
}

/// What was answered.
pub(crate) struct Answer {
    pub(crate) code: u32,
    pub(crate) message: String,
    pub(crate) body: Buffer,
}

impl Answer {
    pub(crate) async fn read(answer: Response<Body>) -> Self {
        let (head, body) = answer.into_parts();
        let whole = match body.collect().await {
            Ok(whole) => whole,
            Err(status) => {
                return Self {
                    code: 2,
                    message: format!("the answer broke off: {status}"),
                    body: Buffer::new(),
                };
            }
        };
        let (trailers, body) = (whole.trailers().cloned(), whole.to_bytes());
        let status = |name: &str| {
            let from = head.headers.get(name).or_else(|| trailers.as_ref()?.get(name));
            from.map(|value| value.to_str().unwrap_or("is no text").to_owned())
        };
        let code = status("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(u32::MAX);
        Self { code, message: status("grpc-message").unwrap_or_default(), body }
    }
}

/// What has been heard of so far, and may be asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    volumes: Vec<String>,
    snapshots: Vec<String>,
    groups: Vec<String>,
}

impl Heard {
    /// Takes in the ids that stand in an answer, wherever they do.
    pub(crate) fn listen(&mut self, answer: &[u8]) {
        for at in answer.windows(2).enumerate().filter(|(_, pair)| pair[1] == b'.').map(|(at, _)| at) {
            let known = match answer[at] {
                b'v' => &mut self.volumes,
                b's' => &mut self.snapshots,
                b'g' => &mut self.groups,
                _ => continue,
            };
            let id = answer.get(at..at + 67).and_then(|id| std::str::from_utf8(id).ok());
            if let Some(id) =
                id.filter(|id| id[2..].bytes().all(|byte| byte == b'.' || byte.is_ascii_hexdigit()))
            {
                if known.len() >= 64 {
                    known.remove(0);
                }
                known.push(id.to_owned());
            }
        }
    }
}

/// How far a call is from what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    /// As an orchestrator would make it.
    Sane,
    /// The same with a field here and there that is not.
    Odd,
    /// Any field may hold anything, be missing, doubled or many.
    Wild,
}

/// The protocol, and a seed that decides what is made of it.
pub(crate) struct Caller {
    pool: DescriptorPool,
    methods: Vec<MethodDescriptor>,
    /// Those that most calls are of.
    usual: Vec<MethodDescriptor>,
    random: Random,
    pub(crate) heard: Heard,
    last: Call,
    /// The one root below which paths may be.
    root: String,
    /// Paths that lead elsewhere.
    traps: Vec<String>,
    /// Decides the paths of this call: a volume has its own, as an orchestrator would give it.
    place: usize,
}

/// Fields that are left out of most calls, since few bear them.
const RARE: &[&str] = &[
    "mutable_parameters",
    "volume_mount_group",
    "limit_bytes",
    "accessibility_requirements",
    "accessible_topology",
    "volume_content_source",
    "starting_token",
    "parameters",
    "max_entries",
    "snapshot_ids",
    "readonly",
    "mount_flags",
];

/// A message of this length is refused unseen.
const LONGEST: usize = 5 << 20;

impl Caller {
    /// One that mostly calls these services.
    pub(crate) fn new(pool: &DescriptorPool, services: &[&str], seed: u64) -> Self {
        let methods: Vec<_> =
            pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
        let mut usual = methods.clone();
        usual.retain(|method| {
            let asks = method.input().fields().len() > 0 || method.parent_service().name() == "Registration";
            asks && services.contains(&method.parent_service().name())
        });
        Self {
            pool: pool.clone(),
            methods,
            usual,
            random: Random::new(seed),
            heard: Heard::default(),
            last: Call::default(),
            root: "/t".to_owned(),
            traps: Vec::new(),
            place: 0,
        }
    }

    /// The same for a host with another root, which has traps.
    pub(crate) fn below(self, root: &str, traps: &[&str]) -> Self {
        let traps = traps.iter().map(|&trap| trap.to_owned()).collect();
        Self { root: root.to_owned(), traps, ..self }
    }

    /// Every service of ours, as the files describe it.
    pub(crate) fn protocol() -> DescriptorPool {
        let mut compiler = Compiler::new([concat!(env!("CARGO_MANIFEST_DIR"), "/proto")]).unwrap();
        compiler.include_imports(true);
        compiler.open_files(["csi.proto", "pluginregistration.proto"]).unwrap();
        compiler.descriptor_pool()
    }

    /// Whether a message can be read as what its method takes.
    pub(crate) fn is_readable(&self, call: &Call) -> bool {
        let method = self.methods.iter().find(|method| path_of(method) == call.path);
        let message = call.message();
        method
            .zip(message)
            .is_some_and(|(method, bytes)| DynamicMessage::decode(method.input(), bytes).is_ok())
    }

    /// The next call: a new one, or the last one again.
    pub(crate) fn next(&mut self) -> Call {
        if self.last.path.is_empty() || !self.random.chance(4) {
            self.last = self.make();
        }
        self.last.clone()
    }

    fn make(&mut self) -> Call {
        let among = if self.random.chance(90) { &self.usual } else { &self.methods };
        let undoes =
            |name: &str| name.starts_with("Delete") || name.contains("Unpublish") || name.contains("Unstage");
        let mut method = among[self.random.below(among.len())].clone();
        if undoes(method.name()) && self.random.chance(75) {
            // Else there would hardly ever be anything.
            method = among[self.random.below(among.len())].clone();
        }
        let temper = match self.random.below(10) {
            0..5 => Temper::Sane,
            5..8 => Temper::Odd,
            _ => Temper::Wild,
        };
        let mut message = Vec::new();
        self.message(&method.input(), "", temper, 0, &mut message);
        let noise = self.random.below(40);
        if noise == 0 {
            self.random.spoil(&mut message, &[]);
        }
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend(message);
        if noise == 1 {
            // Frames, too.
            self.random.spoil(&mut body, &[]);
        }
        let mut call = Call { path: path_of(&method), body, ..Call::default() };
        if method.name() == "CreateVolume" && self.random.chance(10) {
            let text = self.random.text();
            let kind = self.random.pick(&["device:", "lv:", "thin:", ""]);
            call.import = Some(format!("{kind}{text}").into_bytes());
        }
        call.only_if_exists = method.name() == "CreateVolume" && self.random.chance(5);
        if self.random.chance(1) {
            call.path = self.path(&call.path);
        }
        call
    }

    /// The path of a call that there may not be.
    fn path(&mut self, path: &str) -> String {
        let names = self.pool.services().map(|service| service.full_name().to_owned()).collect::<Vec<_>>();
        let service = names[self.random.below(names.len())].clone();
        let (_, method) = path.rsplit_once('/').unwrap();
        match self.random.below(5) {
            0 => format!("/{service}/{method}"),
            1 => format!("/{service}/"),
            2 => format!("/{method}"),
            3 => path.to_uppercase(),
            _ => format!("{path}/x"),
        }
    }

    fn message(
        &mut self,
        kind: &MessageDescriptor,
        within: &str,
        temper: Temper,
        depth: usize,
        out: &mut Vec<u8>,
    ) {
        if depth > 8 {
            return;
        }
        let chosen: Vec<_> = kind
            .oneofs()
            .map(|oneof| {
                let fields: Vec<_> = oneof.fields().map(|field| field.number()).collect();
                // Of a volume's two uses mostly the same, or no call would fit another.
                if self.random.chance(75) { fields[fields.len() - 1] } else { self.random.pick(&fields) }
            })
            .collect();
        let mut key = String::new();
        for field in kind.fields() {
            let of_one = field.containing_oneof().is_some();
            let temper = if temper == Temper::Odd && self.random.chance(15) { Temper::Wild } else { temper };
            let present = match temper {
                Temper::Wild => self.random.chance(60),
                _ if of_one => chosen.contains(&field.number()),
                _ if RARE.contains(&field.name()) => self.random.chance(20),
                _ => self.random.chance(97),
            };
            if !present {
                continue;
            }
            let count = match (field.is_list() || field.is_map(), temper) {
                (false, Temper::Wild) if self.random.chance(5) => 2,
                (false, _) => 1,
                (true, Temper::Wild) if self.random.below(2000) == 0 => {
                    self.random.pick(&[100, 1000, 20_000])
                }
                (true, Temper::Wild) => self.random.below(8),
                (true, _) => 1 + self.random.below(2),
            };
            let within =
                if field.name() == "value" && !key.is_empty() { key.clone() } else { within.to_owned() };
            for _ in 0..count {
                if out.len() > LONGEST {
                    break;
                }
                self.field(&field, &within, temper, depth, &mut key, out);
            }
        }
        if temper == Temper::Wild && self.random.chance(10) {
            // A field that there is not.
            let text = self.random.text();
            tag(self.random.pick(&[15, 999, 19_000, (1 << 29) - 1]), 2, out);
            varint(text.len() as u64, out);
            out.extend(text.into_bytes());
        }
    }

    fn field(
        &mut self,
        field: &FieldDescriptor,
        within: &str,
        temper: Temper,
        depth: usize,
        key: &mut String,
        out: &mut Vec<u8>,
    ) {
        let number = field.number();
        match field.kind() {
            Kind::Message(inner) => {
                let mut bytes = Vec::new();
                self.message(&inner, field.name(), temper, depth + 1, &mut bytes);
                tag(number, 2, out);
                varint(bytes.len() as u64, out);
                out.extend(bytes);
            }
            Kind::String | Kind::Bytes => {
                let hostile = temper == Temper::Wild && self.random.chance(60);
                let text = match hostile {
                    true if field.name().contains("path") && self.random.chance(50) => self.path_elsewhere(),
                    true => self.random.text(),
                    false => self.text(field.name(), within),
                };
                if field.name() == "key" {
                    key.clone_from(&text);
                }
                tag(number, 2, out);
                varint(text.len() as u64, out);
                out.extend(text.into_bytes());
            }
            Kind::Enum(kind) if temper != Temper::Wild => {
                let values: Vec<_> = kind.values().map(|value| value.number()).filter(|&it| it > 0).collect();
                // The first is the usual one.
                let values = if self.random.chance(60) { &values[..1] } else { &values };
                tag(number, 0, out);
                varint(u64::from(self.random.pick(values).cast_unsigned()), out);
            }
            Kind::Bool if temper != Temper::Wild => {
                tag(number, 0, out);
                varint(self.random.below(2) as u64, out);
            }
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
                tag(number, 5, out);
                out.extend(&self.random.next().to_le_bytes()[..4]);
            }
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
                tag(number, 1, out);
                out.extend(self.random.next().to_le_bytes());
            }
            _ => {
                let value =
                    if temper == Temper::Wild { self.random.number() } else { self.count(field.name()) };
                tag(number, 0, out);
                varint(value.cast_unsigned(), out);
            }
        }
    }

    /// A number as the field should have.
    fn count(&mut self, name: &str) -> i64 {
        match name {
            "required_bytes" => self.random.pick(&[0, 1, 16 << 20, 17 << 20, 128 << 20, 300 << 20]),
            "limit_bytes" => self.random.pick(&[0, 16 << 20, 2 << 30, 1 << 40]),
            _ => self.random.pick(&[0, 1, 2, 100]),
        }
    }

    /// Text as the field should have; `within` is the message or, for a value in a map, the key.
    fn text(&mut self, name: &str, within: &str) -> String {
        let kept = match name {
            _ if name.starts_with("group_snapshot_id") => &self.heard.groups,
            _ if name.starts_with("snapshot_id") => &self.heard.snapshots,
            _ if name.contains("volume_id") || name == "starting_token" => &self.heard.volumes,
            _ => &Vec::new(),
        };
        if !kept.is_empty() && self.random.chance(92) {
            // Most calls are about few, so that some of them get far.
            let among = if self.random.chance(90) { kept.len().min(2) } else { kept.len() };
            let id = kept[kept.len() - 1 - self.random.below(among)].clone();
            self.place = usize::from(id.as_bytes()[id.len() - 1] % 4);
            return id;
        }
        let number = self.random.below(32);
        match (name, within) {
            _ if name.contains("_id") && !name.starts_with("node") => self.foreign_id(name),
            ("name", _) => format!("name-{number}"),
            ("node_id", _) => self.random.pick(&["n1", "n1", "n1", "n2", ""]).to_owned(),
            ("staging_target_path", _) => format!("{}/staging-{}", self.root, self.place),
            ("target_path" | "volume_publish_path", _) => {
                format!("{}/pods/{}", self.root, self.place * 2 + number % 2)
            }
            ("volume_path", _) if number.is_multiple_of(2) => format!("{}/staging-{}", self.root, self.place),
            ("volume_path", _) => format!("{}/pods/{}", self.root, self.place * 2),
            ("fs_type", _) | ("value", "fstype") => {
                self.random.pick(&["", "ext4", "xfs", "btrfs"]).to_owned()
            }
            ("mount_flags", _) => {
                self.random.pick(&["noatime", "ro", "nosuid", "discard", "commit=5"]).to_owned()
            }
            ("key", "parameters") => {
                self.random.pick(&["pool", "fstype", "access", "csi.storage.k8s.io/pvc/name"]).to_owned()
            }
            ("key", "segments") => "lagan.csi/host".to_owned(),
            ("value", "lagan.csi/host") => self.random.pick(&["n1", "n1", "n2"]).to_owned(),
            ("value", "pool") => "p".to_owned(),
            ("value", "access") => self.random.pick(&["host", "host", "network"]).to_owned(),
            _ => format!("text-{number}"),
        }
    }

    /// A path that must not be followed.
    fn path_elsewhere(&mut self) -> String {
        let text = self.random.text();
        if self.traps.is_empty() || self.random.chance(30) {
            return format!("{}/{text}", self.root);
        }
        let trap = &self.traps[self.random.below(self.traps.len())];
        if self.random.chance(50) { trap.clone() } else { format!("{trap}/{text}") }
    }

    /// An id in form, of something that is not here.
    fn foreign_id(&mut self, name: &str) -> String {
        let letter = match name {
            _ if name.starts_with("group") => 'g',
            _ if name.starts_with("snapshot") => 's',
            _ => 'v',
        };
        let (pool, object) = (self.random.below(4), self.random.below(16));
        format!("{letter}.{pool:032x}.{object:032x}")
    }
}

fn path_of(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

fn tag(number: u32, wire: u64, out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | wire, out);
}
