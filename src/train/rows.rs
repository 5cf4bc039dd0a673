//! The rows of a run's files as examples.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::order::Order;
use super::reader::LEAST_ANSWERED;
use crate::Result;
use crate::config::{self, BUILT_IN_EXAMPLES, NegativeChoice, RunConfig};
use crate::data::{
    ChatTokenizer, Example, ExampleOptions, LengthCounts, LengthLimits, Message, Needs, ORDINARY, Overlong,
    Prompt, REFUSALS, Row, Truncation, build_examples, parse_rows, parse_worked_examples, rows_with,
};
use crate::loss::{Retain, Takes};
use crate::model::DecoderConfig;

/// A file's display name and bytes.
pub type Named<'a> = (&'a str, &'a [u8]);

/// Maximum number of held-out examples that are taken from the training rows: they are scored at every
/// evaluation.
pub(super) const HELD_OUT: usize = 24;

/// One of this many ordinary prompts is answered at evaluations; the retain term trains on the others.
const ANSWERED: usize = 4;

/// The ordinary prompts: those of the retain term, and those that are answered at evaluations. From a short
/// list none are taken for the latter: built-in prompts are answered instead.
pub(super) fn ordinary(
    given: Option<Named>,
    tokenizer: &ChatTokenizer,
    model: &DecoderConfig,
    config: &RunConfig,
    train: &[Example],
) -> Result<(Vec<Example>, Vec<Example>)> {
    let most = config.output.num_completions;
    let retains = config.retain.form != Retain::None;
    if !retains && most == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let own = given.map(|given| prompts(given, false, limits(config), tokenizer)).transpose()?;
    // The built-in prompts have the form of the training prompts: without a conversation among these, they
    // are plain texts. The user's limits on lengths are not for them.
    let conversations = train.iter().any(|example| example.prompt.is_conversational());
    let as_texts = !(conversations || train.is_empty() && tokenizer.has_template());
    let built_in = || {
        let limits = LengthLimits { max_prompt: None, ..limits(config) };
        prompts(ORDINARY, as_texts, limits, tokenizer)
    };
    let fits =
        |example: &Example| example.prompt_ids.len() + config.output.completion_tokens <= model.context();
    let (mut retained, answered) = match own {
        None => set_aside(built_in()?, most, &fits),
        Some(own) if own.len() >= ANSWERED * LEAST_ANSWERED => set_aside(own, most, &fits),
        Some(own) => (own, set_aside(built_in()?, most, &fits).1),
    };
    if !retains {
        return Ok((Vec::new(), answered));
    }
    // Take no more than the steps will use: each is answered before the first step.
    if !train.is_empty() {
        let (_, steps) = Order::of(train.len(), &config.train);
        let of_step = config.train.gradient_accumulation_steps * config.retain.batch_size;
        retained.shuffle(&mut ChaCha8Rng::seed_from_u64(u64::from(config.train.seed)));
        retained.truncate(steps.saturating_mul(of_step));
        retained.sort_by_key(|example| example.row);
    }
    let origin = given.unwrap_or(ORDINARY).0;
    for example in &retained {
        let place = format!("{origin}:{}: prompt plus the tokens of a retained answer", example.line);
        model.check_context(&place, example.prompt_ids.len() + config.retained_tokens())?;
    }
    Ok((retained, answered))
}

/// The prompts of a file, as plain texts if that is asked for.
fn prompts(
    (origin, bytes): Named,
    as_texts: bool,
    limits: LengthLimits,
    tokenizer: &ChatTokenizer,
) -> Result<Vec<Example>> {
    let prompt = |row: Row| match as_texts {
        true => Row { prompt: Prompt::Text(row.prompt.last_text().into()), ..row.without_answers() },
        false => row.without_answers(),
    };
    let rows: Vec<Row> = parse_rows(bytes, origin, None)?.rows.into_iter().map(prompt).collect();
    Ok(build_examples(&rows, origin, tokenizer, &ExampleOptions::plain(Needs::Prompt, limits))?.0)
}

/// Takes every fourth example out, as far as it fits, but no more than `most`; returns the others, and these.
fn set_aside(
    examples: Vec<Example>,
    most: usize,
    fits: &dyn Fn(&Example) -> bool,
) -> (Vec<Example>, Vec<Example>) {
    let (mut others, mut aside) = (Vec::new(), Vec::new());
    for (i, example) in examples.into_iter().enumerate() {
        let fourth = i % ANSWERED == ANSWERED - 1;
        let to = if fourth && aside.len() < most && fits(&example) { &mut aside } else { &mut others };
        to.push(example);
    }
    (others, aside)
}

/// The worked examples that anchors are sampled with.
pub(super) fn worked_examples(given: Option<Named>, config: &RunConfig) -> Result<Vec<Message>> {
    let built_in = config.anchors.anchor_examples.as_deref() == Some(BUILT_IN_EXAMPLES);
    let (origin, bytes) = match given {
        _ if built_in => REFUSALS,
        Some(given) => given,
        None => return Ok(Vec::new()),
    };
    parse_worked_examples(bytes, origin)
}

