//! Configuration documents: read, write, watch, and settle conflicts.

mod grammar;

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use starling_api::model::{ConfigDocument, ConfigList, ConfigSummary, VersionInfo};
use starling_core::config::MAX_BODY_BYTES;
use starling_core::id::{ConfigGroup, ConfigName, Namespace};

use super::client::{Answer, Ask, Client};
use super::failure::Failure;
use super::output::{Cell, Out, Style, Table, ago, count, notice, size};
use super::registry::written;
pub(crate) use grammar::ConfigCommand;
pub(crate) use grammar::Note;
use grammar::{GetArgs, ListArgs, PutArgs, WatchArgs, Which};

/// How long one blocking query of a watch waits; the node answers earlier when something changes.
const WATCH_WAIT: Duration = Duration::from_secs(60);
/// The pauses between attempts when no node answers a watch.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

pub(crate) fn run(command: ConfigCommand, client: &Client, out: &mut Out) -> Result<(), Failure> {
    match command {
        ConfigCommand::Put(args) => put(args, client, out),
        ConfigCommand::Get(args) => get(&args, client, out),
        ConfigCommand::List(args) => list(&args, client, out),
        ConfigCommand::Rm(args) => {
            let ask = args.note.onto(args.which.ask("DELETE")).query_opt("expect", args.expect.as_ref());
            written(&client.fetch(ask)?, &format!("deleted {}", args.which.shown()), out)
        }
        ConfigCommand::Watch(args) => watch(&args, client, out),
        ConfigCommand::Conflicts(_) => conflicts(client, out),
        ConfigCommand::Resolve(args) => {
            let ask = args.note.onto(args.which.ask("POST")).query("choose", &args.choose.to_string());
            let what = format!("resolved {}: the version of {} is the only one", args.which.shown(), args.choose.node);
            written(&client.fetch(ask)?, &what, out)
        }
    }
}

impl Which {
    fn ask(&self, method: &'static str) -> Ask {
        Ask::new(method, &["v1", "config", self.namespace.as_str(), self.group.as_str(), self.key.as_str()])
    }

    fn shown(&self) -> String {
        name(&self.namespace, &self.group, &self.key)
    }
}

impl Note {
    pub(super) fn onto(&self, ask: Ask) -> Ask {
        let ask = if self.author.is_empty() { ask } else { ask.query("author", &self.author) };
        if self.comment.is_empty() { ask } else { ask.query("comment", &self.comment) }
    }
}

/// A document's name, with only those parts of it that are not the default.
fn name(namespace: &Namespace, group: &ConfigGroup, key: &ConfigName) -> String {
    match (*namespace == Namespace::default(), *group == ConfigGroup::default()) {
        (true, true) => key.to_string(),
        (true, false) => format!("{group}/{key}"),
        _ => format!("{namespace}/{group}/{key}"),
    }
}

fn put(args: PutArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let body = match (args.value, &args.file) {
        (Some(value), _) => value.into_bytes(),
        (None, Some(path)) => read_file(path)?,
        (None, None) => return Err(Failure::Usage("give a file, '-' for standard input, or --value".into())),
    };
    // The server reads the format from the content type; text/plain means "by the name's ending".
    let content_type = args.format.map_or("text/plain".into(), |format| format!("application/{format}"));
    let ask = args.note.onto(args.which.ask("PUT")).query_opt("expect", args.expect.as_ref());
    let length = body.len() as u64;
    let done = client.fetch(ask.body(&content_type, body))?;
    written(&done, &format!("wrote {} ({})", args.which.shown(), size(length)), out)
}

