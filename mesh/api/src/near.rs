//! "Did you mean …?": the known word nearest to one that is unknown.

/// The nearest of the known words, if it is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(MAX_CHARS).collect();
    // A third of the letters may be wrong: "ordres" is orders, "cart" is not card service.
    let allowed = (word.chars().count() / 3).max(1);
    // A 404 is answered often (whoever waits for a service asks for one that is not there), so most of the known words
    // are passed over by their length alone: the distance is at least the difference in length.
    known
        .into_iter()
        .take(MAX_KNOWN)
        .filter(|candidate| begins(&word, candidate) || candidate.len().abs_diff(word.len()) <= allowed)
        .map(|candidate| (rank(&word, candidate), candidate))
        .filter(|(rank, _)| *rank <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// 0 when one word begins with the other, else the edit distance.
fn rank(word: &str, candidate: &str) -> usize {
    if begins(word, candidate) { 0 } else { distance(word, candidate) }
}

/// Whether one word begins with the other; two letters in common say nothing.
fn begins(word: &str, candidate: &str) -> bool {
    word.len().min(candidate.len()) >= 3 && (word.starts_with(candidate) || candidate.starts_with(word))
}

/// How many letters must be put in, taken out, changed, or swapped with their neighbour to make one word of the other
/// (optimal string alignment, by case-insensitive letters).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_ascii_lowercase().chars().collect();
    let b: Vec<char> = b.to_ascii_lowercase().chars().take(MAX_CHARS).collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, other) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(letter != other)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *letter == b[j - 1] && a[i - 1] == *other {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Longer words are cut: the cost of a suggestion is the product of two lengths.
const MAX_CHARS: usize = 64;
/// More known words than this are not looked at; a suggestion is a courtesy, not a search.
const MAX_KNOWN: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_understood() {
        let known = ["orders", "payments", "cart"];
        assert_eq!(nearest("ordres", known), Some("orders"));
        assert_eq!(nearest("order", known), Some("orders"));
        assert_eq!(nearest("paymets", known), Some("payments"));
    }

    #[test]
    fn a_different_word_is_left_alone() {
        assert_eq!(nearest("inventory", ["orders", "payments", "cart"]), None);
        assert_eq!(nearest("", ["orders"]), None);
        assert_eq!(nearest("x", []), None);
    }
}
