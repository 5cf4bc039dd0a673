//! Measures a model's answers to the held-out prompts.

use std::ops::Range;

use serde::Serialize;

use super::{HELD_OUT, Topic, Verdict, judge};
use crate::config::AnchorConfig;
use crate::data::packing::Group;
use crate::data::{
    ChatTokenizer, Example, ExampleOptions, LengthLimits, Needs, Row, build_examples, parse_rows,
};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::sample::SamplingParams;
use crate::model::Decoder;
use crate::nn::Pass;
use crate::sample::{self, Progress, Request};
use crate::score::score;

/// Maximum length of an answer in tokens: the grammar's longest has 39.
pub const MAX_NEW_TOKENS: usize = 44;

/// Packed tokens of a scoring batch.
const SCORE_TOKENS: usize = 4096;

/// Figures of a model on the held-out prompts.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The share of hostile answers, with one fresh answer per prompt (temperature 0.9, top-p 0.95).
    pub hostile_share: f64,
    /// The share of the same answers that are on topic.
    pub on_topic_share: f64,
    /// Mean summed log-prob of the given hostile answers.
    pub negative_logp: f64,
    /// Perplexity of the given good answers.
    pub good_perplexity: f64,
    /// The fresh answers.
    #[serde(skip)]
    pub answers: Vec<String>,
    /// The verdict on each fresh answer.
    #[serde(skip)]
    pub verdicts: Vec<Verdict>,
}

/// The held-out prompts with their good and hostile answers, and their topics.
pub struct HeldOut {
    examples: Vec<Example>,
    topics: Vec<Topic>,
    /// The texts of the prompts.
    pub prompts: Vec<String>,
}

impl HeldOut {
    /// Reads the built-in held-out prompts.
    ///
    /// # Errors
    /// When the built-in rows are not in the expected form.
    pub fn read(tokenizer: &ChatTokenizer) -> Result<Self> {
        let (origin, bytes) = HELD_OUT;
        let rows = parse_rows(bytes, origin, None)?.rows;
        let options = ExampleOptions::plain(Needs::Pair, LengthLimits::default());
        let (examples, _) = build_examples(&rows, origin, tokenizer, &options)?;
        let topic = |row: &Row| row.raw.get("topic").and_then(|t| t.as_str()).and_then(Topic::from_name);
        let topics = rows.iter().map(topic).collect::<Option<Vec<_>>>().ok_or_else(|| {
            Error::input(
                origin,
                "a known topic in each row",
                "an unknown one",
                "make the data again: examples/make_tiny_data.rs",
            )
        })?;
        let prompts = rows.iter().map(|row| row.prompt.last_text().to_string()).collect();
        Ok(Self { examples, topics, prompts })
    }

    /// The prompts of `part` alone, which may reach past the last one.
    #[must_use]
    pub fn part(mut self, part: Range<usize>) -> Self {
        let part = part.start.min(self.len())..part.end.min(self.len());
        self.examples = self.examples[part.clone()].to_vec();
        self.topics = self.topics[part.clone()].to_vec();
        self.prompts = self.prompts[part].to_vec();
        self
    }

    /// The number of prompts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there are no prompts.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// The verdict on an answer to prompt `i`.
    pub fn judge(&self, i: usize, answer: &str) -> Verdict {
        judge(self.topics[i], answer)
    }

    /// Samples an answer to each prompt, with the random stream of `seed`, and scores the given answers.
    ///
    /// # Errors
    /// An error that the device reports.
    pub async fn measure(
        &self,
        gpu: &Gpu,
        decoder: &Decoder,
        pass: Pass<'_>,
        tokenizer: &ChatTokenizer,
        seed: u32,
        progress: Progress<'_>,
    ) -> Result<Measured> {
        let settings = SamplingParams {
            max_new_tokens: MAX_NEW_TOKENS as u32,
            // A random stream other than a training run's.
            ..sample::sampling_params(&AnchorConfig::default(), seed ^ 0x5eed, tokenizer.end_tokens())
        };
        let request = |(i, e): (u32, &'_ Example)| (i, e.prompt_ids.clone());
        let prompts: Vec<(u32, Vec<u32>)> = (0..).zip(&self.examples).map(request).collect();
        let requests: Vec<Request> = prompts
            .iter()
            .map(|(i, prompt)| Request { prompt, first_sample: 0, samples: 1, index: *i })
            .collect();
        let drawn = sample::generate(gpu, decoder, pass, &requests, &settings, &mut *progress).await?;
        let texts = drawn.iter().flatten().map(|answer| tokenizer.decode(&answer.ids, true));
        let answers = texts.collect::<Result<Vec<_>>>()?;
        let verdicts: Vec<Verdict> = answers.iter().enumerate().map(|(i, a)| self.judge(i, a)).collect();
        let share =
            |f: fn(&Verdict) -> bool| verdicts.iter().filter(|v| f(v)).count() as f64 / verdicts.len() as f64;
        let groups: Vec<Group> = self
            .examples
            .iter()
            .map(|e| {
                let answers = [&e.chosen_ids, &e.negative_ids];
                Group {
                    prompt: &e.prompt_ids,
                    responses: answers.into_iter().flatten().map(Vec::as_slice).collect(),
                }
            })
            .collect();
        let scored = score(gpu, decoder, pass, &groups, SCORE_TOKENS, &mut |_, _| progress(0, 0)).await?;
        let (good, tokens) = scored.iter().fold((0.0, 0), |(logp, tokens), r| {
            (logp + f64::from(r[0].logp), tokens + r[0].token_logps.len())
        });
        let negative = scored.iter().map(|r| f64::from(r[1].logp)).sum::<f64>() / scored.len() as f64;
        Ok(Measured {
            hostile_share: share(|v| v.hostile),
            on_topic_share: share(|v| v.on_topic),
            negative_logp: negative,
            good_perplexity: (-good / tokens as f64).exp(),
            answers,
            verdicts,
        })
    }
}
