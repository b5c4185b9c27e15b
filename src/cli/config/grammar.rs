//! What can be said about configuration documents on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use starling_core::id::{ConfigGroup, ConfigName, Namespace};
use starling_core::time::Stamp;

/// `starling config`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Write a document
    #[command(after_long_help = "\
Any node takes the write and tells all others. If somebody edits the same document on the far side of a partition,
both versions are kept and shown as a conflict.

Examples:
  starling config put limits.json limits.json
  starling config put greeting --value 'hello' --comment 'friendlier'
  generate | starling config put shop/prices - --format json
  starling config put limits.json new.json --expect 1700000000000.0@node-a")]
    Put(PutArgs),
    /// Print a document
    #[command(after_long_help = "\
Prints exactly the bytes that were written. A conflict is reported on standard error.

Examples:
  starling config get limits.json
  starling config get limits.json --meta
  starling config get limits.json --stamp 1700000000000.0@node-a")]
    Get(GetArgs),
    /// List documents
    #[command(after_long_help = "\
Examples:
  starling config list
  starling config list --group shop --prefix prices/")]
    List(ListArgs),
    /// Delete a document
    #[command(after_long_help = "\
Example:
  starling config rm limits.json --comment 'moved to limits.toml'")]
    Rm(RmArgs),
    /// Print a document now and whenever it changes, for ever
    #[command(after_long_help = "\
Survives restarts of the node it asks. With --json: one line per change.

Examples:
  starling config watch limits.json
  starling config watch limits.json --json | while read -r change; do reload; done")]
    Watch(WatchArgs),
    /// List documents that were edited on two sides at once
    #[command(after_long_help = "\
Every node serves the same version of such a document until somebody settles it.

Example:
  starling config conflicts")]
    Conflicts(ConflictsArgs),
    /// Settle a conflict: keep one version, drop the others
    #[command(after_long_help = "\
To settle it with a new text instead, write the document again with: starling config put

Example:
  starling config resolve limits.json --choose 1700000000000.0@node-a")]
    Resolve(ResolveArgs),
}

/// Which document.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The document's name; may contain '/'
    pub(crate) key: ConfigName,
    /// Its group
    #[arg(long, short, default_value = "default")]
    pub(crate) group: ConfigGroup,
    /// Its namespace
    #[arg(long, short, default_value = "default")]
    pub(crate) namespace: Namespace,
}

/// What is noted beside a write.
#[derive(Debug, Args)]
pub(crate) struct Note {
    /// Who writes
    #[arg(long, env = "USER", default_value = "", hide_default_value = true, hide_env_values = true)]
    pub(crate) author: String,
    /// Why
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) comment: String,
}

/// `starling config put`
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The file with the new text; '-' reads standard input
    #[arg(required_unless_present = "value")]
    pub(crate) file: Option<PathBuf>,
    /// The new text itself, instead of a file
    #[arg(long, conflicts_with = "file")]
    pub(crate) value: Option<String>,
    /// json, yaml, toml, text or another word [default: by the name's ending]
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// Write only over this version; 'none': only if there is no document
    #[arg(long, value_name = "STAMP", value_parser = expectation)]
    pub(crate) expect: Option<String>,
    #[command(flatten)]
    pub(crate) note: Note,
}

/// `starling config get`
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Show who wrote it, when, and all versions of a conflict
    #[arg(long)]
    pub(crate) meta: bool,
    /// Print this one of the concurrent versions
    #[arg(long, conflicts_with = "meta")]
    pub(crate) stamp: Option<Stamp>,
}

/// `starling config list`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only names that begin with this
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// Only this group [default: all]
    #[arg(long, short)]
    pub(crate) group: Option<ConfigGroup>,
    /// Only this namespace [default: all]
    #[arg(long, short)]
    pub(crate) namespace: Option<Namespace>,
}

/// `starling config rm`
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Delete only this version
    #[arg(long, value_name = "STAMP", value_parser = expectation)]
    pub(crate) expect: Option<String>,
    #[command(flatten)]
    pub(crate) note: Note,
}

/// `starling config watch`
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) which: Which,
}

/// `starling config conflicts`
#[derive(Debug, Args)]
pub(crate) struct ConflictsArgs {}

/// `starling config resolve`
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The version to keep; 'starling config conflicts' lists them
    #[arg(long, value_name = "STAMP")]
    pub(crate) choose: Stamp,
    #[command(flatten)]
    pub(crate) note: Note,
}

fn expectation(text: &str) -> Result<String, String> {
    match text.parse::<Stamp>() {
        _ if text == "none" => Ok(text.to_owned()),
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; or write 'none'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expectation_is_a_stamp_or_none() {
        assert!(expectation("none").is_ok() && expectation("1700000000000.3@a").is_ok());
        assert!(expectation("latest").unwrap_err().contains("'none'"));
    }
}
