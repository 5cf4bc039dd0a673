//! Flags that several commands share.

use std::path::PathBuf;

use aweigh::config::AnchorConfig;
use aweigh::data::Label;
use aweigh::error::{Error, Result};
use aweigh::gpu::{Backend, Options, Precision, Quantize};

/// Flags that select the GPU.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "GPU")]
pub struct GpuArgs {
    /// GPU to use: its number in "aweigh devices", or part of its name. Without it, the fastest kind is used
    #[arg(long, value_name = "NUMBER|NAME", env = "AWEIGH_GPU")]
    pub gpu: Option<String>,
    /// Graphics API to use. Without it, all that the system offers; OpenGL (gl) only if there is no other
    #[arg(long, value_name = "API", value_enum)]
    pub backend: Option<Backend>,
    /// Ignore the kernel choices that "aweigh devices --tune" measured on this GPU
    #[arg(long)]
    pub no_tuning: bool,
    /// Precision of the inputs of matrix products; f16 rounds them if the GPU supports f16. Sums stay f32.
    /// Software adapters round nothing
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Precision::F32)]
    pub precision: Precision,
}

impl GpuArgs {
    /// The options for opening the GPU.
    pub fn options(&self) -> Options {
        Options {
            adapter: self.gpu.clone(),
            backend: self.backend,
            precision: self.precision,
            ..Options::default()
        }
    }
}

/// Flags that select the model and an adapter.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// The model: a directory in Hugging Face's layout (config.json, tokenizer.json, *.safetensors), a GGUF
    /// file, a name on the Hugging Face Hub (owner/name, or owner/name/FILE.gguf), or "tiny" for the
    /// built-in model
    #[arg(long, value_name = "DIR|GGUF|NAME|tiny")]
    pub model: String,
    /// LoRA adapter to apply: a directory in PEFT's format, such as adapter/ in the folder of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Jinja chat template to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

/// Flags for how the model's weights are stored.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct WeightArgs {
    /// Quantise the matrices of the model's blocks to 4 bits (nf4) or 8 bits (q8). Matrices that a GGUF file
    /// already stores quantised stay as they are
    #[arg(long, value_name = "TYPE", value_enum)]
    pub quantize: Option<Quantize>,
    /// Keep the model's blocks in host memory and copy each one to the GPU when it is needed: slower, for
    /// models that do not fit
    #[arg(long)]
    pub offload: bool,
}

/// Flags that select rows of a data file.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Data")]
pub struct RowArgs {
    /// Use only rows whose "split" field is NAME
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// Use only the first N rows
    #[arg(long, value_name = "N")]
    pub max_samples: Option<usize>,
    /// The column with the verdicts, if it is not "label": true or false, 1 or -1, up or down. NAME<=X: the
    /// column holds numbers on a scale, and X and less are flagged
    #[arg(long, value_name = "NAME|NAME<=X")]
    pub label: Option<Label>,
}

/// Sampling flags, with transformers' names and the defaults of align's anchors.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Sampling temperature; 0 is greedy decoding
    #[arg(long, value_name = "X", default_value_t = 0.9, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample from the smallest set of tokens with this probability mass; 1 turns it off
    #[arg(long, value_name = "X", default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Sample from the N most likely tokens; 0 turns it off
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub top_k: usize,
    /// Penalty for tokens that are already in the prompt or the answer: above 1 makes them less likely; 1
    /// turns it off
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f64,
    /// Maximum number of tokens in an answer
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_new_tokens: usize,
    /// Random seed: the same seed, model and GPU give the same answers, however they are batched
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u32,
}

impl SamplingArgs {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Input`] names the first flag that is out of range.
    pub fn check(&self) -> Result<()> {
        let flag = |ok: bool, name: &str, expected: &str, found: f64| {
            if ok { Ok(()) } else { Err(Error::input(name, expected, found, "give a number in that range")) }
        };
        let zero_or_more = "a number of at least 0";
        flag(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "--temperature",
            zero_or_more,
            self.temperature,
        )?;
        flag(self.top_p > 0.0 && self.top_p <= 1.0, "--top-p", "a number above 0 and up to 1", self.top_p)?;
        let penalty = self.repetition_penalty;
        flag(penalty > 0.0 && penalty.is_finite(), "--repetition-penalty", "a number above 0", penalty)?;
        flag(self.max_new_tokens >= 1, "--max-new-tokens", "at least 1", self.max_new_tokens as f64)
    }

    /// The same settings as an [`AnchorConfig`].
    pub fn to_config(&self) -> AnchorConfig {
        AnchorConfig {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            repetition_penalty: self.repetition_penalty,
            max_new_tokens: self.max_new_tokens,
            ..AnchorConfig::default()
        }
    }
}

/// Checks that a count given as a flag is at least 1.
///
/// # Errors
/// [`Error::Input`] names the flag.
pub fn at_least_one(flag: &str, value: usize) -> Result<()> {
    if value >= 1 { Ok(()) } else { Err(Error::input(flag, "at least 1", value, "give 1 or more")) }
}
