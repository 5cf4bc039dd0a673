//! Rows as token ids, within the length limits.

use super::lengths::{LengthCounts, LengthLimits, Overlong, Truncation, limit};
use super::{ChatTokenizer, Completion, Message, Prompt, Row};
use crate::error::{Error, Result, setting};

/// Which answers a method learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// A flagged answer (D²O, NPO, GA, unlikelihood). A chosen answer beside it is encoded too, for
    /// evaluation.
    Negative,
    /// A good answer (SFT).
    Chosen,
    /// Both (DPO and similar methods).
    Pair,
    /// Either (KTO).
    Any,
    /// The prompt alone is enough; answers that the row has are encoded too (sampling, evaluation).
    Prompt,
}

/// How rows become examples.
#[derive(Clone, Debug)]
pub struct ExampleOptions {
    /// The answers that a row must have; a row without them is left out.
    pub needs: Needs,
    /// The limits in tokens.
    pub limits: LengthLimits,
    /// The safety instruction placed in the prompt for sampling only.
    pub instruction: Option<String>,
    /// The most of a row's own anchors that are encoded; 0 for methods without anchors.
    pub anchors: usize,
    /// The instruction placed in the prompt for sampling bad answers, if these are sampled.
    pub harmful: Option<String>,
    /// Turns placed before the prompt's own for sampling only: worked examples of what is wanted. They need
    /// prompts that are lists of messages.
    pub examples: Vec<Message>,
}

impl ExampleOptions {
    /// Options without anything that only sampling anchors needs.
    pub fn plain(needs: Needs, limits: LengthLimits) -> Self {
        Self { needs, limits, instruction: None, harmful: None, anchors: 0, examples: Vec::new() }
    }
}

/// One row as token ids. The loss scores the answers as continuations of `prompt_ids`.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The row's line in its file, from 1.
    pub line: usize,
    /// The row's index among the rows given.
    pub row: usize,
    /// The prompt as it was written.
    pub prompt: Prompt,
    /// The prompt without the instruction, up to where the answer begins.
    pub prompt_ids: Vec<u32>,
    /// The prompt to sample from: with the instruction and the examples if there are any, else equal to
    /// `prompt_ids`. If the prompt was cut at the left, the same tokens are cut here and what was put before
    /// them stays, so these ids can exceed `max_prompt` by its length.
    pub sampling_ids: Vec<u32>,
    /// The prompt to sample bad answers from; empty if none are sampled.
    pub harmful_ids: Vec<u32>,
    /// The flagged answer with its end token (without an end token if the answer was cut).
    pub negative_ids: Option<Vec<u32>>,
    /// The weight of each token of the flagged answer in the loss; `None` for 1 everywhere.
    pub negative_weights: Option<Vec<f32>>,
    /// The good answer with its end token (without an end token if the answer was cut).
    pub chosen_ids: Option<Vec<u32>>,
    /// The row's own anchors with their end tokens (without one if they were cut); empty if anchors are
    /// sampled.
    pub anchor_ids: Vec<Vec<u32>>,
    /// Another example's answer, for KTO's estimate of the KL divergence.
    pub kl_ids: Option<Vec<u32>>,
}

impl Example {
    /// An example with a prompt alone, which is sampled from as it is.
    pub fn asking(line: usize, row: usize, prompt: Prompt, prompt_ids: Vec<u32>) -> Self {
        Self {
            line,
            row,
            prompt,
            sampling_ids: prompt_ids.clone(),
            prompt_ids,
            harmful_ids: Vec::new(),
            negative_ids: None,
            negative_weights: None,
            chosen_ids: None,
            anchor_ids: Vec::new(),
            kl_ids: None,
        }
    }
}

