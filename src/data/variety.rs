//! How varied texts are: distinct-n, and repetition within a text.

use std::collections::HashSet;

/// The words of `text`, in lower case.
fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_lowercase).collect()
}

/// The number of different runs of `n` words, divided by the number of all runs of `n` words (Li et al.,
/// 1510.03055). 0 if no text has `n` words.
pub fn distinct(texts: &[&str], n: usize) -> f64 {
    let mut seen = HashSet::new();
    let mut all = 0;
    for text in texts {
        for run in words(text).windows(n) {
            all += 1;
            seen.insert(run.join(" "));
        }
    }
    if all == 0 { 0.0 } else { seen.len() as f64 / all as f64 }
}

/// The share of a text's runs of four words that occurred in it before, as seq-rep-4 (Welleck et al.,
/// 1908.04319) counts tokens. 0 for fewer than four words.
pub fn repetition(text: &str) -> f64 {
    let words = words(text);
    let all = words.len().saturating_sub(3);
    let different: HashSet<&[String]> = words.windows(4).collect();
    if all == 0 { 0.0 } else { 1.0 - different.len() as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_words_are_counted() {
        assert_eq!(distinct(&["a b a b", "A b"], 2), 2.0 / 4.0);
        assert_eq!(distinct(&["a"], 2), 0.0);
        assert_eq!(repetition("one two three"), 0.0);
        assert_eq!(repetition("a b a B a b c"), 1.0 / 4.0);
    }
}
