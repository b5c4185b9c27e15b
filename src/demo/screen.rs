//! What the story looks like: chapters, one line per event with its time, aligned figures, small bars.
//!
//! Plain lines, never rewritten: what a terminal shows, a pipe and a file show too, only without colours.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::figure::{Figure, Times, time};

/// The width everything fits into.
const COLUMNS: usize = 80;
/// Where the words of an event begin: after margin, time and who.
const WORDS_AT: usize = 25;
/// How wide the names of those are to whom something happens.
const WHO: usize = 12;
/// Where the promises of a chapter stand.
const PROMISES_AT: usize = 12;
/// How long a full bar is.
const BAR: usize = 24;

/// How a piece of text looks where there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Strong,
    Quiet,
    Good,
    Bad,
    Accent,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Paint::Strong => "\x1b[1m",
            Paint::Quiet => "\x1b[2m",
            Paint::Good => "\x1b[32m",
            Paint::Bad => "\x1b[31m",
            Paint::Accent => "\x1b[36m",
        }
    }
}

/// Where the story is told. It goes on when nobody listens any more.
pub(crate) struct Screen {
    out: Box<dyn Write + Send>,
    colour: bool,
    began: Instant,
    chapters: u32,
}

impl Screen {
    /// Standard output; with colours when it is a terminal and `NO_COLOR` is not set.
    pub(crate) fn stdout() -> Self {
        let stdout = io::stdout();
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::new(Box::new(stdout), colour)
    }

    /// Nowhere.
    pub(crate) fn silent() -> Self {
        Self::new(Box::new(io::sink()), false)
    }

    fn new(out: Box<dyn Write + Send>, colour: bool) -> Self {
        Self { out, colour, began: Instant::now(), chapters: 0 }
    }

    /// How long the story has been going on.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The first lines.
    pub(crate) fn title(&mut self, title: &str, facts: &str) {
        let (title, facts) = (self.paint(Paint::Strong, title), self.paint(Paint::Quiet, facts));
        self.line("");
        self.line(&format!("  {title}"));
        self.line(&format!("  {facts}"));
    }

    /// Begins a chapter: its number, its name, a rule to the edge.
    pub(crate) fn chapter(&mut self, name: &str) {
        self.chapters += 1;
        let heading = format!("  {}  {name} ", self.chapters);
        let rule = "─".repeat(COLUMNS.saturating_sub(width(&heading)));
        let (heading, rule) = (self.paint(Paint::Strong, &heading), self.paint(Paint::Quiet, &rule));
        self.line("");
        self.line(&format!("{heading}{rule}"));
    }

    /// Something happened just now, to somebody.
    pub(crate) fn event(&mut self, who: &str, words: &str) {
        let when = format!("{:>6.2} s", self.elapsed().as_secs_f64());
        let head = format!("  {}  {who:<WHO$} ", self.paint(Paint::Quiet, &when));
        self.hang(&head, words);
    }

    /// What a reader should know to understand the next lines.
    pub(crate) fn remark(&mut self, words: &str) {
        for line in wrap(words, COLUMNS - WORDS_AT) {
            let line = self.paint(Paint::Quiet, &line);
            self.line(&format!("{:WORDS_AT$}{line}", ""));
        }
    }

    /// A promise within a chapter: whether it was kept, and the measurement that shows it.
    pub(crate) fn promise(&mut self, kept: bool, promise: &str, measured: &str) {
        self.row_at(PROMISES_AT, kept, promise, measured);
    }

    /// One measured value under its name.
    pub(crate) fn figure(&mut self, label: &str, figure: Figure) {
        let (number, unit) = figure.parts();
        let number = self.paint(Paint::Accent, &format!("{number:>7}"));
        self.line(&format!("{:WORDS_AT$}{} {number} {unit}", "", fit(label, 38)));
    }

    /// Names of the columns of [`Self::times`].
    pub(crate) fn times_heading(&mut self, label: &str) {
        let heading = format!("{:WORDS_AT$}{}{:>10}{:>11}{:>11}", "", fit(label, 22), "p50", "p99", "max");
        let heading = self.paint(Paint::Quiet, &heading);
        self.line(&heading);
    }

