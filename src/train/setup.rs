//! Turns the bytes of the input files and a configuration into the starting state of a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::anchors::Anchor;
use super::max_batches::MaxBatches;
use super::meter::Meter;
use super::order::Order;
use super::plan::Plan;
use super::reader::{Reader, few_answered, without_unwanted};
use super::responses::unpaired;
use super::rows::{
    HELD_OUT, Named, eval_examples, hold_out, one_sided, ordinary, train_examples, worked_examples,
};
use super::run::{Setup, check_context};
use super::samples_file::{anchors_of, given_samples};
use crate::config::{AnchorChoice, NegativeChoice, RunConfig};
use crate::data::{self, ChatTokenizer, Example, LengthCounts, ORDINARY, Prompt, REFUSALS, check_splits};
use crate::error::setting;
use crate::gpu::{Gpu, Memory, Purpose};
use crate::loss::{Method, Takes};
use crate::model::{AdapterBytes, Decoder, FileBytes, LoraSpec, ModelBytes, Training};
use crate::nn::Arenas;
use crate::{Error, Result};

/// A reference model from files, of the same kind as the run trains.
#[derive(Clone)]
pub enum ReferenceBytes<'a> {
    /// For a LoRA run.
    Adapter(AdapterBytes<'a>),
    /// For full training.
    Model(Box<ModelBytes<'a>>),
}

/// All inputs of a run.
#[derive(Clone)]
pub struct Inputs<'a> {
    /// The model.
    pub model: ModelBytes<'a>,
    /// The LoRA adapter to start from.
    pub adapter: Option<AdapterBytes<'a>>,
    /// Training examples: JSONL in TRL's forms.
    pub train: Named<'a>,
    /// Held-out examples.
    pub eval: Option<Named<'a>>,
    /// Ordinary prompts, for the retain term and the stop rule; `None` for the built-in ones.
    pub retain: Option<Named<'a>>,
    /// Worked examples for sampling anchors: a JSON list of messages. Without it, the built-in ones are used
    /// if `anchor_examples` is [`BUILT_IN_EXAMPLES`](crate::config::BUILT_IN_EXAMPLES), and otherwise none.
    pub anchor_examples: Option<Named<'a>>,
    /// Anchors from an earlier run or from `aweigh sample`.
    pub samples: Option<Named<'a>>,
    /// r+ if it is a checkpoint.
    pub positive: Option<ReferenceBytes<'a>>,
    /// r− if it is a checkpoint.
    pub negative: Option<ReferenceBytes<'a>>,
    /// Tells bad anchors, if [`AnchorChoice`](crate::config::AnchorChoice) names a meter.
    pub meter: Option<Arc<dyn Meter>>,
}

/// A run's inputs, parsed and checked: ready for [`Job::plan`] or [`Job::load`].
pub struct Job<'a> {
    inputs: Inputs<'a>,
    tokenizer: Arc<ChatTokenizer>,
    train: Vec<Example>,
    eval: Vec<Example>,
    retain: Vec<Example>,
    ordinary: Vec<Example>,
    anchors: Option<Vec<Vec<Anchor>>>,
    lengths: LengthCounts,
    remarks: Vec<String>,
}

/// A run ready to start.
pub struct Prepared {
    /// The argument of [`super::align()`].
    pub setup: Setup,
    /// The model's tokenizer.
    pub tokenizer: Arc<ChatTokenizer>,
    /// Counts of the training rows that were kept, cut or left out.
    pub lengths: LengthCounts,
}

/// Number of examples that a plan without data assumes: more than are processed in one batch.
const ASSUMED: usize = 256;

impl<'a> Inputs<'a> {
    /// Inputs with only a model and training rows.
    pub fn new(model: ModelBytes<'a>, train: Named<'a>) -> Self {
        Self {
            model,
            adapter: None,
            train,
            eval: None,
            retain: None,
            anchor_examples: None,
            samples: None,
            positive: None,
            negative: None,
            meter: None,
        }
    }

