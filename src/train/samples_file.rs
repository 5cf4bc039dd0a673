//! Anchors from a samples file: samples.jsonl of an earlier run, or the output of `aweigh sample`.

use std::collections::HashMap;

use super::anchors::Anchor;
use crate::config::RunConfig;
use crate::data::{ChatTokenizer, Example, parse_rows};
use crate::model::DecoderConfig;
use crate::{Error, Result};

/// Line number of a sample in its file, and the sample.
type Given = (usize, Anchor);

/// The first samples of each prompt in a samples file that may be anchors, as many as a prompt has anchors.
pub(super) fn given_samples(
    (origin, bytes): (&str, &[u8]),
    tokenizer: &ChatTokenizer,
    vocab: usize,
    config: &RunConfig,
) -> Result<HashMap<String, Vec<Given>>> {
    let mut by_prompt: HashMap<String, Vec<Given>> = HashMap::new();
    let rule = config.anchor_rule();
    // `aweigh sample` also writes empty answers: `parse_rows` leaves them out.
    for row in parse_rows(bytes, origin, None)?.rows {
        // Of a run that sampled online, use only the anchors from before the first step.
        if row.raw.get("step").and_then(serde_json::Value::as_u64).is_some_and(|step| step > 0) {
            continue;
        }
        let Some(completion) = &row.completion else { continue };
        if rule.as_ref().is_some_and(|rule| !rule.holds(completion.text())) {
            continue;
        }
        let ids = match row.raw.get("ids") {
            None => tokenizer.encode_completion(&row.prompt, completion)?,
            Some(ids) => {
                let parsed: Option<Vec<u32>> = serde_json::from_value(ids.clone()).ok();
                let known = |ids: &Vec<u32>| !ids.is_empty() && ids.iter().all(|&id| (id as usize) < vocab);
                parsed.filter(known).ok_or_else(|| {
                    let place = format!("{origin}:{}", row.line);
                    let fix = "use samples of this model, or leave \"ids\" out";
                    Error::input(place, "\"ids\": token ids of the model's vocabulary", ids, fix)
                })?
            }
        };
        let ended = ids.last().is_some_and(|id| tokenizer.end_tokens().contains(id));
        let samples = by_prompt.entry(key(&row.prompt)).or_default();
        if samples.len() < config.method.num_samples {
            samples.push((row.line, Anchor { ids, ended, step: 0, weight: 1.0 }));
        }
    }
    Ok(by_prompt)
}

/// Each example's anchors from `given`, checked against the model's context. Missing ones are sampled before
/// the first step.
pub(super) fn anchors_of(
    examples: &[Example],
    origin: &str,
    given: &HashMap<String, Vec<Given>>,
    model: &DecoderConfig,
) -> Result<Vec<Vec<Anchor>>> {
    let of = |example: &Example| {
        let samples = given.get(&key(&example.prompt)).into_iter().flatten();
        samples
            .map(|(line, anchor)| {
                let place = format!("{origin}:{line}: prompt and sample");
                model.check_context(&place, example.prompt_ids.len() + anchor.ids.len())?;
                Ok(anchor.clone())
            })
            .collect()
    };
    examples.iter().map(of).collect()
}

fn key(prompt: &crate::data::Prompt) -> String {
    serde_json::to_string(prompt).unwrap_or_default()
}