    /// Many measurements under their name: median, 99th percentile, worst.
    pub(crate) fn times(&mut self, label: &str, times: &Times) {
        let mut row = format!("{:WORDS_AT$}{} ", "", fit(label, 22));
        for value in [times.p50(), times.p99(), times.max()] {
            let (number, unit) = Figure::Time(value).parts();
            row += &format!("{} {unit:<2} ", self.paint(Paint::Accent, &format!("{number:>7}")));
        }
        self.line(row.trim_end());
    }

    /// How something is spread: a bar, a count and a share for each part.
    pub(crate) fn bars(&mut self, parts: &[(String, u64)]) {
        let total: u64 = parts.iter().map(|(_, count)| count).sum();
        for (label, count) in parts {
            let share = if total == 0 { 0.0 } else { *count as f64 / total as f64 };
            let (count, _) = Figure::Count(*count).parts();
            let bar = self.paint(Paint::Accent, &format!("{:<BAR$}", bar(share)));
            let row = format!("{:WORDS_AT$}{} {bar}{count:>7}{:>8}", "", fit(label, 14), Figure::Share(share));
            self.line(row.trim_end());
        }
    }

    /// A promise in the closing table.
    pub(crate) fn row(&mut self, kept: bool, promise: &str, measured: &str) {
        self.row_at(2, kept, promise, measured);
    }

    fn row_at(&mut self, indent: usize, kept: bool, promise: &str, measured: &str) {
        let mark = if kept { self.paint(Paint::Good, "✓") } else { self.paint(Paint::Bad, "✗") };
        let head = format!("{:indent$}{mark} ", "");
        let taken = indent + 2 + width(promise) + width(measured);
        if taken + 2 <= COLUMNS {
            let gap = " ".repeat(COLUMNS - taken);
            let measured = self.paint(Paint::Accent, measured);
            return self.line(&format!("{head}{promise}{gap}{measured}"));
        }
        self.hang(&head, promise);
        for line in wrap(measured, COLUMNS - indent - 4) {
            let gap = " ".repeat((COLUMNS).saturating_sub(width(&line)));
            let line = self.paint(Paint::Accent, &line);
            self.line(&format!("{gap}{line}"));
        }
    }

    /// An empty line.
    pub(crate) fn gap(&mut self) {
        self.line("");
    }

    /// Words on their own, at the margin.
    pub(crate) fn say(&mut self, words: &str) {
        self.hang("  ", words);
    }