    /// Length and CRC-32 of the inputs of each setting: two runs with equal sums have the same inputs.
    ///
    /// # Errors
    /// [`Error::Io`] for weights that cannot be read.
    pub fn sums(&self) -> Result<BTreeMap<String, String>> {
        let model = |m: &ModelBytes<'a>| m.weights.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>();
        let adapter = |a: &AdapterBytes<'a>| vec![a.config.into(), a.weights.into()];
        let t = &self.model.tokenizer;
        let template = t.chat_template.as_deref().unwrap_or_default().as_bytes();
        let small = [&t.tokenizer_config, &t.special_tokens_map, &t.generation_config].into_iter().flatten();
        let small = [self.model.config, &t.tokenizer, template].into_iter().chain(small.map(Vec::as_slice));
        let mut all: Vec<(&str, Vec<FileBytes>)> = vec![
            ("model", model(&self.model)),
            ("model", small.map(FileBytes::from).collect()),
            ("train", vec![self.train.1.into()]),
        ];
        all.extend(self.eval.map(|(_, bytes)| ("eval", vec![bytes.into()])));
        // The built-in lists count too: another version of the program may have others.
        all.push(("retain.data", vec![self.retain.unwrap_or(ORDINARY).1.into()]));
        all.push(("anchor_examples", vec![self.anchor_examples.unwrap_or(REFUSALS).1.into()]));
        all.extend(self.samples.map(|(_, bytes)| ("samples_file", vec![bytes.into()])));
        all.extend(self.adapter.as_ref().map(|a| ("adapter", adapter(a))));
        let references = [("reference.positive", &self.positive), ("reference.negative", &self.negative)];
        for (key, reference) in references {
            all.extend(reference.as_ref().map(|reference| match reference {
                ReferenceBytes::Adapter(a) => (key, adapter(a)),
                ReferenceBytes::Model(m) => (key, model(m)),
            }));
        }
        let mut sums = BTreeMap::<&str, (usize, crc32fast::Hasher)>::new();
        for (key, parts) in all {
            let (length, crc) = sums.entry(key).or_default();
            for part in parts {
                *length += part.len();
                part.in_parts(|bytes| crc.update(bytes)).map_err(|error| Error::io(key, "read", error))?;
            }
        }
        let text = |(length, crc): (usize, crc32fast::Hasher)| {
            format!("{length} bytes, CRC-32 {:08x}", crc.finalize())
        };
        Ok(sums.into_iter().map(|(key, sum)| (key.to_string(), text(sum))).collect())
    }

