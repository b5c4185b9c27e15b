//! The settings file as it was written: where each key stands, and which ones nobody knows.

use std::ops::Range;
use std::path::Path;

use toml::de::DeTable;

use super::known::suggest;
use super::section::Section;

/// The settings file, to turn positions into lines.
pub(super) struct File<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl File<'_> {
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        1 + self.text.as_bytes()[..span.start.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }

    pub(super) fn problem(&self, span: &Range<usize>, what: &str, message: &str) -> String {
        format!("{}, line {}: {what}: {message}", self.path.display(), self.line(span))
    }

    pub(super) fn unknown_keys(&self, section: &str, known: &[&str], table: &DeTable<'_>) -> Vec<String> {
        let unknown = table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        unknown
            .map(|key| {
                format!(
                    "{}: unknown key `{}` at line {} in [{section}]; {}",
                    self.path.display(),
                    key.get_ref(),
                    self.line(&key.span()),
                    suggest(key.get_ref(), known)
                )
            })
            .collect()
    }
}

/// Unknown keys of a section's table and of the tables within it.
pub(super) fn unknown_in_section(file: &File<'_>, section: &Section, prefix: &str, table: &DeTable<'_>) -> Vec<String> {
    let name = format!("{}.{prefix}", section.name);
    let mut unknown = file.unknown_keys(name.trim_end_matches('.'), &section.keys_under(prefix), table);
    for (key, value) in table {
        let below = format!("{prefix}{}.", key.get_ref());
        if let (Some(inner), false) = (value.get_ref().as_table(), section.keys_under(&below).is_empty()) {
            unknown.extend(unknown_in_section(file, section, &below, inner));
        }
    }
    unknown
}

/// The line of every value, by key.
pub(super) fn lines_of(file: &File<'_>, prefix: &str, table: &DeTable<'_>, lines: &mut Vec<(String, usize)>) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        match value.get_ref().as_table() {
            Some(inner) => lines_of(file, &format!("{name}."), inner, lines),
            None => lines.push((name, file.line(&key.span()))),
        }
    }
}