    /// Text as it is, at the margin of events' words: trees, commands to copy.
    pub(crate) fn verbatim(&mut self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// Text that looks like this where there are colours.
    pub(crate) fn paint(&self, paint: Paint, text: &str) -> String {
        if self.colour { format!("{}{text}\x1b[0m", paint.code()) } else { text.to_owned() }
    }

    /// Words after a head, wrapped; further lines begin where the first one's words did.
    fn hang(&mut self, head: &str, words: &str) {
        let indent = width(head);
        for (at, line) in wrap(words, COLUMNS - indent).into_iter().enumerate() {
            let line = if at == 0 { format!("{head}{line}") } else { format!("{:indent$}{line}", "") };
            self.line(&line);
        }
    }

    fn line(&mut self, line: &str) {
        // A reader that has gone away (`| head`) is no reason to leave a mesh half torn down.
        let _ = writeln!(self.out, "{}", line.trim_end());
        let _ = self.out.flush();
    }
}

/// "a moment" for people: `after 1.23 s`.
pub(crate) fn after(took: Duration) -> String {
    format!("after {}", time(took))
}

/// A bar of eighths of a character; anything above nothing shows at least a sliver.
fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let mut eighths = (share.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize;
    if share > 0.0 {
        eighths = eighths.max(1);
    }
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// Exactly so many columns: cut with an ellipsis, or filled.
fn fit(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return format!("{text:<columns$}");
    }
    text.chars().take(columns - 1).chain(['…']).collect()
}

/// How many columns text takes: its characters without colour codes. Nothing here is wider than one column.
pub(crate) fn width(text: &str) -> usize {
    let mut columns = 0;
    let mut in_code = false;
    for c in text.chars() {
        match c {
            '\x1b' => in_code = true,
            'm' if in_code => in_code = false,
            _ if in_code => {}
            _ => columns += 1,
        }
    }
    columns
}

/// Breaks words into lines; a word longer than a line stays whole, so that it can be copied.
fn wrap(words: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if width(line) + 1 + width(word) <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is written, for tests.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().map_err(|_| io::Error::other("a writer panicked"))?.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told(colour: bool, story: impl FnOnce(&mut Screen)) -> Vec<String> {
        let paper = Paper::default();
        story(&mut Screen::new(Box::new(paper.clone()), colour));
        let bytes = paper.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    fn everything(screen: &mut Screen) {
        let long = "a sentence that goes on and on until it has to be broken into several lines, ".repeat(3);
        let times: Times =
            [Duration::from_nanos(1), Duration::from_millis(812), Duration::from_secs(59)].into_iter().collect();
        screen.title("Starling", "seed 1");
        screen.chapter("A chapter");
        screen.event("somebody", &long);
        screen.remark(&long);
        screen.promise(true, &long, &long);
        screen.promise(false, "not so", "7");
        screen.figure("a label that is far too long for the column it has been given here", Figure::Count(1_000_000));
        screen.times_heading("times");
        screen.times("a label that is far too long for its column", &times);
        screen.bars(&[("orders-ams-1".into(), 999_999), ("a label that is too long".into(), 1), ("none".into(), 0)]);
        screen.row(true, "short", "1 ms");
        screen.row(false, &long, &long);
        screen.say(&long);
    }

    #[test]
    fn every_line_fits_eighty_columns_with_and_without_colours() {
        for colour in [false, true] {
            for line in told(colour, everything) {
                assert!(width(&line) <= COLUMNS, "{} columns: {line}", width(&line));
                assert!(line == line.trim_end(), "trailing blanks: {line:?}");
            }
        }
    }

    #[test]
    fn without_colours_there_is_not_one_escape_and_with_them_the_same_text() {
        let plain = told(false, |screen| screen.bars(&[("a".into(), 3), ("b".into(), 1)]));
        let painted = told(true, |screen| screen.bars(&[("a".into(), 3), ("b".into(), 1)]));
        assert!(plain.iter().all(|line| !line.contains('\x1b')));
        assert_ne!(plain, painted);
        let widths = |lines: &[String]| lines.iter().map(|line| width(line)).collect::<Vec<_>>();
        assert_eq!(widths(&plain), widths(&painted));
    }

    #[test]
    fn bars_are_as_long_as_their_share_and_never_lie_about_nothing() {
        assert_eq!(bar(1.0).chars().count(), BAR);
        assert_eq!(bar(0.5).chars().count(), BAR / 2);
        assert_eq!(bar(0.000_1), "▏");
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(7.0).chars().count(), BAR);
    }

    #[test]
    fn further_lines_of_an_event_begin_below_its_words() {
        let lines = told(false, |screen| screen.event("ams-1", &"word ".repeat(30)));
        assert!(lines.len() > 1);
        let begins = |line: &str| line.find("word").map(|at| line[..at].chars().count());
        assert!(lines.iter().all(|line| begins(line) == Some(WORDS_AT)), "{lines:#?}");
    }

    #[test]
    fn figures_stand_in_columns() {
        let lines = told(false, |screen| {
            screen.times_heading("what");
            screen.times("fast", &[Duration::from_micros(3)].into_iter().collect());
            screen.times("slow", &[Duration::from_secs(3)].into_iter().collect());
        });
        let unit_at = |line: &str, unit: &str| line.find(unit).map(|at| line[..at].chars().count());
        assert_eq!(unit_at(&lines[1], "µs"), unit_at(&lines[2], "s "), "{lines:#?}");
    }
}