    /// Parses and checks all rows, without allocating anything on the GPU.
    ///
    /// # Errors
    /// The first invalid row or setting.
    pub fn read(&self, config: &RunConfig) -> Result<Job<'a>> {
        config.check()?;
        let takes_anchors = config.method.method.takes() == Takes::Anchors;
        if matches!(config.anchors.choice, AnchorChoice::Meter(_)) && takes_anchors && self.meter.is_none() {
            let fix = "set Inputs::meter or RunFiles::with_meter";
            return Err(Error::input(setting("anchors.choice"), "the meter that it names", "none", fix));
        }
        let (split, eval_split) = (config.data.split.as_deref(), config.data.eval_split.as_deref());
        check_splits(split, eval_split.filter(|_| self.eval.is_none()))?;
        let (model, tokenizer) = (self.model.decoder_config()?, Arc::new(self.model.tokenizer()?));
        let mut remarks = Vec::new();
        let (mut train, lengths) =
            train_examples(self.train, self.anchor_examples, &tokenizer, config, &mut remarks)?;
        let mut eval = match eval_examples(
            (self.train, self.eval),
            self.anchor_examples,
            &tokenizer,
            config,
            &mut remarks,
        )? {
            Some(eval) => eval,
            None => hold_out(&mut train, config),
        };
        remarks.extend(data::remarks(self.train.0, &train, &tokenizer));
        if config.method.method == Method::Kto {
            remarks.extend(one_sided(self.train.0, &train));
            (train, eval) = (unpaired(train), unpaired(eval));
        }
        let reader = Reader::new(Arc::clone(&tokenizer), config);
        remarks.extend(without_unwanted(&mut eval, &reader, self.eval.unwrap_or(self.train).0)?);
        remarks.extend(few_answered(&eval, config, &reader, model.context()));
        let samples = self.samples.filter(|_| config.method.method == Method::D2o);
        let given = samples
            .map(|samples| Ok((samples.0, given_samples(samples, &tokenizer, model.vocab, config)?)))
            .transpose()?;
        let anchors = given.map(|(origin, given)| anchors_of(&train, origin, &given, &model)).transpose()?;
        let eval_origin = self.eval.unwrap_or(self.train).0;
        for (origin, examples, held_out) in [(self.train.0, &train, false), (eval_origin, &eval, true)] {
            for example in examples {
                check_context(&model, config, example, held_out, &format!("{origin}:{}", example.line))?;
            }
        }
        let (retain, ordinary) = ordinary(self.retain, &tokenizer, &model, config, &train)?;
        Ok(Job { inputs: self.clone(), tokenizer, train, eval, retain, ordinary, anchors, lengths, remarks })
    }

    /// A job with the given examples instead of the rows.
    ///
    /// # Errors
    /// Invalid settings or model files; an example that exceeds the model's context.
    pub fn given(&self, config: &RunConfig, train: Vec<Example>, eval: Vec<Example>) -> Result<Job<'a>> {
        config.check()?;
        let (model, tokenizer) = (self.model.decoder_config()?, Arc::new(self.model.tokenizer()?));
        for example in train.iter().chain(&eval) {
            check_context(&model, config, example, false, &format!("{}:{}", self.train.0, example.line))?;
        }
        let ordinary = ordinary(self.retain, &tokenizer, &model, config, &train)?;
        Ok(self.job(tokenizer, [train, eval], ordinary))
    }

    /// A job with made-up examples, as long as the limits allow, to make a plan without data.
    ///
    /// # Errors
    /// Invalid settings or model files; examples that exceed the model's context.
    pub fn assume(&self, config: &RunConfig) -> Result<Job<'a>> {
        config.check()?;
        let (model, d) = (self.model.decoder_config()?, &config.data);
        let tokenizer = Arc::new(self.model.tokenizer()?);
        let shown = worked_examples(self.anchor_examples, config)?.into_iter().map(|message| message.content);
        let before: Vec<String> = shown.chain([config.anchors.safety_instruction.clone()]).collect();
        // The template's own tokens around an example, roughly.
        let instruction = tokenizer.encode_text(&before.join("\n"), false)?.len() + 8 * (before.len() - 1);
        // Shortened if the context is too small for the limits.
        let answer = d.max_completion_length.min(model.context() / 2);
        let drawn = if config.method.method.is_of_negatives() { config.anchors.max_new_tokens } else { 0 };
        let beside = answer.max(drawn) + instruction;
        let prompt = d.max_prompt_length.min(model.context().saturating_sub(beside)).max(1);
        let answer = Some(vec![0; answer]);
        let harmful = match config.negative_choice() {
            NegativeChoice::Generated => {
                let text = &config.negatives.harmful_instruction;
                vec![0; prompt + tokenizer.encode_text(text, false)?.len()]
            }
            _ => Vec::new(),
        };
        let example = Example {
            sampling_ids: vec![0; prompt + instruction],
            harmful_ids: harmful,
            negative_ids: answer.clone(),
            chosen_ids: answer,
            ..Example::asking(1, 0, Prompt::Text(String::new()), vec![0; prompt])
        };
        check_context(&model, config, &example, true, "the longest example")?;
        let mut train = vec![example; ASSUMED];
        // Not all prompts begin alike.
        for example in train.iter_mut().step_by(2) {
            (example.sampling_ids[0], example.prompt_ids[0]) = (1, 1);
        }
        let mut eval =
            if self.eval.is_some() { train[..HELD_OUT].to_vec() } else { hold_out(&mut train, config) };
        if config.method.method == Method::Kto {
            (train, eval) = (unpaired(train), unpaired(eval));
        }
        let ordinary = ordinary(self.retain, &tokenizer, &model, config, &[])?;
        Ok(self.job(tokenizer, [train, eval], ordinary))
    }

    /// A job of examples that were not read from rows.
    fn job(
        &self,
        tokenizer: Arc<ChatTokenizer>,
        [train, eval]: [Vec<Example>; 2],
        (retain, ordinary): (Vec<Example>, Vec<Example>),
    ) -> Job<'a> {
        let (inputs, lengths, remarks) = (self.clone(), LengthCounts::default(), Vec::new());
        Job { inputs, tokenizer, train, eval, retain, ordinary, anchors: None, lengths, remarks }
    }

    /// [`Inputs::read`], then [`Job::load`].
    ///
    /// # Errors
    /// The first invalid row, tensor or setting.
    pub fn prepare(&self, gpu: &Gpu, config: &RunConfig) -> Result<Prepared> {
        self.read(config)?.load(gpu, config)
    }

    /// The model as it is at the start of the run, and whether its adapter is new.
    fn decoder(&self, memory: &Memory, config: &RunConfig) -> Result<(Decoder, bool)> {
        let (l, kept) = (&config.lora, &config.model);
        let model = ModelBytes { quantize: kept.quantize, offload: kept.offload, ..self.model.clone() };
        if !l.enabled {
            return Ok((model.decoder(memory, Training::Full)?, false));
        }
        if let Some(adapter) = &self.adapter {
            let adapter = adapter.parse()?;
            return Ok((model.decoder(memory, Training::Adapter(&adapter))?, false));
        }
        let spec = LoraSpec {
            r: l.r,
            lora_alpha: l.lora_alpha,
            lora_dropout: l.lora_dropout,
            target_modules: l.target_modules.clone(),
            ..LoraSpec::default()
        };
        Ok((model.decoder(memory, Training::Lora(spec, config.train.seed))?, true))
    }
}

