//! The one place that prints: tables for people, JSON for programs, colours only on a terminal.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Where a command's results go.
pub(crate) struct Out {
    writer: Box<dyn Write>,
    json: bool,
    terminal: bool,
    colour: bool,
}

/// How a piece of text looks on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Style {
    #[default]
    Plain,
    Bold,
    Dim,
    Good,
    Doubtful,
    Bad,
}

impl Style {
    fn codes(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Bold => "\x1b[1m",
            Style::Dim => "\x1b[2m",
            Style::Good => "\x1b[32m",
            Style::Doubtful => "\x1b[33m",
            Style::Bad => "\x1b[31m",
        }
    }
}

impl Out {
    /// Standard output; coloured when it is a terminal and NO_COLOR is not set.
    pub(crate) fn stdout(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { writer: Box::new(stdout), json, terminal, colour }
    }

    /// Whether the user asked for JSON.
    pub(crate) fn wants_json(&self) -> bool {
        self.json
    }

    /// One line.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.writer, "{text}")
    }

    /// One line in a style.
    pub(crate) fn styled(&mut self, style: Style, text: &str) -> io::Result<()> {
        let painted = self.paint(style, text);
        self.line(&painted)
    }

    /// Text in a style, where the output has colours.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        if self.colour && style != Style::Plain { format!("{}{text}\x1b[0m", style.codes()) } else { text.to_owned() }
    }

    /// Bytes as they are. On a terminal the last line is ended, so that the prompt does not stand in it.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)?;
        if self.terminal && !bytes.is_empty() && !bytes.ends_with(b"\n") { self.line("") } else { Ok(()) }
    }

    /// A value as indented JSON.
    pub(crate) fn json<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        self.line(&text)
    }

    /// A value as one line of JSON, given to the reader at once.
    pub(crate) fn json_line<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        self.line(&text)?;
        self.flush()
    }

    /// An aligned table.
    pub(crate) fn table(&mut self, table: &Table) -> io::Result<()> {
        for line in table.lines(|style, text| self.paint(style, text)) {
            self.line(&line)?;
        }
        Ok(())
    }

    /// Gives everything written so far to the reader.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Says something that is not a result: on standard error, where it disturbs no pipe.
pub(crate) fn notice(text: &str) {
    // Nobody is left to be told when standard error is gone.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Rows under headings, aligned by the widest cell of each column, two spaces between.
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One cell of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    style: Style,
    right: bool,
}

impl Cell {
    /// Text in a style.
    pub(crate) fn styled(style: Style, text: impl ToString) -> Self {
        Self { text: text.to_string(), style, right: false }
    }

    /// Aligned to the right, as numbers are.
    pub(crate) fn right(self) -> Self {
        Self { right: true, ..self }
    }

    /// A number: aligned to the right.
    pub(crate) fn number(value: impl ToString) -> Self {
        Self::from(value).right()
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(value: T) -> Self {
        Self::styled(Style::Plain, value)
    }
}

impl Table {
    /// A table with these headings and no rows.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; one cell per heading.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<Cell> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.headings.len(), "one cell per heading");
        self.rows.push(cells);
    }

