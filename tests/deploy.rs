//! What is shipped for Kubernetes beside the driver, as far as it must agree with it. The chart's own checks are in
//! `deploy/kubernetes/check`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::{fs, path::Path};

use lagan::config::{Config, Mode, Overrides, parse};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes").join(path)).unwrap()
}

/// The configurations in the manifest, in their order.
fn configurations() -> Vec<String> {
    let text = read("lagan.yaml");
    let blocks = text.split("\n  config.toml: |\n").skip(1);
    let block = |rest: &str| {
        let lines = rest.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
        lines.map(|line| line.trim_start().to_owned() + "\n").collect::<String>()
    };
    blocks.map(block).collect()
}

fn accepted(text: &str, mode: Mode) -> Config {
    let overrides = Overrides { node_id: Some("n1".into()), ..Overrides::default() };
    parse(text, mode, &overrides).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

#[test]
fn the_configurations_of_the_manifest_are_accepted() {
    let [host, router] = configurations().try_into().unwrap();
    let host = accepted(&format!("machine_id = 'm'\n{host}"), Mode::All);
    let router = accepted(&router, Mode::Router);
    let (ours, theirs) = (host.cluster.unwrap(), router.cluster.unwrap());
    assert_eq!(host.driver_name, router.driver_name);
    // The port at which routers look for hosts is the one at which hosts listen.
    let listen = ours.listen.unwrap();
    assert!(theirs.dns.unwrap().ends_with(&format!(":{}", listen.port())));
    assert!(ours.callers.is_empty(), "only routers may call a host");
    // Kubelet and the container see the socket at one path.
    let (registry, endpoint) = host.kubelet.unwrap();
    assert_eq!(endpoint, host.endpoint.path());
    assert!(host.target_roots.iter().all(|root| registry.starts_with(root) && endpoint.starts_with(root)));
}

#[test]
fn the_chart_has_the_version_of_the_driver() {
    let chart = read("lagan/Chart.yaml");
    for key in ["version", "appVersion"] {
        let line = format!("\n{key}: {}\n", env!("CARGO_PKG_VERSION"));
        assert!(chart.contains(&line), "Chart.yaml lacks {line}");
    }
    assert!(read("lagan.yaml").contains(&format!("image: localhost/lagan:{}\n", env!("CARGO_PKG_VERSION"))));
}
