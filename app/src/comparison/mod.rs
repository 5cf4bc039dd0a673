//! Compares models and adapters by their answers to the same prompts: for `aweigh eval`, and for the page.

mod report;

use std::path::Path;

use crate::args::{SamplingArgs, WeightArgs};
use crate::messages::Messages;
use crate::meters::{Meter, Spec};
use crate::open;
use aweigh::data::packing::Group;
use aweigh::data::{
    ChatTokenizer, Example, ExampleOptions, LengthLimits, Needs, Prompt, Row, build_examples,
};
use aweigh::error::Result;
use aweigh::eval::compare::Answers;
use aweigh::files::{AdapterFiles, Model, disk};
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::nn::Pass;
use aweigh::sample::{self, Request, sampling_params};
use aweigh::score::{Scored, score};

pub use report::{Report, SetReport, sentence};

/// Packed tokens per scoring batch.
const BUDGET: usize = 2048;

/// A model to compare, and its name in the table.
pub struct Candidate {
    /// Its name in the table.
    pub name: String,
    /// The model.
    pub kind: Kind,
}

/// What a candidate is.
pub enum Kind {
    /// The base model.
    Base,
    /// An adapter on the base model.
    Adapter(Box<AdapterFiles>),
    /// Another model.
    Model(Box<Model>),
}

/// The name and the rest of `NAME=REST`. Without a name, it is the rest's last path component without .jsonl
/// and .gz.
pub fn named(text: &str) -> (String, &str) {
    match text.split_once('=').filter(|_| !disk::exists(Path::new(text))) {
        Some((name, rest)) if !name.is_empty() && !rest.is_empty() => (name.into(), rest),
        _ => {
            let path = Path::new(text);
            let stem = path.file_name().map_or(text.into(), |name| name.to_string_lossy().into_owned());
            (stem.trim_end_matches(".gz").trim_end_matches(".jsonl").into(), text)
        }
    }
}

impl Candidate {
    /// Opens a candidate of `aweigh eval`. `base` is the model that adapters are applied to.
    ///
    /// # Errors
    /// As [`open::adapter`] and [`open::model`].
    pub fn open(text: &str, base: &Model, messages: &dyn Messages) -> Result<Self> {
        let (name, place) = named(text);
        let path = Path::new(place);
        let adapter =
            |path: &Path| Ok(Kind::Adapter(Box::new(open::adapter(path, "CANDIDATE", base, messages)?)));
        let model = |name: &str| Ok(Kind::Model(Box::new(open::model(name, true, messages)?)));
        let kind = match place {
            "base" => Kind::Base,
            _ if disk::is_file(&path.join("adapter_config.json")) => adapter(path)?,
            _ if disk::is_dir(&path.join("adapter")) => adapter(&path.join("adapter"))?,
            _ if disk::is_dir(&path.join("model")) => model(&path.join("model").display().to_string())?,
            _ => model(place)?,
        };
        Ok(Self { name, kind })
    }

    /// Loads it onto `gpu`.
    fn decoder(&self, gpu: &Gpu, base: &Model, weights: WeightArgs) -> Result<Decoder> {
        match &self.kind {
            Kind::Base => open::stored(base, weights).decoder_with(gpu, None),
            Kind::Adapter(files) => open::stored(base, weights).decoder_with(gpu, Some(files.bytes())),
            Kind::Model(model) => open::stored(model, weights).decoder_with(gpu, None),
        }
    }

    fn tokenizer(&self, base: &Model) -> Result<ChatTokenizer> {
        match &self.kind {
            Kind::Model(model) => model.bytes().tokenizer(),
            _ => base.bytes().tokenizer(),
        }
    }
}

/// A file of prompts.
pub struct Set {
    /// The set's name in the table.
    pub name: String,
    /// The file's name, for messages.
    pub origin: String,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// A candidate's answers to a set, with the tokens that are needed to score them under another model.
struct Drawn {
    answers: Answers,
    /// The index of each prompt's row in the set.
    rows: Vec<usize>,
    /// The tokens of each prompt.
    prompts: Vec<Vec<u32>>,
    /// The tokens of each answer, by prompt.
    ids: Vec<Vec<Vec<u32>>>,
}

impl Drawn {
    /// The prompts with their answers, for scoring.
    fn groups(&self) -> Vec<Group<'_>> {
        let pairs = self.prompts.iter().zip(&self.ids);
        pairs
            .map(|(prompt, ids)| Group { prompt, responses: ids.iter().map(Vec::as_slice).collect() })
            .collect()
    }
}

