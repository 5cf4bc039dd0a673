//! A model on the GPU, for notebooks: opened once, asked often.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use aweigh::data::{ChatTokenizer, ExampleOptions, LengthLimits, Needs, Row, build_examples, parse_rows};
use aweigh::error::Result;
use aweigh::files::Source;
use aweigh::model::Decoder;
use aweigh::run::OpenGpu;
use aweigh_cli::args::{GpuArgs, ModelArgs, SamplingArgs, WeightArgs, at_least_one};
use aweigh_cli::commands::sample::{check_context, draw};
use aweigh_cli::commands::score;
use aweigh_cli::open;
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
    /// Maximum number of tokens in a prompt; longer ones lose their beginning
    #[arg(long)]
    max_prompt_length: Option<usize>,
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
    /// Held while the model computes: with `offload`, its blocks share buffers.
    alone: Mutex<()>,
}

#[pymethods]
impl Model {
    /// Opens a model with the flags of `aweigh generate`.
    #[new]
    fn new(py: Python<'_>, flags: Vec<String>) -> PyResult<Self> {
        let args: Opened = parsed(py, flags)?;
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
        let args: Asked = parsed(py, flags)?;
        py.detach(|| self.answers(&rows, &args)).map_err(|error| raised(py, &error))
    }

    /// Returns the rows that have answers, with their log-probs, as JSON. The rows are those of the file
    /// `path`, or of the text `rows`.
    #[pyo3(signature = (rows, path, flags))]
    fn score(
        &self,
        py: Python<'_>,
        rows: Option<String>,
        path: Option<PathBuf>,
        flags: Vec<String>,
    ) -> PyResult<Vec<String>> {
        let args: Scoring = parsed(py, flags)?;
        let lines = py.detach(|| {
            let source = match path {
                Some(path) => Source::read(&path, "rows")?,
                None => Source { origin: "rows".into(), bytes: rows.unwrap_or_default().into_bytes() },
            };
            at_least_one("max_tokens_per_batch", args.max_tokens_per_batch)?;
            let _alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
            let (gpu, budget) = (&self.gpu, args.max_tokens_per_batch);
            score::lines(gpu, &self.decoder, &self.tokenizer, &source, budget, &output())
        });
        lines.map_err(|error| raised(py, &error))
    }
}

impl Model {
    fn open(args: &Opened) -> Result<Self> {
        let output = output();
        let (model, adapter) = open::files(&args.model, &output)?;
        let tokenizer = open::tokenizer(&model, &output)?;
        let gpu = open::gpu(&args.gpu)?;
        let decoder = open::decoder(&gpu, &model, adapter.as_ref(), args.weights, &output)?;
        Ok(Self { decoder, tokenizer, gpu, alone: Mutex::new(()) })
    }

    fn answers(&self, rows: &str, args: &Asked) -> Result<Vec<String>> {
        args.sampling.check()?;
        at_least_one("num_samples", args.num_samples)?;
        let origin = "prompts";
        let rows: Vec<Row> = parse_rows(rows.as_bytes(), origin, None)?.rows;
        let instruction = args.system.clone().filter(|text| !text.is_empty());
        let options = ExampleOptions {
            limits: LengthLimits { max_prompt: args.max_prompt_length, ..LengthLimits::default() },
            instruction,
            ..ExampleOptions::plain(Needs::Prompt, LengthLimits::default())
        };
        let (prompts, _) = build_examples(&rows, origin, &self.tokenizer, &options)?;
        let (context, most) = (self.decoder.context(), args.sampling.max_new_tokens);
        prompts.iter().try_for_each(|prompt| check_context(most, prompt, origin, context))?;
        let _alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = (&args.sampling, args.num_samples);
        let (drawn, _) = draw(wanted, &self.gpu, &self.decoder, &self.tokenizer, &prompts, &output())?;
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
