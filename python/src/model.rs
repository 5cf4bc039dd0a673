//! A model on the GPU, for notebooks: opened once, asked often.

use aweigh::data::{ChatTokenizer, ExampleOptions, LengthLimits, Needs, Row, build_examples, parse_jsonl};
use aweigh::error::{Error, Result};
use aweigh::files::Source;
use aweigh::model::Decoder;
use aweigh::run::OpenGpu;
use aweigh::sample::{self, Request, sampling_params};
use aweigh_cli::args::{GpuArgs, ModelArgs, SamplingArgs, WeightArgs};
use aweigh_cli::commands::score;
use aweigh_cli::open;
use pollster::block_on;
use pyo3::prelude::*;
use serde_json::json;

use crate::{output, parsed, raised};

/// The flags of a model.
#[derive(clap::Args)]
struct Opened {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// The flags of sampling.
#[derive(clap::Args)]
struct Asked {
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Answers to each prompt
    #[arg(long, default_value_t = 1)]
    num_samples: usize,
    /// System message before the prompts
    #[arg(long)]
    system: Option<String>,
}

/// The flags of scoring.
#[derive(clap::Args)]
struct Scoring {
    /// Maximum number of packed tokens per batch
    #[arg(long, default_value_t = 2048)]
    max_tokens_per_batch: usize,
}

/// A model with its adapter on a GPU. Rows go in and out as JSON Lines.
#[pyclass(module = "aweigh._aweigh", frozen)]
pub struct Model {
    // Before the GPU, so that its buffers are freed first.
    decoder: Decoder,
    tokenizer: ChatTokenizer,
    gpu: OpenGpu,
}

#[pymethods]
impl Model {
    /// Opens a model with the flags of `aweigh generate`.
    #[new]
    fn new(py: Python<'_>, flags: Vec<String>) -> PyResult<Self> {
        let args: Opened = parsed(flags)?;
        py.detach(|| Self::open(&args)).map_err(|error| raised(py, &error))
    }

    /// The GPU's name.
    #[getter]
    fn gpu(&self) -> String {
        self.gpu.summary().name.clone()
    }

    /// Samples answers to the rows' prompts; returns `[{"completion", "num_tokens", "ended"}, ...]` for each
    /// as JSON.
    fn generate(&self, py: Python<'_>, rows: String, flags: Vec<String>) -> PyResult<Vec<String>> {
        let args: Asked = parsed(flags)?;
        let (answers, failed) = py.detach(|| {
            let mut failed = None;
            (self.answers(&rows, &args, &mut failed), failed)
        });
        ended(py, answers, failed)
    }

    /// Returns the rows that have answers, with their log-probs, as JSON.
    fn score(&self, py: Python<'_>, rows: String, flags: Vec<String>) -> PyResult<Vec<String>> {
        let args: Scoring = parsed(flags)?;
        let source = Source { origin: "rows".into(), bytes: rows.into_bytes() };
        let lines = py.detach(|| {
            let budget = args.max_tokens_per_batch.max(1);
            score::lines(&self.gpu, &self.decoder, &self.tokenizer, &source, budget, &output())
        });
        ended(py, lines, None)
    }
}

/// Raises the exception of a signal, or the error.
fn ended<T>(py: Python<'_>, result: Result<T>, failed: Option<PyErr>) -> PyResult<T> {
    match failed {
        Some(error) => Err(error),
        None => result.map_err(|error| raised(py, &error)),
    }
}

impl Model {
    fn open(args: &Opened) -> Result<Self> {
        let output = output();
        let (model, adapter) = open::files(&args.model, &output)?;
        let tokenizer = open::tokenizer(&model, &output)?;
        let gpu = open::gpu(&args.gpu)?;
        let decoder = open::decoder(&gpu, &model, adapter.as_ref(), args.weights, &output)?;
        Ok(Self { decoder, tokenizer, gpu })
    }

    fn answers(&self, rows: &str, args: &Asked, failed: &mut Option<PyErr>) -> Result<Vec<String>> {
        args.sampling.check()?;
        let origin = "prompts";
        let rows: Vec<Row> = parse_jsonl(rows.as_bytes(), origin)?.rows;
        let instruction = args.system.clone().filter(|text| !text.is_empty());
        let options = ExampleOptions {
            needs: Needs::Prompt,
            limits: LengthLimits::default(),
            instruction,
            anchors: 0,
            examples: Vec::new(),
        };
        let (prompts, _) = build_examples(&rows, origin, &self.tokenizer, &options)?;
        let (context, most) = (self.decoder.context(), args.sampling.max_new_tokens);
        if let Some(long) = prompts.iter().find(|prompt| prompt.sampling_ids.len() + most > context) {
            let expected = format!("at most {context} tokens, the model's context, for prompt and answer");
            let found = format!("a prompt of {} tokens and max_new_tokens {most}", long.sampling_ids.len());
            let fix = "shorten the prompt, or lower max_new_tokens";
            return Err(Error::input(format!("prompt {}", long.line), expected, found, fix));
        }
        let requests: Vec<Request> = prompts
            .iter()
            .enumerate()
            .map(|(index, prompt)| Request {
                prompt: &prompt.sampling_ids,
                first_sample: 0,
                samples: args.num_samples,
                index: index as u32,
            })
            .collect();
        let sampling = &args.sampling;
        let settings = sampling_params(&sampling.to_config(), sampling.seed, self.tokenizer.end_tokens());
        // Between looks at the sampled tokens, Python may handle Ctrl-C.
        let mut advance = |_: usize, _: usize| match Python::attach(|py| py.check_signals()) {
            Ok(()) => Ok(()),
            Err(error) => {
                *failed = Some(error);
                Err(Error::Interrupted)
            }
        };
        let policy = self.decoder.policy();
        let drawn =
            block_on(sample::generate(&self.gpu, &self.decoder, policy, &requests, &settings, &mut advance))?;
        let texts = prompts.iter().zip(drawn).map(|(prompt, answers)| {
            let each = answers.iter().map(|answer| {
                let completion = self.tokenizer.decode_answer(&prompt.sampling_ids, &answer.ids)?;
                let (num_tokens, ended) = (answer.ids.len(), answer.ended);
                Ok(json!({ "completion": completion, "num_tokens": num_tokens, "ended": ended }))
            });
            Ok(serde_json::Value::from(each.collect::<Result<Vec<_>>>()?).to_string())
        });
        texts.collect()
    }
}