/// The training examples, and counts of the rows.
pub(super) fn train_examples(
    (origin, bytes): Named,
    worked: Option<Named>,
    tokenizer: &ChatTokenizer,
    config: &RunConfig,
    remarks: &mut Vec<String>,
) -> Result<(Vec<Example>, LengthCounts)> {
    let parsed = parse_rows(bytes, origin, config.data.label.as_ref())?;
    remarks.extend(parsed.remarks(origin));
    let mut rows = parsed.rows;
    if let Some(split) = &config.data.split {
        rows = rows_with(rows, "split", split, origin)?;
    }
    let needs = match config.method.method.takes() {
        Takes::Anchors | Takes::Negative => Needs::Negative,
        Takes::Pair => Needs::Pair,
        Takes::Chosen => Needs::Chosen,
        Takes::Either => Needs::Any,
    };
    let options = options(worked, config, needs)?;
    let (examples, lengths) = build_examples(&rows, origin, tokenizer, &options)?;
    match config.data.max_samples {
        // Again, without the rows after the last one used, so that `lengths` counts only these.
        Some(most) if most < examples.len() => {
            build_examples(&rows[..=examples[most - 1].row], origin, tokenizer, &options)
        }
        _ => Ok((examples, lengths)),
    }
}

/// The held-out examples of their own file or split; `None` if there is neither.
pub(super) fn eval_examples(
    (train, eval): (Named, Option<Named>),
    worked: Option<Named>,
    tokenizer: &ChatTokenizer,
    config: &RunConfig,
    remarks: &mut Vec<String>,
) -> Result<Option<Vec<Example>>> {
    let (origin, bytes) = match (eval, &config.data.eval_split) {
        (Some(eval), _) => eval,
        (None, Some(_)) => train,
        (None, None) => return Ok(None),
    };
    let parsed = parse_rows(bytes, origin, config.data.label.as_ref())?;
    if eval.is_some() {
        remarks.extend(parsed.remarks(origin));
    }
    let mut rows: Vec<Row> = parsed.rows;
    if let Some(split) = &config.data.eval_split {
        rows = rows_with(rows, "split", split, origin)?;
    }
    // Rows with only a good answer are used for the perplexity.
    let needs = match config.method.method.takes() {
        Takes::Anchors | Takes::Negative | Takes::Either => Needs::Any,
        Takes::Pair => Needs::Pair,
        Takes::Chosen => Needs::Chosen,
    };
    Ok(Some(build_examples(&rows, origin, tokenizer, &options(worked, config, needs)?)?.0))
}

fn limits(config: &RunConfig) -> LengthLimits {
    let d = &config.data;
    LengthLimits {
        max_prompt: Some(d.max_prompt_length),
        max_completion: Some(d.max_completion_length),
        prompt_side: match d.truncation_side {
            config::TruncationSide::Left => Truncation::Left,
            config::TruncationSide::Right => Truncation::Right,
        },
        overlong: match d.overlong {
            config::Overlong::Cut => Overlong::Cut,
            config::Overlong::Drop => Overlong::Drop,
            config::Overlong::Error => Overlong::Error,
        },
    }
}

fn options(worked: Option<Named>, config: &RunConfig, needs: Needs) -> Result<ExampleOptions> {
    let instruction = Some(config.anchors.safety_instruction.clone()).filter(|text| !text.is_empty());
    let sampled = config.method.method.is_of_negatives();
    let anchors = if sampled { config.method.num_samples } else { 0 };
    let examples = if sampled { worked_examples(worked, config)? } else { Vec::new() };
    let harmful = (config.negative_choice() == NegativeChoice::Generated)
        .then(|| config.negatives.harmful_instruction.clone());
    Ok(ExampleOptions { needs, limits: limits(config), instruction, harmful, anchors, examples })
}

/// A warning if all rows of a KTO run are good, or all are flagged.
pub(super) fn one_sided(origin: &str, train: &[Example]) -> Option<String> {
    let has = |side: fn(&Example) -> &Option<Vec<u32>>| train.iter().any(|example| side(example).is_some());
    let (all, fix) = match (has(|e| &e.chosen_ids), has(|e| &e.negative_ids)) {
        (false, true) => ("flagged", "add good ones, or use d2o, which samples its own good answers"),
        (true, false) => ("good", "add flagged ones, or use sft"),
        _ => return None,
    };
    Some(format!("{origin}: kto learns from good and flagged answers, but all answers here are {all}: {fix}"))
}

/// Removes the last tenth of the training examples, at most [`HELD_OUT`], and returns them. Returns none if
/// the stop rule is off or there are fewer than 10 examples.
pub(super) fn hold_out(train: &mut Vec<Example>, config: &RunConfig) -> Vec<Example> {
    if !config.stop.enabled || train.len() < 10 {
        return Vec::new();
    }
    train.split_off(train.len() - (train.len() / 10).min(HELD_OUT))
}