impl Job<'_> {
    /// The run's memory plan, with tensors of at most `max_binding` bytes. It needs the shapes of the model's
    /// tensors, but does not read their values.
    ///
    /// # Errors
    /// As [`Job::load`].
    pub fn plan(&self, config: &RunConfig, max_binding: u64) -> Result<Plan> {
        let memory = Memory::on_paper(max_binding);
        let (decoder, fresh_adapter) = self.inputs.decoder(&memory, config)?;
        let sizes = (decoder.config(), max_binding);
        let examples = [&self.train[..], &self.eval, &self.retain, &self.ordinary];
        let batches = MaxBatches::of(config, sizes, examples, self.anchors.as_deref());
        Plan::of(&memory, &decoder, fresh_adapter, config, &batches)
    }

    /// Loads the model onto the GPU.
    ///
    /// # Errors
    /// The first invalid tensor or setting.
    pub fn load(self, gpu: &Gpu, config: &RunConfig) -> Result<Prepared> {
        let Self { inputs, tokenizer, train, eval, retain, ordinary, anchors, lengths, .. } = self;
        let (decoder, fresh_adapter) = inputs.decoder(gpu, config)?;
        let checkpoint = |given: &Option<ReferenceBytes>| {
            given.as_ref().map(|checkpoint| checkpoint.values(gpu, &decoder)).transpose()
        };
        // If both are the same checkpoint, it is loaded once.
        let same = config.reference.positive == config.reference.negative;
        let positive = if same { None } else { checkpoint(&inputs.positive)? };
        let negative = checkpoint(&inputs.negative)?;
        let ends = tokenizer.end_tokens().to_vec();
        let reader =
            Some(Reader { meter: inputs.meter.clone(), ..Reader::new(Arc::clone(&tokenizer), config) });
        let setup = Setup {
            decoder,
            fresh_adapter,
            train,
            eval,
            retain,
            ordinary,
            anchors,
            reader,
            positive,
            negative,
            ends,
            resume: None,
        };
        Ok(Prepared { setup, tokenizer, lengths })
    }

    /// The optimizer steps of the whole run, if the stop rule does not end it and every prompt gets anchors.
    pub fn steps(&self, config: &RunConfig) -> usize {
        Order::of(self.train.len(), &config.train).1
    }

    /// Warnings about rows that are valid but unusual, one sentence each, to show before the run.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Tokens of the longest training prompt and of the longest training answer.
    pub fn longest(&self) -> (usize, usize) {
        let answer = |example: &Example| {
            let answers = [&example.negative_ids, &example.chosen_ids];
            answers.into_iter().flatten().map(Vec::len).max().unwrap_or(0)
        };
        let most = |size: &dyn Fn(&Example) -> usize| self.train.iter().map(size).max().unwrap_or(0);
        (most(&|example| example.prompt_ids.len()), most(&answer))
    }
}

impl ReferenceBytes<'_> {
    /// Its values in the layout of `decoder`.
    fn values(&self, gpu: &Gpu, decoder: &Decoder) -> Result<Arenas> {
        let weights = match self {
            Self::Model(model) => model.weights()?,
            Self::Adapter(bytes) => {
                let adapter = bytes.parse()?;
                if let Some(own) = decoder.lora().filter(|own| !own.scales_like(&adapter.spec)) {
                    let text = |spec: &LoraSpec| {
                        let patterns = spec.rank_pattern.len() + spec.alpha_pattern.len();
                        let patterns = if patterns > 0 { " with patterns" } else { "" };
                        format!("r {} and lora_alpha {}{patterns}", spec.r, spec.lora_alpha)
                    };
                    let expected = format!("{}, as in this run", text(own));
                    let [r, alpha] = ["r", "lora_alpha"].map(setting);
                    let fix = format!("set {r} and {alpha} to the checkpoint's");
                    return Err(Error::input(bytes.name, expected, text(&adapter.spec), fix));
                }
                adapter.all_in(decoder.layout())?;
                adapter.weights
            }
        };
        let values = Arenas::new(gpu, decoder.layout(), Purpose::References, "reference checkpoint")?;
        for entry in decoder.layout().entries() {
            values.of(entry).write_f32(gpu, &weights.part(&entry.part)?.to_f32());
        }
        Ok(values)
    }
}
