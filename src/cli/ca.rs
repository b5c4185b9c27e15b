//! The mesh's certificates: an authority, and a certificate per node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use starling_core::id::{MeshName, NodeId};
use starling_net::Authority;

use super::failure::Failure;
use super::output::{Out, Style};

/// `starling ca`
#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Make the certificate authority of a new mesh
    #[command(after_long_help = "\
Makes ca.crt and ca.key. Who has ca.key can make nodes of this mesh: keep it off the nodes. Never overwrites.

Example:
  starling ca init --mesh shop --dir ca")]
    Init(InitArgs),
    /// Issue the certificate of a node
    #[command(after_long_help = "\
Makes ca.crt, node.crt and node.key in a directory of the node's name; copy that to the node, and name the three
files in its settings under [tls].

Example:
  starling ca issue node-a --dir ca")]
    Issue(IssueArgs),
}

/// `starling ca init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The mesh's name; nodes of other meshes are refused
    #[arg(long, default_value = "starling")]
    mesh: MeshName,
    /// Where to put ca.crt and ca.key
    #[arg(long, default_value = "ca", value_name = "DIR")]
    dir: PathBuf,
}

/// `starling ca issue`
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// The node's name, as in its settings
    node: NodeId,
    /// Where ca.crt and ca.key are
    #[arg(long, default_value = "ca", value_name = "DIR")]
    dir: PathBuf,
    /// Where to put the node's files [default: DIR/NODE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long it is valid, in days
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

pub(crate) fn run(command: CaCommand, out: &mut Out) -> Result<(), Failure> {
    match command {
        CaCommand::Init(args) => init(&args, out),
        CaCommand::Issue(args) => issue(&args, out),
    }
}

fn init(args: &InitArgs, out: &mut Out) -> Result<(), Failure> {
    let authority = Authority::create(&args.mesh).map_err(refused)?;
    authority.save(&args.dir).map_err(refused)?;
    if out.wants_json() {
        let files = serde_json::json!({ "mesh": args.mesh, "certificate": args.dir.join("ca.crt"), "key": args.dir.join("ca.key") });
        return Ok(out.json(&files)?);
    }
    out.line(&format!("made the certificate authority of mesh {} in {}", args.mesh, args.dir.display()))?;
    Ok(out.styled(Style::Dim, &format!("next: starling ca issue NODE --dir {}", args.dir.display()))?)
}

fn issue(args: &IssueArgs, out: &mut Out) -> Result<(), Failure> {
    let authority = Authority::load(&args.dir).map_err(|error| {
        Failure::Refused(format!("{error}\nMake an authority first: starling ca init --dir {}", args.dir.display()))
    })?;
    let dir = args.out.clone().unwrap_or_else(|| args.dir.join(args.node.as_str()));
    let validity = Duration::from_secs(u64::from(args.days) * 86_400);
    authority.issue(&args.node, validity).map_err(refused)?.save(&dir).map_err(refused)?;
    let file = |name: &str| Path::join(&dir, name);
    if out.wants_json() {
        let files = serde_json::json!({ "node": args.node, "mesh": authority.mesh(), "ca": file("ca.crt"),
            "certificate": file("node.crt"), "key": file("node.key"), "days": args.days });
        return Ok(out.json(&files)?);
    }
    out.line(&format!(
        "issued the certificate of node {} in mesh {}, valid for {} days",
        args.node,
        authority.mesh(),
        args.days
    ))?;
    out.line("")?;
    out.line("[tls]")?;
    out.line(&format!("ca = {:?}", file("ca.crt")))?;
    out.line(&format!("cert = {:?}", file("node.crt")))?;
    Ok(out.line(&format!("key = {:?}", file("node.key")))?)
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::Refused(error.to_string())
}
