//! Text on its way into markup.

use std::fmt::{self, Write};
use std::time::Duration;

/// Text as it may stand in an element or in a quoted attribute.
pub(super) struct Escaped<T>(pub(super) T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            match letter {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                // XML has no place for these, not even escaped.
                control if control.is_control() && control != '\n' && control != '\t' => {
                    self.0.write_char('\u{fffd}')?;
                }
                other => self.0.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// A moment: `70.237 s`.
pub(super) fn moment(at_us: u64) -> String {
    format!("{}.{:03} s", at_us / 1_000_000, at_us % 1_000_000 / 1_000)
}

/// A moment as an axis shows it, with no more digits than the distance to the next tick needs.
pub(super) fn tick(at_us: u64, apart_us: u64) -> String {
    let seconds = at_us as f64 / 1e6;
    match apart_us {
        1_000_000.. => format!("{seconds:.0} s"),
        100_000.. => format!("{seconds:.1} s"),
        10_000.. => format!("{seconds:.2} s"),
        _ => format!("{seconds:.3} s"),
    }
}

/// How long something took, in three digits.
pub(super) fn took(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1_000),
        1_000_000..100_000_000 => format!("{:.1} s", us as f64 / 1e6),
        _ => format!("{} s", us / 1_000_000),
    }
}

pub(super) fn took_by(duration: Duration) -> String {
    took(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// Bytes as people read them.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// `1 cut`, `2 cuts`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Names in a line: the first few, and how many more.
pub(super) fn names(names: &[&str]) -> String {
    const SHOWN: usize = 6;
    match names.len() {
        0..=SHOWN => names.join(" "),
        more => format!("{} +{}", names[..SHOWN].join(" "), more - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_means_something_to_markup_gets_through() {
        let escaped = Escaped("<script>\"'&\u{1b}\u{0}</script>").to_string();
        assert_eq!(escaped, "&lt;script&gt;&quot;&#39;&amp;\u{fffd}\u{fffd}&lt;/script&gt;");
    }

    #[test]
    fn spans_of_time_have_the_digits_that_matter() {
        let shown = [900, 2_100, 39_240, 237_935, 1_500_000, 240_000_000].map(took);
        assert_eq!(shown, ["900 µs", "2.10 ms", "39.2 ms", "237 ms", "1.5 s", "240 s"]);
    }
}
