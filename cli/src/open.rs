//! Opens what commands need: model files, rows of data, the GPU, and the model on the GPU.

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, ModelArgs, RowArgs, WeightArgs, at_least_one};
use crate::terminal::output::Output;
use crate::terminal::text::bytes;
use aweigh::data::{ChatTokenizer, Label, Row, parse_rows, rows_with};
use aweigh::error::Result;
use aweigh::files::{AdapterFiles, Model, Source};
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::run::OpenGpu;

pub use aweigh_app::open::{adapter, announce, gpu_text, model, stored, tokenizer};

/// Opens the model and the adapter that the flags name.
///
/// # Errors
/// [`aweigh::error::Error::Input`] names the first file that is missing, invalid or not supported.
pub fn files(args: &ModelArgs, output: &Output) -> Result<(Model, Option<AdapterFiles>)> {
    opened(args, model(&args.model, true, output)?, output)
}

/// Like [`files`], for commands that need only the tensors' shapes: of a model on the Hub that is not in the
/// cache, only the headers of safetensors weights are downloaded.
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

/// If the chat template takes no system message, prints a note that `system` goes into the first user
/// message.
pub fn note_of_system(tokenizer: &ChatTokenizer, system: &str, output: &Output) {
    if !system.is_empty() && tokenizer.has_template() && !tokenizer.accepts_system() {
        output.note("the chat template takes no system message: it is prepended to the first user message");
    }
}

/// The rows of a file that --split and --max-samples select.
///
/// # Errors
/// As [`rows`], and for --max-samples 0.
pub fn chosen_rows(source: &Source, args: &RowArgs, output: &Output) -> Result<Vec<Row>> {
    let most = args.max_samples.unwrap_or(usize::MAX);
    at_least_one("--max-samples", most)?;
    let mut rows = rows(source, args.split.as_deref(), args.label.as_ref(), output)?;
    rows.truncate(most);
    Ok(rows)
}

/// The rows of a file, or of one `split` of it, with the verdicts in the column `label` if one is given.
/// Warns of rows that are left out because they are empty or have no verdict, of another form than TRL's, and
/// of a `system` column, which is not read.
///
/// # Errors
/// [`aweigh::error::Error::Input`] with the file and line.
pub fn rows(
    source: &Source,
    split: Option<&str>,
    label: Option<&Label>,
    output: &Output,
) -> Result<Vec<Row>> {
    let parsed = parse_rows(&source.bytes, &source.origin, label)?;
    parsed.remarks(&source.origin).into_iter().for_each(|remark| output.warn(remark));
    match split {
        Some(split) => rows_with(parsed.rows, "split", split, &source.origin),
        None => Ok(parsed.rows),
    }
}

/// Opens the GPU that the flags name.
///
/// # Errors
/// [`aweigh::error::Error::NoAdapter`].
pub fn gpu(args: &GpuArgs) -> Result<OpenGpu> {
    block_on(aweigh_app::open::gpu(args))
}

/// Loads the model and its adapter onto `gpu`, for scoring and sampling, and announces them.
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
    let files = stored(model, weights);
    let decoder = files.decoder_with(gpu, adapter.map(AdapterFiles::bytes))?;
    announce(gpu, files.name, adapter.map(|files| files.name.as_str()), &decoder, output);
    Ok(decoder)
}

/// Figures of every command that runs a model.
#[derive(Clone, Debug, Serialize)]
pub struct Ran {
    /// The GPU's name.
    pub gpu: String,
    /// `--model`.
    pub model: String,
    /// `--adapter`.
    pub adapter: Option<String>,
    /// Peak size of all buffers on the GPU, in bytes.
    pub memory_peak_bytes: u64,
}

impl Ran {
    /// The figures so far: the peak memory may still grow.
    pub fn new(gpu: &Gpu, args: &ModelArgs) -> Self {
        Self {
            gpu: gpu.summary().name.clone(),
            model: args.model.clone(),
            adapter: args.adapter.as_ref().map(|path| path.display().to_string()),
            memory_peak_bytes: gpu.ledger().total().peak,
        }
    }

    /// The peak memory for display, as in `1.5 GiB`.
    pub fn memory(&self) -> String {
        bytes(self.memory_peak_bytes)
    }
}
