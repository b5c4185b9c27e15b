//! Backup and restore of what people write: configuration documents and overrides.
//!
//! Instances are not in it: they register themselves. A backup is what one node holds at one moment, checked when it
//! arrives and again when it is read. A restore compares it with what the mesh holds now and writes what is missing or
//! older, each document guarded by the version that was seen; so it can be stopped, repeated, and run while people work.

mod plan;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use starling_api::model::{Backup, BackupError};

use super::client::{Ask, Client};
use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, ago, count, notice, size};
use plan::{Action, Item, Plan};

/// How long a backup may take to arrive: hundreds of megabytes from a far node.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);
/// The largest backup that is read: twice all documents a mesh takes by default, in base64.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// A part of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Configuration documents
    Config,
    /// Overrides
    Overrides,
}

/// `starling backup`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Any node has all of it. The file is JSON, a line for each document (with all versions of a conflict) and override; its
last line has a checksum, so that a file that was cut off or changed is noticed. Instances are not in it: they register
themselves.

Examples:
  starling backup mesh.jsonl
  starling backup mesh-$(date +%F).jsonl --only config
  starling backup - | ssh vault 'cat > mesh.jsonl'")]
pub(crate) struct BackupArgs {
    /// The file to write, in place of what it held; '-' is standard output
    file: PathBuf,
    /// Only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// `starling restore`
#[derive(Debug, Args)]
#[command(after_long_help = "\
Writes what the mesh lacks, and what it holds in an older version. What was written, deleted or cleared after the
backup stays, unless --overwrite is given. Running it again changes nothing more. Of a document in conflict the version
that was served is restored.

Examples:
  starling restore mesh.jsonl --dry-run
  starling restore mesh.jsonl
  starling restore mesh.jsonl --only config --overwrite")]
pub(crate) struct RestoreArgs {
    /// The file to read; '-' is standard input
    file: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Also replace what is newer than the backup, and bring back what was deleted or cleared since
    #[arg(long)]
    overwrite: bool,
}

/// What a backup held, for programs.
#[derive(Serialize)]
struct Taken<'a> {
    file: &'a Path,
    bytes: u64,
    documents: usize,
    conflicts: usize,
    overrides: usize,
    node: String,
}

pub(crate) fn backup(args: &BackupArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let (bytes, backup) = fetch(client, args.only)?;
    if args.file.as_os_str() == "-" {
        return Ok(out.raw(&bytes)?);
    }
    save(&args.file, &bytes).map_err(|error| Failure::Refused(format!("{}: {error}", args.file.display())))?;
    let live = backup.documents.iter().filter(|document| document.served().is_some());
    let taken = Taken {
        file: &args.file,
        bytes: bytes.len() as u64,
        documents: live.clone().count(),
        conflicts: live.filter(|document| document.document.conflict > 0).count(),
        overrides: backup.overrides.iter().filter(|found| found.word.is_some()).count(),
        node: backup.header.node.to_string(),
    };
    if out.wants_json() {
        return Ok(out.json(&taken)?);
    }
    let conflicts = match taken.conflicts {
        0 => String::new(),
        number => format!(" ({number} in conflict)"),
    };
    Ok(out.line(&format!(
        "saved {}{conflicts} and {} to {} ({}), as node {} holds them",
        count(taken.documents, "document"),
        count(taken.overrides, "override"),
        args.file.display(),
        size(taken.bytes),
        taken.node
    ))?)
}

/// What a node holds now.
fn fetch(client: &Client, only: Option<Part>) -> Result<(Vec<u8>, Backup), Failure> {
    let part = only.map(|part| if part == Part::Config { "config" } else { "overrides" });
    let ask = Ask::get(&["v1", "backup"]).query_opt("only", part.as_ref()).within(TRANSFER_TIMEOUT);
    let bytes = client.send(ask)?.body;
    let backup = Backup::read(&bytes).map_err(|error| Failure::Refused(format!("what the node sent: {error}")))?;
    Ok((bytes, backup))
}