pub(super) fn read_file(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    let told = |error: io::Error| Failure::Refused(format!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    // One byte more than fits: enough to know that it is too long without reading all of it.
    let limit = MAX_BODY_BYTES as u64 + 1;
    if path.as_os_str() == "-" {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(told)?;
    } else {
        std::fs::File::open(path).map_err(told)?.take(limit).read_to_end(&mut bytes).map_err(told)?;
    }
    if bytes.len() > MAX_BODY_BYTES {
        return Err(Failure::Refused(format!("{}: longer than {}", path.display(), size(MAX_BODY_BYTES as u64))));
    }
    Ok(bytes)
}

fn get(args: &GetArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let ask = args.which.ask("GET");
    if args.meta || out.wants_json() {
        let document: ConfigDocument = client.fetch(ask.query("meta", "true"))?;
        return if out.wants_json() { Ok(out.json(&document)?) } else { Ok(show_document(&document, out)?) };
    }
    let answer = client.send(ask.query_opt("stamp", args.stamp.as_ref()))?;
    if answer.conflict > 0 && args.stamp.is_none() {
        notice(&format!(
            "starling: {} has {} concurrent versions; this is the one every node serves (starling config conflicts)",
            args.which.shown(),
            answer.conflict
        ));
    }
    Ok(out.raw(&answer.body)?)
}

fn show_document(document: &ConfigDocument, out: &mut Out) -> io::Result<()> {
    let title = name(&document.namespace, &document.group, &document.key);
    out.styled(Style::Bold, &title)?;
    if document.conflict > 0 {
        out.styled(
            Style::Bad,
            &format!("conflict: {} concurrent versions, the first is served", document.versions.len()),
        )?;
    }
    for version in &document.versions {
        out.line("")?;
        out.styled(Style::Dim, &describe(version))?;
        match (&version.text, version.deleted) {
            (_, true) => out.line("(deletes the document)")?,
            (Some(text), false) => out.line(text.strip_suffix('\n').unwrap_or(text))?,
            (None, false) => out.line(&format!("(not text; print it with --stamp {})", version.stamp))?,
        }
    }
    Ok(())
}

/// One line on a version: who, when, why.
fn describe(version: &VersionInfo) -> String {
    let mut line = format!("{}  {}", version.stamp, ago(version.written_unix_ms));
    if !version.author.is_empty() {
        line.push_str(&format!("  by {}", version.author));
    }
    if !version.deleted {
        line.push_str(&format!("  {}, {}", version.format, size(version.bytes)));
    }
    if !version.comment.is_empty() {
        line.push_str(&format!("  \"{}\"", version.comment));
    }
    line
}

fn list(args: &ListArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let ask = Ask::get(&["v1", "config"]).query("prefix", &args.prefix);
    let ask = ask.query_opt("group", args.group.as_ref()).query_opt("namespace", args.namespace.as_ref());
    let list: ConfigList = client.fetch(ask)?;
    if out.wants_json() { Ok(out.json(&list)?) } else { Ok(show_list(&list.documents, out)?) }
}

fn show_list(documents: &[ConfigSummary], out: &mut Out) -> io::Result<()> {
    if documents.is_empty() {
        return out.line("no documents; write one with: starling config put NAME FILE");
    }
    let mut table = Table::new(&["DOCUMENT", "FORMAT", "SIZE", "WRITTEN", "BY", "COMMENT", "CONFLICT"]);
    for document in documents {
        let version = &document.version;
        let conflict = match document.conflict {
            0 => String::new(),
            versions => format!("{versions} versions"),
        };
        table.row([
            Cell::styled(Style::Bold, name(&document.namespace, &document.group, &document.key)),
            Cell::from(&version.format),
            Cell::number(if version.deleted { "deleted".into() } else { size(version.bytes) }),
            ago(version.written_unix_ms).into(),
            Cell::from(&version.author),
            Cell::from(&version.comment),
            Cell::styled(Style::Bad, conflict),
        ]);
    }
    out.table(&table)?;
    out.styled(Style::Dim, &count(documents.len(), "document"))
}

fn conflicts(client: &Client, out: &mut Out) -> Result<(), Failure> {
    let list: ConfigList = client.fetch(Ask::get(&["v1", "config"]).query("conflicts", "true"))?;
    let mut documents = Vec::new();
    for summary in &list.documents {
        let path = ["v1", "config", summary.namespace.as_str(), summary.group.as_str(), summary.key.as_str()];
        // It may have been settled and deleted since the list was made.
        let answer = client.look(Ask::get(&path).query("meta", "true"))?;
        if !answer.is_missing() {
            documents.push(answer.parse::<ConfigDocument>()?);
        }
    }
    documents.retain(|document| document.conflict > 0);
    if out.wants_json() {
        return Ok(out.json(&documents)?);
    }
    if documents.is_empty() {
        return Ok(out.line("no conflicts")?);
    }
    for document in &documents {
        show_document(document, out)?;
        out.line("")?;
    }
    let sentence =
        format!("{} to settle: starling config resolve NAME --choose STAMP", count(documents.len(), "document"));
    Ok(out.styled(Style::Dim, &sentence)?)
}

/// What a watch has shown last, so that nothing is shown twice.
#[derive(Default, PartialEq)]
struct Shown {
    stamp: Option<String>,
    conflict: u32,
}

fn watch(args: &WatchArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let mut shown = None;
    let mut revision = 0;
    let mut pause = RETRY_FIRST;
    loop {
        let ask = args.which.ask("GET").newer_than(revision, WATCH_WAIT);
        match client.look(ask) {
            Ok(answer) => {
                if pause > RETRY_FIRST {
                    notice("starling: a node answers again");
                }
                pause = RETRY_FIRST;
                revision = answer.revision.unwrap_or(0);
                let now = Shown { stamp: answer.stamp.clone(), conflict: answer.conflict };
                if shown.as_ref() != Some(&now) {
                    show_change(&args.which, &answer, out)?;
                    shown = Some(now);
                }
            }
            Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
            // A name that is refused once is refused always; before the first answer the same goes for everything.
            Err(failure) if shown.is_none() || matches!(failure, Failure::Usage(_)) => return Err(failure),
            Err(failure) => {
                if pause == RETRY_FIRST {
                    notice(&format!("starling: {failure}\nstarling: waiting for a node to answer again"));
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY_LONGEST);
                // Revisions of one node mean nothing to another, nor to its next start.
                revision = 0;
            }
        }
    }
}

fn show_change(which: &Which, answer: &Answer, out: &mut Out) -> io::Result<()> {
    let text = String::from_utf8_lossy(&answer.body);
    if out.wants_json() {
        let deleted = answer.is_missing();
        return out.json_line(&serde_json::json!({
            "namespace": which.namespace, "group": which.group, "key": which.key, "stamp": answer.stamp,
            "conflict": answer.conflict, "deleted": deleted, "text": (!deleted).then_some(text),
        }));
    }
    match &answer.stamp {
        Some(stamp) if !answer.is_missing() => {
            let conflict =
                if answer.conflict > 0 { format!("  conflict: {} versions", answer.conflict) } else { String::new() };
            out.styled(Style::Dim, &format!("# {}  {stamp}{conflict}", which.shown()))?;
            out.line(text.strip_suffix('\n').unwrap_or(&text))?;
        }
        _ => out.styled(Style::Dim, &format!("# {}  no such document (yet)", which.shown()))?,
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::super::output::captured;
    use super::*;

    fn version(node: &str, text: &str) -> serde_json::Value {
        serde_json::json!({ "stamp": format!("1700000000000.3@{node}"), "written_unix_ms": 1_700_000_000_000_u64,
            "deleted": false, "format": "text", "author": "ada", "comment": "why not", "bytes": text.len(), "text": text })
    }

    #[test]
    fn a_conflict_shows_every_version_with_the_stamp_to_choose_it_by() {
        let document = serde_json::json!({ "namespace": "default", "group": "default", "key": "limits", "revision": 4,
            "conflict": 2, "versions": [version("a", "left\n"), version("b", "right\n")] });
        let document: ConfigDocument = serde_json::from_value(document).unwrap();
        let text = captured::text(false, |out| show_document(&document, out).unwrap());
        for part in ["conflict: 2", "1700000000000.3@a", "1700000000000.3@b", "by ada", "\"why not\"", "left", "right"]
        {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn an_empty_list_says_how_to_write_the_first_document() {
        let text = captured::text(false, |out| show_list(&[], out).unwrap());
        assert!(text.contains("starling config put"), "{text}");
    }

    #[test]
    fn names_show_only_what_is_not_the_default() {
        let shown = |namespace: &str, group: &str| {
            name(&namespace.parse().unwrap(), &group.parse().unwrap(), &"a/b".parse().unwrap())
        };
        assert_eq!(
            [shown("default", "default"), shown("default", "g"), shown("n", "default")],
            ["a/b", "g/a/b", "n/default/a/b"]
        );
    }
}
