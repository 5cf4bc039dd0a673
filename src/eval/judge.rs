//! A judge: a decoder whose head, on the last token of an answer, separates flagged answers from fine ones.
//!
//! A judge is trained like any other model: its "answer" to a text is one token, the class, and the loss is
//! the cross-entropy of this token.

use crate::data::packing::Group;
use crate::data::{ChatTokenizer, Completion, Example, Prompt, Row};
use crate::gpu::Gpu;
use crate::model::Decoder;
use crate::sample::Progress;
use crate::score::score;
use crate::{Error, Result};

/// The class of an answer that is not flagged.
const FINE: u32 = 0;
/// The class of a flagged answer.
const FLAGGED: u32 = 1;

/// An answer to be judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The prompt and the answer, as the chat template renders them.
    pub ids: Vec<u32>,
    /// The answer's text.
    pub text: String,
    /// The verdict, if the row has one.
    pub flagged: Option<bool>,
    /// The row's line in its file.
    pub line: usize,
}

/// The prompt and the answer as tokens, end-of-turn token included, cut to the last `most` tokens.
///
/// # Errors
/// When the template refuses the prompt.
pub fn encode(
    tokenizer: &ChatTokenizer,
    prompt: &Prompt,
    answer: &Completion,
    most: usize,
) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode_prompt(prompt, None)?;
    ids.extend(tokenizer.encode_completion(prompt, answer)?);
    Ok(ids.split_off(ids.len().saturating_sub(most)))
}

/// The answers of `rows`. A pair gives two: a fine one (chosen) and a flagged one (rejected). A completion is
/// flagged if its label is false; without a label it has no verdict.
///
/// # Errors
/// When the template refuses a row, or no row has an answer.
pub fn cases(rows: &[Row], origin: &str, tokenizer: &ChatTokenizer, most: usize) -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for row in rows {
        let answers = [
            (&row.chosen, Some(false)),
            (&row.rejected, Some(true)),
            (&row.completion, row.label.map(|good| !good)),
        ];
        for (answer, flagged) in answers {
            let Some(answer) = answer else { continue };
            let ids = encode(tokenizer, &row.prompt, answer, most)?;
            all.push(Case { ids, text: answer.text().into(), flagged, line: row.line });
        }
    }
    if all.is_empty() {
        let fix = "give each row \"completion\" with \"label\", or \"chosen\" and \"rejected\"";
        return Err(Error::input(origin, "rows with an answer", "none", fix));
    }
    Ok(all)
}

/// A judge's training examples: each text that has a verdict, and its class as the one token that follows.
pub fn examples(cases: &[Case]) -> Vec<Example> {
    let verdicts = cases.iter().enumerate().filter_map(|(row, case)| Some((row, case, case.flagged?)));
    let example = |(row, case, flagged): (usize, &Case, bool)| Example {
        chosen_ids: Some(vec![if flagged { FLAGGED } else { FINE }]),
        ..Example::asking(case.line, row, Prompt::Text(String::new()), case.ids.clone())
    };
    verdicts.map(example).collect()
}

/// The probability that each text is flagged.
///
/// # Errors
/// An error that the device reports.
pub async fn probabilities(
    gpu: &Gpu,
    judge: &Decoder,
    texts: &[&[u32]],
    budget: usize,
    progress: Progress<'_>,
) -> Result<Vec<f64>> {
    let class = [FLAGGED];
    let groups: Vec<Group> =
        texts.iter().map(|text| Group { prompt: text, responses: vec![&class[..]] }).collect();
    let scored = score(gpu, judge, judge.policy(), &groups, budget, progress).await?;
    let found: Vec<f64> = scored.iter().map(|group| f64::from(group[0].logp).exp()).collect();
    if found.iter().all(|probability| probability.is_finite()) {
        return Ok(found);
    }
    Err(Error::not_finite("the judge", "verdicts"))
}
