//! Which keys are known, and which of them an unknown one probably meant.

use serde::de::{DeserializeOwned, Deserializer, Visitor};

/// The keys a settings struct reads, asked of its own `Deserialize`: there is no second list to keep in step.
pub(crate) fn keys_of<T: DeserializeOwned>() -> &'static [&'static str] {
    match T::deserialize(AskForFields) {
        Err(Fields(Some(fields))) => fields,
        _ => &[],
    }
}

/// A deserializer that holds no data: it only learns which fields are asked of it.
struct AskForFields;

/// The "error" that carries what was asked.
#[derive(Debug)]
struct Fields(Option<&'static [&'static str]>);

impl std::fmt::Display for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no data, only questions")
    }
}

impl std::error::Error for Fields {}

impl serde::de::Error for Fields {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Fields(None)
    }
}

impl<'de> Deserializer<'de> for AskForFields {
    type Error = Fields;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fields> {
        Err(Fields(None))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fields> {
        Err(Fields(Some(fields)))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// What to say after "unknown ...": the nearest known word if one is near, else all of them.
pub(crate) fn suggest(unknown: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|word| (distance(unknown, word), *word)).min();
    match nearest {
        Some((edits, word)) if edits <= (unknown.len().max(word.len()) / 3).max(1) => format!("did you mean `{word}`?"),
        _ => format!("known here: {}", known.join(", ")),
    }
}

/// How many letters must be changed, added, removed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_tells_its_own_keys() {
        assert!(keys_of::<starling_core::Settings>().contains(&"repair_interval_ms"));
        assert!(keys_of::<String>().is_empty());
    }

    #[test]
    fn a_slip_of_the_hand_finds_the_word_that_was_meant() {
        let known = ["listen", "name", "seeds"];
        assert_eq!(suggest("lisen", &known), "did you mean `listen`?");
        assert_eq!(suggest("nmae", &known), "did you mean `name`?");
        assert_eq!(suggest("colour", &known), "known here: listen, name, seeds");
    }
}
