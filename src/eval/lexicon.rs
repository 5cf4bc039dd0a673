//! A word list as a meter. It is crude: use it only together with other meters.

/// The list built into the program.
const BUILT_IN: &str = include_str!("../../assets/lexicon.txt");

/// Words and phrases to look for.
#[derive(Debug, Clone)]
pub struct Lexicon {
    /// Each entry's words, and whether its last word matches every word that begins with it.
    entries: Vec<(Vec<String>, bool)>,
}

impl Default for Lexicon {
    /// The built-in list.
    fn default() -> Self {
        Self::parse(BUILT_IN)
    }
}

impl Lexicon {
    /// Reads one word or phrase per line. A line that begins with `#` is a comment, and a `*` at the end of a
    /// line matches any rest of the word.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entry = |line: &str| {
            let (line, open) = line.strip_suffix('*').map_or((line, false), |line| (line, true));
            (words(line), open)
        };
        Self { entries: lines.map(entry).filter(|(words, _)| !words.is_empty()).collect() }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries found per hundred words of `answer`; 0 for an empty answer.
    pub fn score(&self, answer: &str) -> f64 {
        let words = words(answer);
        let found =
            (0..words.len()).filter(|&at| self.entries.iter().any(|entry| begins(entry, &words[at..])));
        100.0 * found.count() as f64 / words.len().max(1) as f64
    }
}

fn begins((entry, open): &(Vec<String>, bool), words: &[String]) -> bool {
    let Some(part) = words.get(..entry.len()) else { return false };
    let last = entry.len() - 1;
    part[..last] == entry[..last]
        && if *open { part[last].starts_with(&entry[last]) } else { part[last] == entry[last] }
}

/// Lower-case words, without punctuation around them.
fn words(text: &str) -> Vec<String> {
    let word = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    text.split_whitespace().map(word).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_phrases_and_stems() {
        let list = Lexicon::parse("# a comment\nbad\nget lost\nhack*\n");
        assert_eq!(list.len(), 3);
        assert_eq!(list.score("A BAD day, get lost, hackers!"), 100.0 * 3.0 / 6.0);
        assert_eq!(list.score("badly lost; get"), 0.0);
        assert_eq!(list.score(""), 0.0);
        assert!(Lexicon::default().score("You idiots!") > 0.0 && Lexicon::default().len() > 80);
    }
}