    fn lines(&self, paint: impl Fn(Style, &str) -> String) -> Vec<String> {
        // A column in which no row has anything to say is left out.
        let columns: Vec<usize> =
            (0..self.headings.len()).filter(|at| self.rows.iter().any(|row| !row[*at].text.is_empty())).collect();
        let widths: Vec<usize> = (0..self.headings.len()).map(|at| self.width(at)).collect();
        let rights: Vec<bool> = (0..self.headings.len()).map(|at| self.rows.iter().any(|row| row[at].right)).collect();
        let line = |cells: &mut dyn Iterator<Item = (usize, &str, Style)>| {
            let padded = cells.map(|(at, text, style)| {
                let gap = " ".repeat(widths[at] - text.chars().count());
                let painted = paint(style, text);
                if rights[at] { format!("{gap}{painted}") } else { format!("{painted}{gap}") }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let heading = line(&mut columns.iter().map(|at| (*at, self.headings[*at], Style::Dim)));
        let cell = |row: &'_ Vec<Cell>, at: usize| (at, row[at].style);
        let rows = self.rows.iter().map(|row| {
            line(&mut columns.iter().map(|at| {
                let (at, style) = cell(row, *at);
                (at, row[at].text.as_str(), style)
            }))
        });
        std::iter::once(heading).chain(rows).collect()
    }

    fn width(&self, at: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[at].text.chars().count());
        cells.chain([self.headings[at].chars().count()]).max().unwrap_or(0)
    }
}

/// A time span in two units at most: `3d 4h`, `12s`, `0.4s`.
pub(crate) fn span_of(ms: u64) -> String {
    let (days, hours, minutes, seconds) = (ms / 86_400_000, ms / 3_600_000 % 24, ms / 60_000 % 60, ms / 1_000 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if ms < 10_000 => format!("{:.1}s", ms as f64 / 1_000.0),
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// How long ago a time of day was, by this machine's clock.
pub(crate) fn ago(unix_ms: u64) -> String {
    format!("{} ago", span_of(now_ms().saturating_sub(unix_ms)))
}

/// The same for a time that may be still to come.
pub(crate) fn when(unix_ms: u64) -> String {
    let left = unix_ms.saturating_sub(now_ms());
    if left == 0 { ago(unix_ms) } else { format!("in {}", span_of(left)) }
}

fn now_ms() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Microseconds as people read them.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// Bytes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// `1 instance`, `2 instances`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// An output that keeps what is written, for tests.
#[cfg(test)]
pub(crate) mod captured {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `print` writes for people, as text.
    pub(crate) fn text(colour: bool, print: impl FnOnce(&mut Out)) -> String {
        let kept = Kept::default();
        // What is coloured is a terminal.
        print(&mut Out { writer: Box::new(kept.clone()), json: false, terminal: colour, colour });
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn birds() -> Table {
        let mut table = Table::new(&["NAME", "NOTE", "WEIGHT", "STATE"]);
        table.row(["starling".into(), "".into(), Cell::number(80), Cell::styled(Style::Good, "UP")]);
        table.row(["kite".into(), "".into(), Cell::number(1000), Cell::styled(Style::Bad, "DOWN")]);
        table
    }

    #[test]
    fn columns_line_up_numbers_to_the_right_and_empty_columns_vanish() {
        let text = captured::text(false, |out| out.table(&birds()).unwrap());
        assert_eq!(text, "NAME      WEIGHT  STATE\nstarling      80  UP\nkite        1000  DOWN\n");
    }

    #[test]
    fn colours_change_nothing_about_the_alignment() {
        let plain = captured::text(false, |out| out.table(&birds()).unwrap());
        let coloured = captured::text(true, |out| out.table(&birds()).unwrap());
        assert!(coloured.contains("\x1b[32mUP\x1b[0m"));
        let mut stripped = coloured.replace("\x1b[0m", "");
        for style in [Style::Dim, Style::Good, Style::Bad] {
            stripped = stripped.replace(style.codes(), "");
        }
        let trimmed: Vec<_> = stripped.lines().map(str::trim_end).collect();
        assert_eq!(trimmed, plain.lines().collect::<Vec<_>>());
    }

    #[test]
    fn bytes_are_left_as_they_are_except_that_a_terminal_gets_whole_lines() {
        let shown = |terminal, bytes: &[u8]| captured::text(terminal, |out| out.raw(bytes).unwrap());
        assert_eq!(shown(false, b"1"), "1");
        assert_eq!([shown(true, b"1"), shown(true, b"1\n"), shown(true, b"")], ["1\n", "1\n", ""]);
    }

    #[test]
    fn spans_sizes_and_counts_read_well() {
        assert_eq!([400, 12_000, 65_000, 7_260_000, 90_000_000].map(span_of).join(","), "0.4s,12s,1m 5s,2h 1m,1d 1h");
        assert_eq!([7, 1_500, 2_000_000].map(micros).join(","), "7 µs,1.50 ms,2.00 s");
        assert_eq!([7, 1_536].map(size).join(","), "7 B,1.5 KiB");
        assert_eq!(count(1, "node") + &count(2, "node"), "1 node2 nodes");
    }
}
