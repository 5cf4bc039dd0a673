//! Reads the answers of an evaluation as texts.

use std::sync::Arc;

use super::meter::Meter;
use super::metrics::{Metrics, mean};
use crate::Result;
use crate::config::RunConfig;
use crate::data::{ChatTokenizer, Example, Rule, distinct, repetition};
use crate::error::setting;
use crate::sample::Answer;

/// Names of the metrics that the stop rule reads.
pub(super) const UNWANTED: &str = "eval_completions/unwanted";
pub(super) const ORDINARY_REFUSAL: &str = "eval_ordinary/refusal";
pub(super) const ORDINARY_DISTINCT: &str = "eval_ordinary/distinct_2";
pub(super) const ORDINARY_LENGTH: &str = "eval_ordinary/mean_length";

/// The prompts that a model answers at an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// Held-out prompts, flagged ones if there are any.
    HeldOut,
    /// Ordinary prompts that the retain term does not train on.
    Ordinary,
}

/// Reads a model's answers as texts.
#[derive(Clone)]
pub struct Reader {
    /// The model's tokenizer.
    pub tokenizer: Arc<ChatTokenizer>,
    /// The rule that a sampled anchor must follow; `None` for all answers.
    pub filter: Option<Rule>,
    /// The rule that tells an unwanted answer, if there is one.
    pub unwanted: Option<Rule>,
    /// Tells bad anchors, if the settings name a meter for them.
    pub meter: Option<Arc<dyn Meter>>,
}

impl Reader {
    /// A reader with the rules of `config`, without a meter.
    pub fn new(tokenizer: Arc<ChatTokenizer>, config: &RunConfig) -> Self {
        Self { tokenizer, filter: config.anchor_rule(), unwanted: config.unwanted_rule(), meter: None }
    }

    /// Whether the answer `ids` to `prompt` becomes an anchor.
    pub(super) fn keeps(&self, prompt: &[u32], ids: &[u32]) -> Result<bool> {
        match &self.filter {
            Some(rule) => Ok(rule.holds(&self.tokenizer.decode_answer(prompt, ids)?)),
            None => Ok(true),
        }
    }

    /// Metrics of the answers to the prompts of one kind. Lengths are in tokens, the end token included.
    pub(super) fn metrics(&self, asked: Asked, answers: &[(&Example, Answer)]) -> Result<Metrics> {
        let mut metrics = Metrics::default();
        if answers.is_empty() {
            return Ok(metrics);
        }
        let text = |(e, a): &(&Example, Answer)| self.tokenizer.decode_answer(&e.prompt_ids, &a.ids);
        let texts = answers.iter().map(text).collect::<Result<Vec<String>>>()?;
        let share = |rule: &Rule| mean(texts.iter().map(|text| f64::from(u8::from(rule.holds(text)))));
        let prefix = match asked {
            Asked::HeldOut => "eval_completions",
            Asked::Ordinary => "eval_ordinary",
        };
        let mut push = |name: &str, value: f64| metrics.push(format!("{prefix}/{name}"), value);
        if let Some(unwanted) = &self.unwanted {
            push("unwanted", share(unwanted));
        }
        push("refusal", share(&Rule::refusal()));
        push("mean_length", mean(answers.iter().map(|(_, answer)| answer.ids.len() as f64)));
        push("distinct_2", distinct(&texts.iter().map(String::as_str).collect::<Vec<_>>(), 2));
        push("repetition", mean(texts.iter().map(|text| repetition(text))));
        Ok(metrics)
    }
}

/// Takes good answers that are themselves unwanted out of the held-out rows: a model that no longer does what
/// is unwanted finds them less likely, which says nothing about what it may keep. A rule with `not:` is about
/// something that is missing, such as a refusal, and not missed in a good answer to an ordinary prompt: they
/// all stay. Returns a warning if there were any.
///
/// # Errors
/// As [`ChatTokenizer::decode_answer`].
pub(super) fn without_unwanted(
    held_out: &mut Vec<Example>,
    reader: &Reader,
    origin: &str,
) -> Result<Option<String>> {
    let Some(rule) = reader.unwanted.as_ref().filter(|rule| !rule.is_negated()) else { return Ok(None) };
    let (mut kept, mut lines, mut good) = (Vec::new(), Vec::new(), 0);
    for example in std::mem::take(held_out) {
        let alone = example.chosen_ids.as_ref().filter(|_| example.negative_ids.is_none());
        let text = alone.map(|ids| reader.tokenizer.decode_answer(&example.prompt_ids, ids)).transpose()?;
        good += usize::from(text.is_some());
        match text.is_some_and(|text| rule.holds(&text)) {
            true => lines.push(example.line),
            false => kept.push(example),
        }
    }
    *held_out = kept;
    Ok(lines.first().map(|first| {
        format!(
            "{origin}: {} of {good} held-out good answers are unwanted by the rule {rule} and are left out: \
             they would count against a model that does as asked; the first is on line {first}",
            lines.len()
        )
    }))
}

/// With fewer prompts to answer, a share of the answers says little.
pub(super) const LEAST_ANSWERED: usize = 10;

/// A warning if the stop rule counts unwanted answers to too few held-out prompts.
pub(super) fn few_answered(
    held_out: &[Example],
    config: &RunConfig,
    reader: &Reader,
    context: usize,
) -> Option<String> {
    let count = answered(held_out, config, context).len();
    let counts = config.stop.enabled && reader.unwanted.is_some() && (1..LEAST_ANSWERED).contains(&count);
    let fix = match config.output.num_completions < LEAST_ANSWERED {
        true => format!("raise {} to {LEAST_ANSWERED}", setting("num_completions")),
        false => format!("hold out {LEAST_ANSWERED} or more with {}", setting("eval")),
    };
    let share = 100.0 / count as f64;
    counts.then(|| {
        format!(
            "the stop rule reads unwanted answers from {count} held-out prompts, where each answer is \
             {share:.0} % of them: {fix}"
        )
    })
}

/// The held-out examples whose prompts are answered: the first flagged ones, or the first of all if none is
/// flagged, as far as the context has room.
pub(super) fn answered(held_out: &[Example], config: &RunConfig, context: usize) -> Vec<Example> {
    let any_flagged = held_out.iter().any(|example| example.negative_ids.is_some());
    let most = config.output.completion_tokens;
    let asked = held_out.iter().filter(|example| {
        (example.negative_ids.is_some() || !any_flagged) && example.prompt_ids.len() + most <= context
    });
    asked.take(config.output.num_completions).cloned().collect()
}