/// Puts it into place whole or not at all.
fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&part, path)).inspect_err(|_| _ = fs::remove_file(&part))
}

fn load(path: &Path) -> Result<Backup, Failure> {
    let told = |error: io::Error| Failure::Refused(format!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    let from: Box<dyn Read> =
        if path.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(told)?) };
    from.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(told)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::Refused(format!("{}: longer than {}", path.display(), size(MAX_FILE_BYTES))));
    }
    Backup::read(&bytes).map_err(|error: BackupError| Failure::Refused(format!("{}: {error}", path.display())))
}

pub(crate) fn restore(args: &RestoreArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let mut backup = load(&args.file)?;
    match args.only {
        Some(Part::Config) => backup.overrides.clear(),
        Some(Part::Overrides) => backup.documents.clear(),
        None => {}
    }
    let (_, now) = fetch(client, args.only)?;
    let mut plan = Plan::new(&backup, &now, args.overwrite);
    if !args.dry_run {
        for item in &mut plan.items {
            item.carry_out(client)?;
        }
    }
    if out.wants_json() {
        out.json(&serde_json::json!({ "dry_run": args.dry_run, "items": plan.items }))?;
    } else {
        let taken = ago(backup.header.taken_unix_ms);
        out.styled(Style::Dim, &format!("a backup of node {}, taken {taken}", backup.header.node))?;
        show(&plan, args, out)?;
    }
    out.flush()?;
    match plan.number(|action| matches!(action, Action::Failed(_))) {
        0 => Ok(()),
        failed => Err(Failure::Refused(format!("{} could not be restored; the list says why", count(failed, "entry")))),
    }
}

fn show(plan: &Plan, args: &RestoreArgs, out: &mut Out) -> io::Result<()> {
    let mut table = Table::new(&["WHAT", "NAME", if args.dry_run { "WOULD BE" } else { "IS" }, "WHY"]);
    for item in plan.items.iter().filter(|item| item.action != Action::Unchanged) {
        let style = match item.action {
            Action::Created | Action::Replaced | Action::BroughtBack => Style::Good,
            Action::Unchanged | Action::KeptNewer | Action::KeptDeleted => Style::Doubtful,
            Action::Failed(_) => Style::Bad,
        };
        let Item { kind, name, .. } = item;
        table.row([(*kind).into(), Cell::from(name), Cell::styled(style, item.action.word()), item.why().into()]);
    }
    let same = plan.number(|action| *action == Action::Unchanged);
    let kept = plan.number(|action| matches!(action, Action::KeptNewer | Action::KeptDeleted));
    let written = plan.number(Action::writes);
    if same < plan.items.len() {
        out.table(&table)?;
    }
    let verb = if args.dry_run { "would be written" } else { "written" };
    out.styled(Style::Dim, &format!("{written} {verb}, {same} the same already, {kept} kept as the mesh has them"))?;
    if kept > 0 {
        out.styled(Style::Dim, "what was kept is replaced with: --overwrite")?;
    }
    for name in &plan.other_versions {
        notice(&format!(
            "starling: {name} was in conflict when the backup was taken; only the version that was served is restored, \
             the others are in the file"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.jsonl");
        save(&path, b"first").unwrap();
        save(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left lying about");
        let nowhere = dir.path().join("no such directory").join("mesh.jsonl");
        assert!(save(&nowhere, b"x").is_err());
    }

    #[test]
    fn a_file_that_is_no_backup_is_named_with_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.jsonl");
        fs::write(&path, "{}\n").unwrap();
        let said = load(&path).unwrap_err().to_string();
        assert!(said.contains("mesh.jsonl") && said.contains("no backup"), "{said}");
        assert!(load(&dir.path().join("gone")).unwrap_err().to_string().contains("gone"));
    }
}
