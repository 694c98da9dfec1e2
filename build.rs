//! Turns the files of `proto/` into Rust. Reads from the file itself which messages carry secrets, and keeps every
//! one of them from being printed.

use std::{collections::BTreeSet, error::Error};

use protox::{
    Compiler,
    prost_reflect::{DescriptorPool, Kind},
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_file("csi.proto")?.open_file("pluginregistration.proto")?;
    let secret = secret_messages(&compiler.descriptor_pool())?;
    tonic_prost_build::configure()
        .build_server(true)
        .build_client(true)
        // Maps in key order, so that one request always has one encoding.
        .btree_map(".")
        .skip_debug(secret.iter().map(|name| format!(".{name}")))
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// Its `mount_flags` may hold secrets, says the specification in words, without the mark.
const UNMARKED: &str = "csi.v1.VolumeCapability.MountVolume";

/// The messages with a field marked `csi_secret`, and those that contain such a message, however deep.
fn secret_messages(pool: &DescriptorPool) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let mark =
        pool.get_extension_by_name("csi.v1.csi_secret").ok_or("csi.proto lacks the option csi_secret")?;
    let mut found = BTreeSet::from([UNMARKED.to_owned()]);
    loop {
        let before = found.len();
        for message in pool.all_messages() {
            let secret = message.fields().any(|field| {
                field.options().get_extension(&mark).as_bool() == Some(true)
                    || matches!(field.kind(), Kind::Message(inner) if found.contains(inner.full_name()))
            });
            if secret {
                found.insert(message.full_name().to_owned());
            }
        }
        if found.len() == 1 {
            return Err("no field of csi.proto is marked csi_secret: the option is read wrongly".into());
        }
        if found.len() == before {
            return Ok(found);
        }
    }
}
