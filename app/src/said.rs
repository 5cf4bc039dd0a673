//! The part of a growing answer that a reader has already got.

/// How much of an answer's text is said, and where the answer is to stop.
#[derive(Debug, Default)]
pub struct Said {
    /// The answer's text so far, as it was decoded last; up to a stop sequence.
    text: String,
    /// Bytes of it that are said.
    said: usize,
    /// The sequences that end the answer. They are not part of it.
    stops: Vec<String>,
    stopped: bool,
}

impl Said {
    /// An answer that ends before the first of `stops`.
    pub fn until(stops: Vec<String>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// The text that is said.
    pub fn so_far(&self) -> &str {
        &self.text[..self.said]
    }

    /// Whether a stop sequence has been met.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text to say after the answer has grown to `text`. What may still change is held back: a last
    /// character whose bytes are incomplete, which decodes as U+FFFD, and the beginning of a stop sequence.
    pub fn more(&mut self, text: &str) -> &str {
        self.take(text);
        let whole = self.text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
        let held = if self.stopped { 0 } else { self.held(&self.text[..whole]) };
        self.say(whole - held)
    }

    /// The part of the whole answer that is not said yet.
    pub fn rest(&mut self, whole: &str) -> &str {
        self.take(whole);
        self.say(self.text.len())
    }

    /// Keeps `text`, unless it does not begin with what is said: then it is a beginning that is decoded
    /// differently, and a longer one will follow.
    fn take(&mut self, text: &str) {
        if !self.stopped && text.starts_with(&self.text[..self.said]) {
            let first = self.stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
            let first = first.map(|at| at.max(self.said));
            self.stopped = first.is_some();
            self.text = text[..first.unwrap_or(text.len())].to_owned();
        }
    }

    fn say(&mut self, until: usize) -> &str {
        let from = self.said.min(until);
        self.said = self.said.max(until);
        &self.text[from..until]
    }

    /// The length of the longest end of `text` with which a stop sequence begins.
    fn held(&self, text: &str) -> usize {
        let starts = text.char_indices().map(|(at, _)| at);
        let mut starts = starts.filter(|&at| self.stops.iter().any(|stop| stop.starts_with(&text[at..])));
        starts.next().map_or(0, |at| text.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::Said;

    #[test]
    fn a_character_is_said_when_it_is_whole() {
        let mut said = Said::default();
        assert_eq!(said.more("caf\u{fffd}"), "caf");
        assert_eq!(said.more("caf\u{fffd}\u{fffd}"), "");
        assert_eq!(said.more("caf\u{e9} au"), "\u{e9} au");
        assert_eq!(said.rest("caf\u{e9} au lait"), " lait");
        assert_eq!(said.rest("caf\u{e9} au lait"), "");
        // An answer that ends with an incomplete character shows U+FFFD.
        let mut said = Said::default();
        said.more("caf\u{e9} au\u{fffd}");
        assert_eq!(said.rest("caf\u{e9} au\u{fffd}"), "\u{fffd}");
    }

    #[test]
    fn an_answer_ends_before_the_first_stop_sequence() {
        let stops = || vec!["END".to_owned(), "\n\n".to_owned()];
        let mut said = Said::until(stops());
        assert_eq!(said.more("one E"), "one ");
        assert_eq!(said.more("one EN"), "");
        assert_eq!(said.more("one ENter\n"), "ENter");
        assert!(!said.stopped());
        assert_eq!(said.more("one ENter\n\nEND"), "");
        assert!(said.stopped());
        assert_eq!(said.more("one ENter\n\nEND more"), "");
        assert_eq!(said.rest("one ENter\n\nEND more"), "");
        // At its end an answer has all that was held back.
        let mut said = Said::until(stops());
        assert_eq!(said.more("two EN"), "two ");
        assert_eq!(said.rest("two EN"), "EN");
    }

    #[test]
    fn a_text_that_is_decoded_differently_for_a_while_waits() {
        let mut said = Said::default();
        assert_eq!(said.more("a b"), "a b");
        assert_eq!(said.more("a"), "");
        assert_eq!(said.more("a b c"), " c");
    }
}