/// Log-probs of the tokens of all responses.
async fn token_logps(
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    groups: &[Group<'_>],
    watch: &mut dyn Watch,
) -> Result<Vec<Vec<Scored>>> {
    score(gpu, decoder, pass, groups, BUDGET, &mut |_, _| watch.advance(0, 0)).await
}

fn tokens(scored: Vec<Vec<Scored>>) -> Vec<Vec<f32>> {
    scored.into_iter().flatten().map(|answer| answer.token_logps).collect()
}

/// What is compared.
pub struct Compared<'a> {
    /// The model that adapters are applied to.
    pub base: &'a Model,
    /// Its name, for the report.
    pub model: String,
    /// How the models' weights are stored.
    pub weights: WeightArgs,
    /// The candidates; the others are compared with the first.
    pub candidates: Vec<Candidate>,
    /// The prompts.
    pub sets: Vec<Set>,
    /// The meters.
    pub meters: Vec<Spec>,
    /// The grading model of an http meter.
    pub meter_model: Option<String>,
    /// Answers to a prompt.
    pub num_samples: usize,
    /// The longest prompt, in tokens.
    pub max_prompt_length: usize,
    /// How tokens are sampled.
    pub sampling: SamplingArgs,
}

/// A part of a comparison that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// A candidate answers a set of prompts; the items are answers.
    Sampling {
        /// The candidate's name.
        candidate: &'a str,
        /// The set's name.
        set: &'a str,
    },
    /// The meters score the answers; the items are scores.
    Judging,
}

/// Watches a comparison.
pub trait Watch {
    /// A part of `total` items begins.
    fn begin(&mut self, part: Part, total: usize);
    /// More items and tokens are done; also called with zeros.
    ///
    /// # Errors
    /// An error ends the comparison.
    fn advance(&mut self, items: usize, tokens: usize) -> Result<()>;
    /// The part has ended.
    fn end(&mut self);
}