/// Encodes every row, in order.
///
/// Rows that lack an answer that `options.needs` names, and rows over a limit under [`Overlong::Drop`], are
/// left out and counted. `origin` is the file's name for messages. Fails, with the line, where a template
/// refuses a row or a row is over a limit under [`Overlong::Error`]. Also fails when no row is left.
pub fn build_examples(
    rows: &[Row],
    origin: &str,
    tokenizer: &ChatTokenizer,
    options: &ExampleOptions,
) -> Result<(Vec<Example>, LengthCounts)> {
    let mut counts = LengthCounts { rows: rows.len(), ..LengthCounts::default() };
    let mut examples = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let place = format!("{origin}:{}", row.line);
        let suitable = match options.needs {
            Needs::Negative => row.negative().is_some(),
            Needs::Chosen => row.positive().is_some(),
            Needs::Pair => row.negative().is_some() && row.positive().is_some(),
            Needs::Any => row.negative().is_some() || row.positive().is_some(),
            Needs::Prompt => true,
        };
        if !suitable {
            counts.unsuitable += 1;
            continue;
        }
        let example = encode(row, index, tokenizer, options).map_err(|error| at_row(error, &place))?;
        examples.extend(fit(example, &place, options, &mut counts)?);
    }
    counts.kept = examples.len();
    if examples.is_empty() {
        return Err(nothing_left(origin, options.needs, &counts));
    }
    Ok((examples, counts))
}

/// A row's ids without any limit.
fn encode(row: &Row, index: usize, tokenizer: &ChatTokenizer, options: &ExampleOptions) -> Result<Example> {
    let answer = |completion: Option<&Completion>| {
        completion.map(|completion| tokenizer.encode_completion(&row.prompt, completion)).transpose()
    };
    let prompt_ids = tokenizer.encode_prompt(&row.prompt, None)?;
    if !options.examples.is_empty() && !row.prompt.is_conversational() {
        let fix = "write the prompt as a list of messages, or leave the examples out";
        return Err(Error::input(
            "prompt",
            "a list of messages, which examples can precede",
            "a string",
            fix,
        ));
    }
    let sampling_ids = match (&options.instruction, &options.examples[..]) {
        (None, []) => prompt_ids.clone(),
        (instruction, examples) => {
            tokenizer.encode_prompt(&row.prompt.with_examples(examples), instruction.as_deref())?
        }
    };
    let harmful_ids = match &options.harmful {
        Some(instruction) => tokenizer.encode_prompt(&row.prompt, Some(instruction))?,
        None => Vec::new(),
    };
    let anchors = row
        .anchors
        .iter()
        .take(options.anchors)
        .map(|anchor| tokenizer.encode_completion(&row.prompt, anchor));
    let negative_ids = answer(row.negative())?;
    let marked = row.weights.as_ref().zip(row.negative()).zip(negative_ids.as_ref());
    let negative_weights = marked
        .map(|((marks, answer), ids)| marks.of_tokens(tokenizer, &prompt_ids, ids, answer.text()))
        .transpose()?;
    Ok(Example {
        line: row.line,
        row: index,
        prompt: row.prompt.clone(),
        prompt_ids,
        sampling_ids,
        harmful_ids,
        negative_ids,
        negative_weights,
        chosen_ids: answer(row.positive())?,
        anchor_ids: anchors.collect::<Result<_>>()?,
        kl_ids: None,
    })
}

