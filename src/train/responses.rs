//! Which answers of an example a method's loss takes, and which other answers are scored.

use crate::data::Example;
use crate::loss::{Method, Takes};

/// The responses that a method's loss takes, in the order that it expects.
pub(super) fn loss_responses<'a>(
    method: Method,
    example: &'a Example,
    anchors: impl Iterator<Item = &'a [u32]>,
) -> Vec<&'a [u32]> {
    let chosen = example.chosen_ids.as_deref();
    let negative = example.negative_ids.as_deref();
    match method.takes() {
        Takes::Anchors => anchors.chain(negative).collect(),
        Takes::Negative => negative.into_iter().collect(),
        Takes::Pair => chosen.into_iter().chain(negative).collect(),
        Takes::Chosen => chosen.into_iter().collect(),
        // One of the two is missing, and is passed as an empty response.
        Takes::Either => vec![chosen.unwrap_or_default(), negative.unwrap_or_default()],
    }
}

/// The responses that the references score: those of the loss, and for KTO another example's answer.
pub(super) fn reference_responses<'a>(
    method: Method,
    example: &'a Example,
    anchors: impl Iterator<Item = &'a [u32]>,
) -> Vec<&'a [u32]> {
    loss_responses(method, example, anchors).into_iter().chain(example.kl_ids.as_deref()).collect()
}

/// The responses of a held-out example: those of [`reference_responses`], then any anchors and good answer
/// that the loss does not take: they are scored for evaluation only.
pub(super) fn held_out_responses<'a>(
    method: Method,
    example: &'a Example,
    anchors: impl Iterator<Item = &'a [u32]> + Clone,
) -> Vec<&'a [u32]> {
    let mut responses = reference_responses(method, example, anchors.clone());
    if method.takes() == Takes::Negative {
        responses.extend(anchors);
    }
    if method.is_of_negatives() {
        responses.extend(example.chosen_ids.as_deref());
    }
    responses
}

/// Removes the items whose place in `keep` is false.
pub(super) fn parts_of<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    items.retain(|_| keep.next().copied().unwrap_or(true));
}

/// The positions in [`held_out_responses`] of the loss's responses, the anchors and the good answer.
pub(super) struct HeldOutParts {
    /// Number of the loss's responses, which come first.
    pub own: usize,
    /// The anchors, the model's own answers.
    pub anchors: std::ops::Range<usize>,
    /// The good answer.
    pub good: Option<usize>,
}

impl HeldOutParts {
    /// The positions for an example with `drawn` anchors.
    pub fn of(method: Method, example: &Example, drawn: usize) -> Self {
        let own = loss_responses(method, example, std::iter::repeat_n(&[][..], drawn)).len();
        let (anchors, behind) = match method.takes() {
            Takes::Anchors => (0..drawn, own),
            Takes::Negative => (own..own + drawn, own + drawn),
            _ => (0..0, own),
        };
        let good = if method.is_of_negatives() { behind } else { 0 };
        Self { own, anchors, good: example.chosen_ids.is_some().then_some(good) }
    }
}

/// The examples for KTO: one per answer. Each also gets an answer of the row before (`kl_ids`; the first row
/// gets one of the last), for the estimate of the KL divergence: as in TRL, an answer to another prompt.
pub(super) fn unpaired(examples: Vec<Example>) -> Vec<Example> {
    let apart = |example: Example| {
        let chosen = Example { negative_ids: None, ..example.clone() };
        let negative = Example { chosen_ids: None, ..example };
        [chosen, negative]
    };
    let has_answer = |example: &Example| example.chosen_ids.is_some() || example.negative_ids.is_some();
    let mut all: Vec<Example> = examples.into_iter().flat_map(apart).filter(has_answer).collect();
    let count = all.len();
    for i in 0..count {
        let before = |back: usize| (i + count - back) % count;
        // A single row has no other row.
        let other = (1..count).map(before).find(|&other| all[other].row != all[i].row).unwrap_or(before(1));
        all[i].kl_ids = all[other].chosen_ids.clone().or(all[other].negative_ids.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Prompt;

    #[test]
    fn pairs_are_taken_apart_and_each_meets_an_answer_to_another_prompt() {
        let example = |row: usize, chosen: Option<u32>, negative: Option<u32>| Example {
            chosen_ids: chosen.map(|id| vec![id]),
            negative_ids: negative.map(|id| vec![id]),
            ..Example::asking(1, row, Prompt::Text(String::new()), vec![1])
        };
        let rows = [(Some(5), Some(6)), (None, Some(7)), (Some(8), None)];
        let found = unpaired(
            (0..).zip(rows).map(|(row, (chosen, negative))| example(row, chosen, negative)).collect(),
        );
        let parts: Vec<_> =
            found.iter().map(|e| reference_responses(Method::Kto, e, std::iter::empty()).concat()).collect();
        assert_eq!(parts, [[5, 8], [6, 8], [7, 6], [8, 7]]);
        assert!(found.iter().all(|e| loss_responses(Method::Kto, e, std::iter::empty()).len() == 2));
    }
}