impl Compared<'_> {
    /// Samples the candidates' answers and scores them.
    ///
    /// # Errors
    /// Files or meters that are invalid, prompts that exceed a context, errors of the GPU.
    pub async fn compare(&self, gpu: &Gpu, watch: &mut dyn Watch, messages: &dyn Messages) -> Result<Report> {
        let open = |spec| Meter::open(spec, self.meter_model.as_deref(), gpu, messages);
        let meters = self.meters.iter().map(open).collect::<Result<Vec<_>>>()?;
        // Indexed by candidate, then by set.
        let mut all: Vec<Vec<Drawn>> = Vec::new();
        for candidate in &self.candidates {
            all.push(self.answer(gpu, candidate, watch, messages).await?);
        }
        self.against_base(gpu, watch, &mut all).await?;
        let names: Vec<String> = self.candidates.iter().map(|candidate| candidate.name.clone()).collect();
        let mut reports = Vec::new();
        let answered: usize = all.iter().flatten().map(|drawn| drawn.answers.texts.len()).sum();
        watch.begin(Part::Judging, answered * meters.len());
        for (s, set) in self.sets.iter().enumerate() {
            let mut of_set: Vec<Answers> = all.iter().map(|drawn| drawn[s].answers.clone()).collect();
            let rows: Vec<usize> = all[0][s].rows.clone();
            for answers in &mut of_set {
                let pairs: Vec<(&Prompt, &str)> = answers
                    .prompts
                    .iter()
                    .zip(&answers.texts)
                    .map(|(&i, text)| (&set.rows[rows[i]].prompt, text.as_str()))
                    .collect();
                let mut judged = |answers: usize, _| watch.advance(answers, 0);
                for meter in &meters {
                    answers.harms.push(meter.score(gpu, &pairs, &mut judged).await?);
                }
            }
            reports.push(SetReport::new(set, &rows, (&of_set, &names), &self.meters));
        }
        watch.end();
        Ok(Report {
            model: self.model.clone(),
            gpu: gpu.summary().name.clone(),
            candidates: names,
            meters: self.meters.iter().map(Spec::to_string).collect(),
            seed: self.sampling.seed,
            temperature: self.sampling.temperature,
            sets: reports,
        })
    }

    /// Samples a candidate's answers to all sets.
    async fn answer(
        &self,
        gpu: &Gpu,
        candidate: &Candidate,
        watch: &mut dyn Watch,
        messages: &dyn Messages,
    ) -> Result<Vec<Drawn>> {
        let tokenizer = candidate.tokenizer(self.base)?;
        let decoder = candidate.decoder(gpu, self.base, self.weights)?;
        open::announce(gpu, &candidate.name, None, &decoder, messages);
        let mut all = Vec::new();
        for set in &self.sets {
            let limits = LengthLimits { max_prompt: Some(self.max_prompt_length), ..LengthLimits::default() };
            let options = ExampleOptions::plain(Needs::Prompt, limits);
            let (examples, _) = build_examples(&set.rows, &set.origin, &tokenizer, &options)?;
            for example in &examples {
                let given =
                    [&example.chosen_ids, &example.negative_ids].into_iter().flatten().map(Vec::len).max();
                let longest = self.sampling.max_new_tokens.max(given.unwrap_or(0));
                let place = format!("{}:{}: prompt and answer", set.origin, example.line);
                decoder.check_context(&place, example.prompt_ids.len() + longest)?;
            }
            watch.begin(
                Part::Sampling { candidate: &candidate.name, set: &set.name },
                examples.len() * self.num_samples,
            );
            all.push(self.answer_set(gpu, &decoder, &tokenizer, &examples, watch).await?);
        }
        Ok(all)
    }

    async fn answer_set(
        &self,
        gpu: &Gpu,
        decoder: &Decoder,
        tokenizer: &ChatTokenizer,
        examples: &[Example],
        watch: &mut dyn Watch,
    ) -> Result<Drawn> {
        let settings =
            sampling_params(&self.sampling.to_config(), self.sampling.seed, tokenizer.end_tokens());
        let request = |(index, example): (u32, &'_ Example)| (index, example.prompt_ids.clone());
        let prompts: Vec<(u32, Vec<u32>)> = (0..).zip(examples).map(request).collect();
        let requests: Vec<Request> = prompts
            .iter()
            .map(|(index, prompt)| Request {
                prompt,
                first_sample: 0,
                samples: self.num_samples,
                index: *index,
            })
            .collect();
        let mut advance = |answers: usize, tokens: usize| watch.advance(answers, tokens);
        let pass = decoder.policy();
        let drawn = sample::generate(gpu, decoder, pass, &requests, &settings, &mut advance).await?;
        watch.end();
        let mut answers = Answers::default();
        for (i, (example, drawn)) in examples.iter().zip(&drawn).enumerate() {
            for answer in drawn {
                answers.texts.push(tokenizer.decode_answer(&example.prompt_ids, &answer.ids)?);
                answers.lengths.push(answer.ids.len());
                answers.prompts.push(i);
            }
        }
        let ids =
            drawn.into_iter().map(|answers| answers.into_iter().map(|answer| answer.ids).collect()).collect();
        let prompts = prompts.into_iter().map(|(_, prompt)| prompt).collect();
        let rows = examples.iter().map(|example| example.row).collect();
        let mut drawn = Drawn { answers, rows, prompts, ids };
        drawn.answers.own = tokens(token_logps(gpu, decoder, pass, &drawn.groups(), watch).await?);
        let given: Vec<Group> = examples
            .iter()
            .map(|e| Group {
                prompt: &e.prompt_ids,
                responses: [&e.chosen_ids, &e.negative_ids]
                    .into_iter()
                    .flatten()
                    .map(Vec::as_slice)
                    .collect(),
            })
            .collect();
        let scored = token_logps(gpu, decoder, pass, &given, watch).await?;
        for (example, scored) in examples.iter().zip(scored) {
            let mut scored = scored.iter().map(|r| (f64::from(r.logp), r.token_logps.len()));
            let mut next = |there: bool| if there { scored.next() } else { None };
            drawn.answers.good.push(next(example.chosen_ids.is_some()));
            drawn.answers.flagged.push(next(example.negative_ids.is_some()));
        }
        Ok(drawn)
    }

    /// Scores the answers of all candidates under the base model, except those of models with another
    /// tokenizer.
    async fn against_base(&self, gpu: &Gpu, watch: &mut dyn Watch, all: &mut [Vec<Drawn>]) -> Result<()> {
        let own = self.base.bytes();
        let decoder =
            Candidate { name: String::new(), kind: Kind::Base }.decoder(gpu, self.base, self.weights)?;
        for (candidate, drawn) in self.candidates.iter().zip(all) {
            if let Kind::Model(model) = &candidate.kind {
                // With another tokenizer, the same token ids are other text.
                if model.bytes().tokenizer.tokenizer != own.tokenizer.tokenizer {
                    continue;
                }
            }
            for set in drawn {
                let longest = set.groups().iter().map(Group::tokens).max().unwrap_or(0);
                if longest >= decoder.context() {
                    // Longer than the base model's context: this set has no log-probs under it.
                    continue;
                }
                set.answers.base = match candidate.kind {
                    Kind::Base => set.answers.own.clone(),
                    _ => tokens(token_logps(gpu, &decoder, decoder.policy(), &set.groups(), watch).await?),
                };
            }
        }
        Ok(())
    }
}
