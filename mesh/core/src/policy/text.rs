//! Positions in a document's text: from a field to its line, and back.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// The line (from 1) a byte is in.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// The field that stands at `span`, as `route[1].timeouts.request_ms`; empty for the document itself.
pub(super) fn field_at(table: &DeTable<'_>, span: &Range<usize>) -> String {
    let mut path = String::new();
    descend(table, span.start, &mut path);
    path
}

fn descend(table: &DeTable<'_>, at: usize, path: &mut String) {
    for (key, value) in table {
        let within = value.span().contains(&at) || key.span().contains(&at) || holds(value.get_ref(), at);
        if within {
            join(path, key.get_ref());
            descend_value(value.get_ref(), at, path);
            return;
        }
    }
}

fn descend_value(value: &DeValue<'_>, at: usize, path: &mut String) {
    match value {
        DeValue::Table(table) => descend(table, at, path),
        DeValue::Array(array) => {
            for (i, value) in array.iter().enumerate() {
                if value.span().contains(&at) || holds(value.get_ref(), at) {
                    path.push_str(&format!("[{i}]"));
                    descend_value(value.get_ref(), at, path);
                    return;
                }
            }
        }
        _ => {}
    }
}

/// Whether a position is within a value whose own span is only its header's: that of `[table]` and `[[array]]`.
fn holds(value: &DeValue<'_>, at: usize) -> bool {
    match value {
        DeValue::Table(table) => table
            .iter()
            .any(|(key, value)| key.span().contains(&at) || value.span().contains(&at) || holds(value.get_ref(), at)),
        DeValue::Array(array) => array.iter().any(|value| value.span().contains(&at) || holds(value.get_ref(), at)),
        _ => false,
    }
}

/// Appends a key to a path.
pub(super) fn join(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// The line of every value, by its path.
pub(super) fn lines_of(text: &str, table: &DeTable<'_>) -> Vec<(String, usize)> {
    let mut lines = Vec::new();
    gather(text, table, "", &mut lines);
    lines
}

fn gather(text: &str, table: &DeTable<'_>, prefix: &str, lines: &mut Vec<(String, usize)>) {
    for (key, value) in table {
        let mut path = prefix.to_owned();
        join(&mut path, key.get_ref());
        lines.push((path.clone(), line_at(text, key.span().start)));
        gather_value(text, value.get_ref(), &path, lines);
    }
}

fn gather_value(text: &str, value: &DeValue<'_>, path: &str, lines: &mut Vec<(String, usize)>) {
    match value {
        DeValue::Table(table) => gather(text, table, path, lines),
        DeValue::Array(array) => {
            for (i, value) in array.iter().enumerate() {
                let path = format!("{path}[{i}]");
                lines.push((path.clone(), line_at(text, value.span().start)));
                gather_value(text, value.get_ref(), &path, lines);
            }
        }
        _ => {}
    }
}
