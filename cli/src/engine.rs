//! What the commands that run a model begin and end with: files, rows, the GPU, the model on it, and what it
//! took.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, ModelArgs, RowArgs, WeightArgs, at_least_one};
use crate::record::Recorder;
use crate::terminal::output::{Output, bytes, count};
use aweigh::config::RunConfig;
use aweigh::data::{ChatTokenizer, Row, parse_jsonl, rows_with};
use aweigh::error::{Error, Result};
use aweigh::files::{AdapterFiles, Model, Source, cache, write_whole};
use aweigh::gpu::{Faults, Gpu, Options, SUBMIT_SECONDS, Witness};
use aweigh::model::{Decoder, ModelBytes};
use aweigh::paranoid::Paranoid;
use aweigh::train::{Outcome, Setup, State, align};

/// The files that the flags name.
///
/// # Errors
/// [`aweigh::error::Error::Input`] names the first that is missing.
pub fn files(args: &ModelArgs, output: &Output) -> Result<(Model, Option<AdapterFiles>)> {
    opened(args, model(&args.model, true, output)?, output)
}

/// The same, for who looks at shapes only.
///
/// # Errors
/// As [`files`].
pub fn described(args: &ModelArgs, output: &Output) -> Result<(Model, Option<AdapterFiles>)> {
    opened(args, model(&args.model, false, output)?, output)
}

fn opened(args: &ModelArgs, model: Model, output: &Output) -> Result<(Model, Option<AdapterFiles>)> {
    let adapter =
        args.adapter.as_deref().map(|path| adapter(path, "--adapter", &model, output)).transpose()?;
    Ok((model.with_chat_template(args.chat_template.as_deref())?, adapter))
}

/// The adapter in a directory, for `model`; a warning says what is odd about it.
///
/// # Errors
/// As [`AdapterFiles::open`], and for one that is not supported.
pub fn adapter(path: &Path, flag: &str, model: &Model, output: &Output) -> Result<AdapterFiles> {
    let files = AdapterFiles::open(path, flag)?;
    let adapter = files.bytes().parse()?;
    let place = format!("{}/adapter_config.json", files.name);
    if !adapter.unknown.is_empty() {
        let keys = adapter.unknown.join(", ");
        output.warn(format_args!("{place}: keys that are not known, and have no effect here: {keys}"));
    }
    if let Some(base) = adapter.base.filter(|base| !model.may_be(base)) {
        let name = model.bytes().name;
        output.warn(format_args!("{place}: it was made for {base}; on {name} it may do something else"));
    }
    Ok(files)
}

/// The note that a model whose chat template takes no system message gets `system` in the question instead.
pub fn note_of_system(tokenizer: &ChatTokenizer, system: &str, output: &Output) {
    if !system.is_empty() && tokenizer.has_template() && !tokenizer.accepts_system() {
        output.note("the chat template takes no system message: its text stands before the first question");
    }
}

/// Opens what `--model` names; with `whole` false, for who looks at shapes only. A warning tells of tensors
/// that no layer reads.
///
/// # Errors
/// As [`Model::open`], and for a model that is not supported.
pub fn model(name: &str, whole: bool, output: &Output) -> Result<Model> {
    let progress = &mut output.downloads();
    let model = if whole { Model::fetch(name, progress)? } else { Model::describe(name, progress)? };
    let bytes = model.bytes();
    let weights = bytes.weights()?;
    let unread = weights.unread(&bytes.decoder_config()?);
    if let Some(first) = unread.first() {
        output.warn(format_args!(
            "{}: {} tensors have no place in a model of this configuration and are left out, {first} the \
             first",
            bytes.name,
            unread.len()
        ));
    }
    Ok(model)
}

/// The model's tokenizer; warnings tell what is odd about it or the chat template.
///
/// # Errors
/// As [`ChatTokenizer::from_bytes`].
pub fn tokenizer(model: &Model, output: &Output) -> Result<ChatTokenizer> {
    let tokenizer = model.bytes().tokenizer()?;
    tokenizer.remarks().iter().for_each(|remark| output.warn(remark));
    Ok(tokenizer)
}

/// The rows of a file that the flags ask for.
///
/// # Errors
/// As [`rows`]; for --max-samples 0.
pub fn chosen_rows(source: &Source, args: &RowArgs, output: &Output) -> Result<Vec<Row>> {
    let most = args.max_samples.unwrap_or(usize::MAX);
    at_least_one("--max-samples", most)?;
    let mut rows = rows(source, args.split.as_deref(), output)?;
    rows.truncate(most);
    Ok(rows)
}

