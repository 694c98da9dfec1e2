//! The tree as data: who imports whom, how long files are, and that ARCHITECTURE.md says the same.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Which module may import which, lowest first: the table of ARCHITECTURE.md.
const TABLE: &[(&str, &[&str])] = &[
    ("bytes", &[]),
    ("digest", &[]),
    ("error", &[]),
    ("id", &[]),
    ("trace", &[]),
    ("blocking", &["error"]),
    ("filesystem", &["bytes"]),
    ("capability", &["filesystem"]),
    ("sys", &["bytes", "error", "filesystem"]),
    ("pool", &["blocking", "bytes", "capability", "digest", "error", "filesystem", "id", "sys"]),
    ("node", &["blocking", "bytes", "capability", "digest", "error", "filesystem", "id", "pool", "sys"]),
    ("engine", &["blocking", "bytes", "capability", "digest", "error", "filesystem", "id", "pool"]),
    ("proto", &[]),
    ("peers", &["digest", "error", "id"]),
    (
        "csi",
        &[
            "blocking",
            "bytes",
            "capability",
            "digest",
            "engine",
            "error",
            "filesystem",
            "id",
            "node",
            "peers",
            "pool",
            "proto",
        ],
    ),
    ("router", &["csi", "digest", "error", "id", "peers", "pool", "proto", "trace"]),
    ("telemetry", &["engine", "error", "sys", "trace"]),
    ("server", &["engine", "error", "peers", "telemetry"]),
    ("kubelet", &["error", "proto", "server"]),
    ("config", &["id", "server", "sys"]),
    (
        "app",
        &[
            "blocking",
            "config",
            "csi",
            "engine",
            "error",
            "id",
            "kubelet",
            "node",
            "peers",
            "pool",
            "router",
            "server",
            "sys",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "bytes",
            "config",
            "digest",
            "engine",
            "error",
            "filesystem",
            "id",
            "peers",
            "pool",
            "proto",
            "router",
            "sys",
            "telemetry",
        ],
    ),
    ("main", &["cli"]),
];