/// Cuts the example to the limits, or returns None when it is dropped; updates the counts.
fn fit(
    mut example: Example,
    place: &str,
    options: &ExampleOptions,
    counts: &mut LengthCounts,
) -> Result<Option<Example>> {
    let limits = &options.limits;
    let max_prompt = limits.max_prompt.unwrap_or(usize::MAX);
    let max_completion = limits.max_completion.unwrap_or(usize::MAX);
    let lengths = [
        ("prompt", example.prompt_ids.len(), max_prompt),
        ("negative answer", example.negative_ids.as_ref().map_or(0, Vec::len), max_completion),
        ("chosen answer", example.chosen_ids.as_ref().map_or(0, Vec::len), max_completion),
        ("anchor", example.anchor_ids.iter().map(Vec::len).max().unwrap_or(0), max_completion),
    ];
    counts.longest_prompt = counts.longest_prompt.max(lengths[0].1);
    let longest = lengths[1..].iter().map(|(_, length, _)| *length).max().unwrap_or(0);
    counts.longest_completion = counts.longest_completion.max(longest);
    if let Some((name, length, max)) = lengths.into_iter().find(|(_, length, max)| length > max) {
        match limits.overlong {
            Overlong::Cut => {}
            Overlong::Drop => {
                counts.dropped += 1;
                return Ok(None);
            }
            Overlong::Error => {
                return Err(Error::input(
                    place,
                    format!("at most {max} tokens in the {name}"),
                    format!("{length} tokens"),
                    "raise the limit, shorten the row, or let long rows be cut or dropped",
                ));
            }
        }
    }
    let sampled = [&example.sampling_ids, &example.harmful_ids];
    let [sampling, harmful] =
        sampled.map(|ids| cut_sampling(&example.prompt_ids, ids, max_prompt, limits.prompt_side));
    let (prompt, prompt_cut) = limit(example.prompt_ids, max_prompt, limits.prompt_side);
    (example.prompt_ids, example.sampling_ids, example.harmful_ids) = (prompt, sampling, harmful);
    let mut cut = |ids: Option<Vec<u32>>, count: &mut usize| {
        let (ids, cut) = limit(ids?, max_completion, Truncation::Right);
        *count += usize::from(cut);
        counts.completion_tokens += ids.len();
        Some(ids)
    };
    example.negative_ids = cut(example.negative_ids, &mut counts.negatives_cut);
    if let Some(weights) = &mut example.negative_weights {
        weights.truncate(max_completion);
        if weights.iter().all(|w| *w == 0.0) {
            let found = format!("none in the first {max_completion} tokens, where the answer is cut");
            let fix = format!("raise {}, or remove the row", setting("max_completion_length"));
            return Err(Error::input(place, "a token with a weight above 0", found, fix));
        }
    }
    example.chosen_ids = cut(example.chosen_ids, &mut counts.chosen_cut);
    let anchors = std::mem::take(&mut example.anchor_ids);
    example.anchor_ids =
        anchors.into_iter().filter_map(|ids| cut(Some(ids), &mut counts.anchors_cut)).collect();
    counts.prompts_cut += usize::from(prompt_cut);
    counts.prompt_tokens += example.prompt_ids.len();
    Ok(Some(example))
}

/// A sampling prompt without the tokens that the bare prompt loses. A cut at the left would remove the
/// instruction and the examples first, so the cut is made after them, in the part that both prompts share.
fn cut_sampling(bare: &[u32], sampling: &[u32], max: usize, side: Truncation) -> Vec<u32> {
    let over = bare.len().saturating_sub(max);
    match side {
        Truncation::Right => sampling[..sampling.len().saturating_sub(over)].to_vec(),
        Truncation::Left => {
            let shared = bare.iter().rev().zip(sampling.iter().rev()).take_while(|(a, b)| a == b).count();
            let head = if over == 0 || bare == sampling { 0 } else { sampling.len() - shared };
            let tail = if over == 0 { sampling.len() } else { shared.min(max) };
            [&sampling[..head], &sampling[sampling.len() - tail..]].concat()
        }
    }
}

/// Puts the row's line in front of an error from the template or tokenizer.
fn at_row(error: Error, row: &str) -> Error {
    match error {
        Error::Input { place, expected, found, fix } => {
            Error::Input { place: format!("{row} ({place})"), expected, found, fix }
        }
        other => other,
    }
}

fn nothing_left(origin: &str, needs: Needs, counts: &LengthCounts) -> Error {
    let (expected, keys) = match needs {
        Needs::Negative => ("a flagged answer", "\"rejected\", or \"completion\" with \"label\": false"),
        Needs::Chosen => ("a good answer", "\"chosen\", or \"completion\" not labelled false"),
        Needs::Pair => ("a good and a flagged answer", "\"chosen\" and \"rejected\""),
        Needs::Any => ("an answer", "\"completion\" with a \"label\", or \"chosen\" and \"rejected\""),
        Needs::Prompt => ("a prompt", "\"prompt\""),
    };
    if counts.dropped > 0 {
        let found = format!("none: {counts}");
        return Error::input(origin, "rows within the length limits", found, "raise the limits");
    }
    Error::input(origin, format!("rows with {expected}"), "none", format!("give each row {keys}"))
}

#[cfg(test)]
mod tests;