/// The rows of a file, of one split where one is named. A warning tells of those that are left out because
/// they are empty.
///
/// # Errors
/// [`aweigh::error::Error::Input`] with the file and line.
pub fn rows(source: &Source, split: Option<&str>, output: &Output) -> Result<Vec<Row>> {
    let parsed = parse_jsonl(&source.bytes, &source.origin)?;
    parsed.remarks(&source.origin).into_iter().for_each(|remark| output.warn(remark));
    match split {
        Some(split) => rows_with(parsed.rows, "split", split, &source.origin),
        None => Ok(parsed.rows),
    }
}

/// An open GPU whose compiled pipelines are kept for the next time when it is closed.
pub struct OpenGpu {
    gpu: Gpu,
    /// What the driver gave before anything ran.
    known: Option<Vec<u8>>,
}

impl Deref for OpenGpu {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        &self.gpu
    }
}

impl Drop for OpenGpu {
    fn drop(&mut self) {
        let (submits, allocations) = self.gpu.faults().counted();
        log::info!("{submits} submits, {allocations} allocations");
        let data = self.gpu.pipelines();
        if let Some(data) = data.as_ref().filter(|_| data != self.known) {
            cache::save_pipelines(self.gpu.summary(), data);
        }
    }
}

/// What compares dispatches with their references.
pub fn paranoid() -> Arc<dyn Witness> {
    Paranoid::new(|reading| block_on(reading))
}

/// Opens the GPU that the flags name.
///
/// # Errors
/// [`aweigh::error::Error::NoAdapter`].
pub fn gpu(args: &GpuArgs) -> Result<OpenGpu> {
    open(&args.options(), !args.no_tuning)
}

/// Opens a GPU; with `tuned`, with the kernels that were measured to be the fastest on it, where they were.
///
/// # Errors
/// [`aweigh::error::Error::NoAdapter`].
pub fn open(options: &Options, tuned: bool) -> Result<OpenGpu> {
    let mut options = options.clone();
    if let Ok(faults) = std::env::var("AWEIGH_FAULTS") {
        // Once for the process: a GPU that is opened again goes on counting.
        static FAULTS: OnceLock<Faults> = OnceLock::new();
        let parsed = Faults::parse(&faults)?;
        options.faults = FAULTS.get_or_init(|| parsed).clone();
    }
    let mut gpu = block_on(Gpu::open(&options))?;
    if let Some(tuning) = cache::tuning(gpu.summary()).filter(|_| tuned) {
        let taken = gpu.use_tuning(tuning);
        log::info!(
            "measured kernel choices: {}",
            if taken { "taken" } else { "of another version, left alone" }
        );
    }
    gpu.use_pipelines(&cache::pipelines(gpu.summary()).unwrap_or_default());
    let known = gpu.pipelines();
    Ok(OpenGpu { gpu, known })
}

/// What a run starts with.
pub struct Start {
    /// Where it begins.
    pub gpu: OpenGpu,
    /// How that was opened, to open it again.
    pub options: Options,
    /// On that GPU.
    pub setup: Setup,
    /// Where to go on, of an earlier run.
    pub state: Option<State>,
}

/// What a run ends with.
pub struct Trained {
    /// Where it ended.
    pub gpu: OpenGpu,
    /// What it came to.
    pub outcome: Outcome,
    /// The state that is kept, as [`Decoder::trained_safetensors`] gives it.
    pub weights: Vec<u8>,
}

/// Losses of the GPU that a run puts up with before it has come any further.
const LOSSES: usize = 3;

