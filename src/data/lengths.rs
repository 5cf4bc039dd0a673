//! Length limits, and counts of the rows that they affected.

use std::fmt;

/// Which end of a sequence is cut off, as transformers' `truncation_side`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncation {
    /// The beginning is cut off, the end stays.
    #[default]
    Left,
    /// The end is cut off, the beginning stays.
    Right,
}

/// What happens to a row that is longer than a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlong {
    /// The sequence is cut.
    #[default]
    Cut,
    /// The row is left out.
    Drop,
    /// The row is an error.
    Error,
}

/// Limits in tokens; None means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct LengthLimits {
    /// Tokens of a prompt, template included.
    pub max_prompt: Option<usize>,
    /// Tokens of an answer, end token included. An answer is always cut at the right and so loses its end
    /// token: the model is not taught to stop there.
    pub max_completion: Option<usize>,
    /// The side on which a prompt is cut. Left keeps the generation prompt, which an answer must follow, but
    /// loses the beginning of the template.
    pub prompt_side: Truncation,
    /// What happens to a longer row.
    pub overlong: Overlong,
}

/// `ids` cut to at most `max` tokens, and whether something was cut.
pub fn limit(mut ids: Vec<u32>, max: usize, side: Truncation) -> (Vec<u32>, bool) {
    if ids.len() <= max {
        return (ids, false);
    }
    match side {
        Truncation::Left => drop(ids.drain(..ids.len() - max)),
        Truncation::Right => ids.truncate(max),
    }
    (ids, true)
}

/// How many rows of a set were kept, cut or left out, and their tokens.
#[derive(serde::Serialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct LengthCounts {
    /// All rows.
    pub rows: usize,
    /// Rows that became examples.
    pub kept: usize,
    /// Rows without the answer that the method needs, left out.
    pub unsuitable: usize,
    /// Rows over a limit, left out ([`Overlong::Drop`]).
    pub dropped: usize,
    /// Kept rows whose prompt was cut.
    pub prompts_cut: usize,
    /// Kept rows whose negative was cut; it ends without an end token.
    pub negatives_cut: usize,
    /// Kept rows whose chosen answer was cut; it ends without an end token.
    pub chosen_cut: usize,
    /// Anchors of kept rows that were cut; they end without an end token.
    pub anchors_cut: usize,
    /// The longest prompt before any limit, in tokens.
    pub longest_prompt: usize,
    /// The longest answer before any limit, in tokens.
    pub longest_completion: usize,
    /// Prompt tokens of the kept rows, after cutting.
    pub prompt_tokens: usize,
    /// Answer tokens of the kept rows, after cutting.
    pub completion_tokens: usize,
}

impl fmt::Display for LengthCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} rows kept", self.kept, self.rows)?;
        for (count, what) in [
            (self.unsuitable, "without a suitable answer"),
            (self.dropped, "dropped as too long"),
            (self.prompts_cut, "prompts cut"),
            (self.negatives_cut, "negatives cut (no end token left)"),
            (self.chosen_cut, "chosen answers cut (no end token left)"),
            (self.anchors_cut, "anchors cut (no end token left)"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        write!(f, "; {} prompt and {} answer tokens", self.prompt_tokens, self.completion_tokens)?;
        write!(f, " (longest {} and {})", self.longest_prompt, self.longest_completion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_keeps_the_asked_side() {
        let ids = vec![1, 2, 3, 4];
        assert_eq!(limit(ids.clone(), 4, Truncation::Left), (ids.clone(), false));
        assert_eq!(limit(ids.clone(), 3, Truncation::Left), (vec![2, 3, 4], true));
        assert_eq!(limit(ids.clone(), 3, Truncation::Right), (vec![1, 2, 3], true));
        assert_eq!(limit(ids, 0, Truncation::Left), (vec![], true));
    }

    #[test]
    fn counts_are_told_in_one_line() {
        let counts =
            LengthCounts { rows: 9, kept: 7, dropped: 2, prompt_tokens: 70, ..LengthCounts::default() };
        let text = counts.to_string();
        assert!(text.starts_with("7 of 9 rows kept, 2 dropped as too long; 70 prompt"), "{text}");
    }
}
