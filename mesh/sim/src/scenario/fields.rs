//! The fields of a table in a scenario file: each read as what it should be, or refused with its line.

use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ScenarioError;
use crate::ask::{config_key, instance_key};

pub(super) type Result<T> = std::result::Result<T, ScenarioError>;

/// The fields of one table, with what to call it and where it begins.
pub(super) struct Fields<'a> {
    pub(super) text: &'a str,
    pub(super) what: &'a str,
    pub(super) line: usize,
    pub(super) table: &'a DeTable<'a>,
}

impl<'a> Fields<'a> {
    pub(super) fn find(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
    }

    pub(super) fn only(&self, allowed: &[&str]) -> Result<()> {
        for key in self.table.keys() {
            if !allowed.contains(&key.get_ref().as_ref()) {
                let word = key.get_ref();
                let what = format!("{} has no field {word:?}{}", self.what, meant(word, allowed.iter().copied()));
                return Err(ScenarioError { line: line_of(self.text, key.span().start), what });
            }
        }
        Ok(())
    }

    pub(super) fn wrong<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(ScenarioError { line: self.line, what: format!("{}: {}", self.what, what.into()) })
    }

    pub(super) fn wrong_at<T>(&self, value: &Spanned<DeValue>, what: impl Into<String>) -> Result<T> {
        let what = format!("{}: {}", self.what, what.into());
        Err(ScenarioError { line: line_of(self.text, value.span().start), what })
    }

    pub(super) fn need<T>(&self, value: Option<T>, name: &str) -> Result<T> {
        value.map_or_else(|| self.wrong(format!("{name} is missing")), Ok)
    }

    pub(super) fn table_in(&self, value: &'a Spanned<DeValue<'a>>, what: &'a str) -> Result<Fields<'a>> {
        match value.get_ref().as_table() {
            Some(table) => Ok(Fields { text: self.text, what, line: line_of(self.text, value.span().start), table }),
            None => self.wrong_at(value, format!("{what} is a table")),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        match value.get_ref().as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => self.wrong_at(value, format!("{name} is a text, in quotes")),
        }
    }

    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let Some(list) = value.get_ref().as_array() else {
            return self.wrong_at(value, format!("{name} is a list of texts"));
        };
        let text = |value: &Spanned<DeValue>| match value.get_ref().as_str() {
            Some(text) => Ok(text.to_owned()),
            None => self.wrong_at(value, format!("{name} is a list of texts")),
        };
        list.iter().map(text).collect::<Result<Vec<_>>>().map(Some)
    }

    pub(super) fn truth(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        value
            .get_ref()
            .as_bool()
            .map_or_else(|| self.wrong_at(value, format!("{name} is true or false")), |b| Ok(Some(b)))
    }

    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let read = value.get_ref().as_integer().and_then(|i| i64::from_str_radix(i.as_str(), i.radix()).ok());
        read.map_or_else(|| self.wrong_at(value, format!("{name} is a whole number")), |read| Ok(Some(read)))
    }

    pub(super) fn count(&self, name: &str) -> Result<Option<u64>> {
        match self.integer(name)? {
            Some(negative) if negative < 0 => self.wrong(format!("{name} is {negative}; it cannot be negative")),
            read => Ok(read.map(|read| read as u64)),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let read = match value.get_ref() {
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => return Ok(self.integer(name)?.map(|whole| whole as f64)),
        };
        let usable = read.filter(|read: &f64| read.is_finite());
        usable.map_or_else(|| self.wrong_at(value, format!("{name} is a number")), |read| Ok(Some(read)))
    }

    pub(super) fn time(&self, name: &str) -> Result<Option<Duration>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let read = match value.get_ref().as_str() {
            Some(text) => duration(text),
            None => self.number(name)?.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        };
        // A day of virtual time is more than any scenario needs; beyond it is a typing error.
        let usable = read.filter(|time| *time <= Duration::from_secs(86_400));
        let what = || format!("{name} is a time such as \"20ms\", \"1.5s\" or \"5m\", at most a day");
        usable.map_or_else(|| self.wrong_at(value, what()), |time| Ok(Some(time)))
    }

    pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(&self, name: &str, word: &str) -> Result<T> {
        word.parse().or_else(|error: T::Err| self.wrong(format!("{name}: {error}")))
    }

    pub(super) fn known(&self, name: String, nodes: &[String]) -> Result<String> {
        if nodes.contains(&name) {
            return Ok(name);
        }
        self.wrong(format!("there is no node {name:?}{}", meant(&name, nodes.iter().map(String::as_str))))
    }

    pub(super) fn node(&self, field: &str, nodes: &[String]) -> Result<String> {
        self.known(self.need(self.text(field)?, field)?, nodes)
    }

    pub(super) fn nodes(&self, field: &str, nodes: &[String]) -> Result<Vec<String>> {
        let named = self.need(self.texts(field)?, field)?;
        named.into_iter().map(|name| self.known(name, nodes)).collect()
    }

    pub(super) fn instance(&self, path: String) -> Result<String> {
        instance_key(&path).or_else(|why| self.wrong(why))?;
        Ok(path)
    }

    pub(super) fn document(&self) -> Result<String> {
        let path = self.need(self.text("key")?, "key")?;
        config_key(&path).or_else(|why| self.wrong(why))?;
        Ok(path)
    }
}

pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let seconds = match text[digits..].trim() {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .map(|exact| Duration::from_micros((exact.as_nanos() as u64 + 500) / 1_000))
}

/// "; did you mean ...?", or what there is when nothing is near.
pub(super) fn meant<'w>(word: &str, known: impl Iterator<Item = &'w str> + Clone) -> String {
    let nearest = known.clone().map(|candidate| (distance(word, candidate), candidate)).min();
    match nearest {
        Some((far, candidate)) if far <= 2.max(candidate.len() / 3) => format!("; did you mean {candidate:?}?"),
        _ => {
            let shown: Vec<&str> = known.clone().take(30).collect();
            let more = if known.count() > shown.len() { " ..." } else { "" };
            format!("; there is {}{more}", shown.join(", "))
        }
    }
}

/// Levenshtein's distance: how many letters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().take(100).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let change = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, micros) in [("20ms", 20_000), ("1.5s", 1_500_000), ("5m", 300_000_000), ("3", 3_000_000)] {
            assert_eq!(duration(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "s", "1x", "-1s", "1.2.3s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
