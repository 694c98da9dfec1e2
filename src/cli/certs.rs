//! `lagan certs`: an authority and certificates for those who have none.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{Common, out};
use crate::{
    error::{Error, ErrorKind, Result},
    id::NodeId,
    peers::{
        HostName, Role,
        certs::{days_left, make},
    },
};

#[derive(Debug, Args)]
pub(super) struct CertsArgs {
    /// Directory of the files: the authority (ca.crt, ca.key) is made where there is none.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A certificate for the host with this node id; may be given several times.
    #[arg(long = "host", value_name = "NODE")]
    hosts: Vec<NodeId>,
    /// A certificate for routers.
    #[arg(long)]
    router: bool,
}

const COLUMNS: &[&str] = &["file", "made", "days_left"];

pub(super) fn run(common: &Common, args: &CertsArgs) -> Result<ExitCode> {
    let mut roles: Vec<Role> = args.hosts.iter().map(|node| Role::Host(HostName::of(node))).collect();
    roles.extend(args.router.then_some(Role::Router));
    if roles.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "say whose: --host NODE, or --router"));
    }
    let mut rows = out::Rows::new(COLUMNS);
    for made in make(&args.dir, &roles)? {
        let state = if made.new { "now" } else { "before" };
        let file = made.path.display().to_string();
        rows.add([file.into(), state.into(), days_left(made.expires).into()]);
    }
    rows.print(common.output)?;
    out::talk("Each host needs ca.crt and its own .crt and .key; ca.key belongs on none of them.");
    Ok(ExitCode::SUCCESS)
}