/// Trains. Where the GPU is lost it is opened again, `again` brings the model onto it, and the run goes on
/// from the last state that the recorder has kept, with smaller submits.
///
/// # Errors
/// As [`align`]; [`Error::DeviceLost`] where that happens time and again.
pub fn trained(
    start: Start,
    config: &RunConfig,
    recorder: &mut Recorder,
    again: &dyn Fn(&Gpu) -> Result<Setup>,
) -> Result<Trained> {
    let Start { mut gpu, mut options, mut setup, state } = start;
    setup.resume = state;
    let begun = setup.resume.clone();
    let mut losses = 0;
    loop {
        let from = setup.resume.as_ref().map(State::progress);
        let run = async {
            let outcome = align(&gpu, setup, config, recorder).await?;
            let weights = outcome.decoder.trained_safetensors(&gpu).await?;
            Ok((outcome, weights))
        };
        let error = match block_on(run) {
            Ok((outcome, weights)) => return Ok(Trained { gpu, outcome, weights }),
            Err(error @ Error::DeviceLost { .. }) => error,
            Err(error) => return Err(error),
        };
        let state = recorder.last_state().or(begun.as_ref()).cloned();
        losses = if state.as_ref().map(State::progress) > from { 1 } else { losses + 1 };
        if losses == LOSSES {
            return Err(error);
        }
        let seconds = options.submit_seconds.unwrap_or(SUBMIT_SECONDS) / 2.0;
        options.submit_seconds = Some(seconds);
        recorder.warn(format_args!(
            "{error}; opening it again and going on {}, with submits of {:.0} ms",
            state.as_ref().map_or("from the start".into(), State::place),
            1000.0 * seconds
        ));
        recorder.rewind(state.as_ref().and_then(State::trained))?;
        drop(gpu);
        gpu = open(&options, config.gpu.tuning)?;
        setup = again(&gpu)?;
        setup.resume = state;
    }
}

/// The model with its adapter on `gpu`, for scoring and sampling; a note says what that is.
///
/// # Errors
/// As [`Decoder::load`].
pub fn decoder(
    gpu: &Gpu,
    model: &Model,
    adapter: Option<&AdapterFiles>,
    weights: WeightArgs,
    output: &Output,
) -> Result<Decoder> {
    let files = ModelBytes { quantize: weights.quantize, offload: weights.offload, ..model.bytes() };
    let decoder = files.decoder_with(gpu, adapter.map(AdapterFiles::bytes))?;
    announce(gpu, files.name, adapter.map(|files| files.name.as_str()), &decoder, output);
    Ok(decoder)
}

/// The note of what runs where: `GPU llvmpipe, Vulkan; model tiny with adapter run/adapter, 1,234
/// parameters`.
pub fn announce(gpu: &Gpu, model: &str, adapter: Option<&str>, decoder: &Decoder, output: &Output) {
    let summary = gpu.summary();
    let adapter = adapter.map(|name| format!(" with adapter {name}")).unwrap_or_default();
    let parameters = count(decoder.config().parameters());
    output.note(format_args!(
        "GPU {}, {}; model {model}{adapter}, {parameters} parameters",
        summary.name, summary.backend
    ));
}

/// Writes what a run trained into `folder`: adapter/ in PEFT's format, or model/ in Hugging Face's.
///
/// # Errors
/// What the file system reports.
pub fn write_result(folder: &Path, model: &Model, trained: &Trained) -> Result<()> {
    let Trained { outcome: Outcome { decoder, .. }, weights, .. } = trained;
    let made = |name: &str| {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, "create", e)).map(|()| path)
    };
    match decoder.adapter_config(model.bytes().name) {
        Some(config) => {
            let path = made("adapter")?;
            write_whole(&path.join("adapter_model.safetensors"), weights)?;
            write_whole(&path.join("adapter_config.json"), config.as_bytes())
        }
        None => {
            let path = made("model")?;
            write_whole(&path.join("model.safetensors"), weights)?;
            let config = decoder.config();
            let judge = config.classes.map(|_| config.classifier_architecture());
            model.write_companions(&path, Some("float32"), judge.as_deref())?;
            Ok(())
        }
    }
}

/// The figures that every command has which runs a model.
#[derive(Clone, Debug, Serialize)]
pub struct Ran {
    /// The GPU's name.
    pub gpu: String,
    /// `--model`.
    pub model: String,
    /// `--adapter`.
    pub adapter: Option<String>,
    /// The most bytes that buffers on the GPU held at once.
    pub memory_peak_bytes: u64,
}

impl Ran {
    /// As of now.
    pub fn new(gpu: &Gpu, args: &ModelArgs) -> Self {
        Self {
            gpu: gpu.summary().name.clone(),
            model: args.model.clone(),
            adapter: args.adapter.as_ref().map(|path| path.display().to_string()),
            memory_peak_bytes: gpu.ledger().total().peak,
        }
    }

    /// The memory as a person reads it.
    pub fn memory(&self) -> String {
        bytes(self.memory_peak_bytes)
    }
}