/// Only these name a kind of pool or the real kernel; everyone else knows the traits.
const BACKENDS: &[(&str, &[&str])] = &[
    ("pool::file", &["app", "cli", "pool"]),
    ("pool::thin", &["app", "cli", "pool"]),
    ("pool::fake", &["pool"]),
    ("sys::fake", &["pool", "sys"]),
    ("sys::mount", &["app", "pool", "sys"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().to_owned()
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Code without what is only compiled for tests, which stands last in a file.
fn shipped(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

/// Every path below the crate that a file names, such as `pool::record::Volume`; groups are taken apart.
fn crate_paths(text: &str) -> Vec<String> {
    let text: String =
        text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (start, _) in text.match_indices("crate::") {
        let rest = &text[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_paths(group)),
            None => found.push(path_at(rest)),
        }
    }
    found
}

fn path_at(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect()
}

/// The members of `{…}`, one level deep: enough to see `module::submodule`.
fn group_paths(text: &str) -> Vec<String> {
    let (mut depth, mut member, mut prefix, mut found) = (0, String::new(), String::new(), Vec::new());
    for c in text.chars() {
        match c {
            '{' => {
                depth += 1;
                if depth == 1 {
                    prefix = member.trim().to_owned();
                    member.clear();
                }
            }
            '}' | ',' => {
                if !member.trim().is_empty() {
                    found.push(format!("{prefix}{}", member.trim()));
                    member.clear();
                }
                if c == '}' {
                    if depth == 0 {
                        return found;
                    }
                    depth -= 1;
                    if depth == 0 {
                        prefix.clear();
                    }
                }
            }
            c => member.push(c),
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let table: BTreeMap<_, _> = TABLE.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        // The map of the crate, which names every module, and the one line that starts the command line.
        if module == "lib" || module == "main" {
            continue;
        }
        let allowed = table.get(module.as_str()).unwrap_or_else(|| panic!("{module} is not in the table"));
        for import in crate_paths(shipped(&text)) {
            let target = import.split("::").next().unwrap();
            if target != module && !allowed.contains(&target) {
                wrong.push(format!(
                    "{} names crate::{import}: {module} may not import {target}",
                    relative(&path)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn backends_are_named_in_few_places() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for import in crate_paths(shipped(&text)) {
            for (backend, allowed) in BACKENDS {
                let named = import == *backend || import.starts_with(&format!("{backend}::"));
                if named && !allowed.contains(&module_of(&path).as_str()) {
                    wrong.push(format!("{} names {import}", relative(&path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_edges_speak_grpc() {
    for (path, text) in sources() {
        let module = module_of(&path);
        if !["csi", "cli", "kubelet", "peers", "router", "server", "proto", "lib"].contains(&module.as_str())
        {
            let names = ["tonic::", "proto::"].into_iter().find(|name| shipped(&text).contains(name));
            assert_eq!(names, None, "{} speaks gRPC", relative(&path));
        }
    }
}

#[test]
fn files_are_short() {
    let mut long = Vec::new();
    for (path, text) in sources() {
        let lines = shipped(&text).lines().count();
        if lines > 500 {
            long.push(format!("{}: {lines} lines", relative(&path)));
        }
        assert!(text.starts_with("//!"), "{} does not say what it owns", relative(&path));
    }
    assert!(long.is_empty(), "split by verb: {}", long.join(", "));
}

#[test]
fn architecture_md_shows_the_same_table() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    for (module, imports) in TABLE {
        let shown = if imports.is_empty() { "nothing of ours".to_owned() } else { imports.join(", ") };
        let row = format!("| `{module}` | {shown} |");
        assert!(text.contains(&row), "ARCHITECTURE.md lacks the row\n{row}");
    }
    let lines = text.lines().count();
    assert!(lines <= 150, "ARCHITECTURE.md has {lines} lines, more than anybody reads");
}

/// The check must be able to fail.
#[test]
fn imports_are_seen_in_every_form() {
    let text = "use crate::{\n    a::x,\n    b::{y, z::w},\n};\nfn f() { crate::c::d(); } // crate::e\n";
    assert_eq!(crate_paths(text), ["a::x", "b::y", "b::z::w", "c::d"]);
}

/// No shell, and no client that could ask an orchestrator for what a call did not bring: secrets come with calls only.
#[test]
fn there_is_no_shell_and_no_client_of_an_orchestrator() {
    for (path, text) in sources() {
        let shell = ["\"sh\"", "\"bash\"", "/bin/sh", "/bin/bash", "\"-c\""].into_iter();
        let found = shell.filter(|word| shipped(&text).contains(word)).collect::<Vec<_>>();
        assert!(found.is_empty(), "{} names {found:?}", relative(&path));
    }
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    for client in ["kube", "k8s-openapi", "reqwest", "ureq", "hyper-rustls"] {
        assert!(!lock.contains(&format!("name = \"{client}\"")), "{client} is linked");
    }
}

/// Every test that docs/security.md names is there: `path::name`, the path from the root of the tree.
#[test]
fn what_security_md_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let named: Vec<_> =
        quoted.filter_map(|word| word.split_once("::")).filter(|(path, _)| path.contains('/')).collect();
    assert!(named.len() > 30, "the rows name tests");
    for (path, name) in named {
        let source = fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let there = [format!("fn {name}("), format!("func {name}(")].iter().any(|line| source.contains(line));
        assert!(there, "docs/security.md names {path}::{name}, which is not there");
    }
    let rows = [1..=15, 19..=19, 22..=26, 29..=33].into_iter().flatten();
    for row in rows {
        assert!(text.contains(&format!("| S{row:02} |")), "docs/security.md lacks S{row:02}");
    }
}
