//! `aweigh bench`: how fast is this GPU?

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::ValueEnum;
use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, at_least_one};
use crate::machine::{Machine, ReportArgs, VERSION, without_folders};
use crate::open;
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::text::{bytes, table};
use aweigh::bench::{
    Bound, Counting, GroupTimes, Peak, Rate, Roofline, Runs, SamplingTimes, StepTimes, Synthetic, attention,
    group, matmul, median, peak, roofline, sampling, step,
};
use aweigh::error::{Error, Result};
use aweigh::files::Model;
use aweigh::gpu::{DType, Gpu, KernelTime, Options, Tier};
use aweigh::kernels::matmul::{Dims, Form};
use aweigh::model::TargetModules;
use aweigh::model::{Decoder, DecoderConfig, LoraSpec, Training};
use aweigh::run::OpenGpu;
use aweigh_app::messages::Messages;
use aweigh_app::open::fetch;

/// Measure how fast this GPU runs the engine.
///
/// Measures single kernels, as a share of the GPU's own measured peak, and whole training and sampling steps.
/// Every figure is the median of --runs runs, after a first run that compiles shaders and does not count.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to measure; without it, all but "step-full", which needs 16 bytes of memory per parameter, and
    /// "roofline"
    #[arg(value_enum, value_name = "WHAT")]
    pub what: Vec<What>,
    /// Model for the whole steps: a directory in Hugging Face's layout, "tiny", or "smollm2-135m" for the
    /// shapes of that model with random weights
    #[arg(long, value_name = "DIR|NAME", default_value = "smollm2-135m", help_heading = "Steps")]
    pub model: String,
    /// Tokens per sequence of training steps and of attention (at least 512 there)
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Steps")]
    pub tokens: usize,
    /// Sequences in a training step
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Steps")]
    pub batch: usize,
    /// Rows and columns of the square matrices
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub size: usize,
    /// Number of runs per measurement
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub runs: usize,
    /// Also measure the time of every kernel in the steps, if the GPU supports timestamps; this slows the
    /// steps down
    #[arg(long)]
    pub profile: bool,
    /// The report.
    #[command(flatten)]
    pub report: ReportArgs,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh bench
  aweigh bench matmul --size 4096
  aweigh bench step-full --model SmolLM2-135M-Instruct --batch 8 --tokens 512
  aweigh bench step --profile --json > figures.json
  aweigh bench matmul step-full sample --report bench.json   # to attach to an issue \"It ran on my GPU\"";

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Matrix products in the three layouts, f32 and bf16 weights
    Matmul,
    /// Causal attention, forward and backward
    Attention,
    /// A training step of a LoRA adapter: forward, loss, backward
    Step,
    /// A training step of all weights, in f32
    StepFull,
    /// A D²O group: a prompt of 96 tokens with 12 answers of 64 tokens, with and without sharing the prompt
    Group,
    /// Sampling 11 answers of 64 tokens to a prompt of 96 tokens: all at once, and one by one
    Sample,
    /// The least time that five well-known GPUs could take for the training steps, on paper: nothing is
    /// measured
    Roofline,
}

const DEFAULT: [What; 5] = [What::Matmul, What::Attention, What::Step, What::Group, What::Sample];

/// Runs the measurements.
///
/// # Errors
/// [`Error::Input`] for invalid flags or files; GPU errors.
pub fn run(args: Args, output: &Output) -> Result<()> {
    for (flag, value) in [("--runs", args.runs), ("--size", args.size), ("--batch", args.batch)] {
        at_least_one(flag, value)?;
    }
    if args.tokens < 2 {
        let fix = "give 2 or more: the first token is not predicted";
        return Err(Error::input("--tokens", "at least 2", args.tokens, fix));
    }
    args.report.check()?;
    let model = ModelSource::open(&args.model, output)?;
    let options = Options { profile: args.profile, ..args.gpu.options() };
    let gpu = OpenGpu::open(&options, !args.gpu.no_tuning)?;
    let summary = gpu.summary();
    output.note(format_args!("GPU {}; {}", open::gpu_text(&gpu), summary.driver));
    if args.profile && gpu.kernel_times().is_none() {
        output.warn("this GPU does not support timestamps: the times of single kernels are left out");
    }
    let what = if args.what.is_empty() { DEFAULT.to_vec() } else { args.what.clone() };
    let mut bench = Bench { gpu: &gpu, args: &args, model, output, peak: None };
    let mut figures = Figures::new(&gpu, &args);
    for what in what {
        interrupt::check()?;
        gpu.ledger().restart_peaks();
        bench.measure(what, &mut figures)?;
        let name = what.to_possible_value().map(|value| value.get_name().to_string());
        if what != What::Roofline {
            figures.memory_peak_bytes.insert(name.unwrap_or_default(), gpu.ledger().total().peak);
        }
    }
    args.report.write(&Figures { model: without_folders(&args.model), ..figures.clone() }, output)?;
    output.result(figures.human(), &figures)
}

/// The model for the steps: files, or random weights.
pub(crate) enum ModelSource {
    Files(Model),
    Synthetic(Synthetic),
}

impl ModelSource {
    pub fn open(name: &str, output: &Output) -> Result<Self> {
        match Synthetic::named(name)? {
            Some(synthetic) => Ok(Self::Synthetic(synthetic)),
            None => Ok(Self::Files(fetch(name, true, &mut output.downloads())?)),
        }
    }

    /// The configuration, and the type of the largest tensor.
    pub fn shape(&self) -> Result<(DecoderConfig, DType)> {
        match self {
            Self::Files(model) => {
                let bytes = model.bytes();
                let config = DecoderConfig::parse(bytes.config, bytes.name)?;
                let weights = bytes.weights()?;
                let largest =
                    config.tensors().into_iter().max_by_key(|(_, shape)| shape.iter().product::<usize>());
                let dtype =
                    largest.map(|(name, shape)| weights.get(&name, &shape).map(|stored| stored.dtype));
                Ok((config, dtype.transpose()?.unwrap_or(DType::F32)))
            }
            Self::Synthetic(synthetic) => Ok((synthetic.config()?, DType::F32)),
        }
    }

    fn decoder(&self, gpu: &Gpu, training: Training) -> Result<Decoder> {
        match self {
            Self::Files(model) => model.bytes().decoder(gpu, training),
            Self::Synthetic(synthetic) => synthetic.decoder(gpu, training),
        }
    }
}

struct Bench<'a> {
    gpu: &'a Gpu,
    args: &'a Args,
    model: ModelSource,
    output: &'a Output,
    peak: Option<f64>,
}

impl Bench<'_> {
    fn measure(&mut self, what: What, figures: &mut Figures) -> Result<()> {
        let (gpu, runs) = (self.gpu, self.args.runs);
        match what {
            What::Matmul | What::Attention => {
                if self.peak.is_none() {
                    let found = block_on(peak(gpu, Runs::new(runs)))?;
                    self.peak = Some(found.median());
                    figures.peak = Some(found);
                }
                if what == What::Matmul {
                    self.matmuls(figures)?
                } else {
                    self.attentions(figures)?
                }
                // Discards these kernel times: only those of the steps are reported.
                gpu.kernel_times();
            }
            What::Step | What::StepFull => {
                let full = what == What::StepFull;
                self.output.note(if full { "training step, all weights" } else { "training step, LoRA" });
                let training = if full { Training::Full } else { Training::Lora(lora(), 0) };
                let decoder = self.model.decoder(gpu, training)?;
                let times =
                    block_on(step(gpu, decoder, (self.args.batch, self.args.tokens), runs, resident_bytes))?;
                let kernels = gpu.kernel_times();
                let figure = Step { times, kernels };
                if full { figures.step_full = Some(figure) } else { figures.step = Some(figure) }
            }
            What::Group => {
                self.output.note("D²O group, with and without sharing the prompt");
                let decoder = self.model.decoder(gpu, Training::Lora(lora(), 0))?;
                figures.group = Some(block_on(group(gpu, &decoder, (96, 12, 64), runs))?);
                gpu.kernel_times();
            }
            What::Sample => {
                self.output.note("sampling, together and one by one");
                let decoder = self.model.decoder(gpu, Training::None)?;
                figures.sample = Some(block_on(sampling(gpu, &decoder, (96, 11, 64), runs))?);
                figures.sample_kernels = gpu.kernel_times();
            }
            What::Roofline => figures.roofline = self.rooflines()?,
        }
        Ok(())
    }

    /// The least times of the LoRA step and of the step of all weights, with the kernels of GPUs.
    fn rooflines(&self) -> Result<BTreeMap<&'static str, Roofline>> {
        let counting = Arc::new(Counting::default());
        let witness = Some(counting.clone() as _);
        let options = Options { witness, tier: Some(Tier::Portable), ..self.args.gpu.options() };
        let gpu = OpenGpu::open(&options, false)?;
        let sizes = (self.args.batch, self.args.tokens);
        let of = |(name, training)| {
            let decoder = self.model.decoder(&gpu, training)?;
            Ok((name, roofline(&gpu, &counting, &decoder, sizes)?))
        };
        [("LoRA", Training::Lora(lora(), 0)), ("all weights", Training::Full)].into_iter().map(of).collect()
    }

    fn matmuls(&self, figures: &mut Figures) -> Result<()> {
        let n = self.args.size;
        let square = Dims { m: n, n, k: n };
        // The MLP of a 135M model on the tokens of a small batch.
        let real = Dims { m: 512, n: 1536, k: 576 };
        for dims in [square, real] {
            for (form, dtype) in [
                (Form::Nt, DType::F32),
                (Form::Nn, DType::F32),
                (Form::Tn, DType::F32),
                (Form::Nt, DType::Bf16),
                (Form::Nn, DType::Bf16),
            ] {
                interrupt::check()?;
                let rates = block_on(matmul(self.gpu, form, dtype, dims, Runs::new(self.args.runs)))?;
                let rates: Vec<_> = rates.into_iter().map(|(_, rate)| rate).collect();
                self.note(&rates);
                figures.rates.extend(rates);
            }
        }
        Ok(())
    }

    fn attentions(&self, figures: &mut Figures) -> Result<()> {
        let rates =
            block_on(attention(self.gpu, self.args.tokens.max(512), (9, 3, 64), Runs::new(self.args.runs)))?;
        self.note(&rates);
        figures.rates.extend(rates);
        Ok(())
    }

    fn note(&self, rates: &[Rate]) {
        for rate in rates {
            self.output.note(format_args!("{} {}: {:.1} GFLOP/s", rate.kernel, rate.shape, rate.gflops));
        }
    }
}

/// The adapter of the LoRA steps: align's defaults.
fn lora() -> LoraSpec {
    let target_modules = TargetModules::default();
    LoraSpec { r: 16, lora_alpha: 32.0, lora_dropout: 0.0, target_modules, ..LoraSpec::default() }
}

/// A training step's figures.
#[derive(Clone, Serialize)]
struct Step {
    #[serde(flatten)]
    times: StepTimes,
    /// Sums over all runs including the first; only with `--profile`.
    kernels: Option<Vec<KernelTime>>,
}

/// What `--json` prints.
#[derive(Clone, Serialize)]
struct Figures {
    version: &'static str,
    machine: Machine,
    gpu: String,
    backend: String,
    driver: String,
    model: String,
    runs: usize,
    peak: Option<Peak>,
    rates: Vec<Rate>,
    step: Option<Step>,
    step_full: Option<Step>,
    group: Option<GroupTimes>,
    sample: Option<SamplingTimes>,
    sample_kernels: Option<Vec<KernelTime>>,
    roofline: BTreeMap<&'static str, Roofline>,
    /// Peak size of all buffers on the GPU in bytes, by measurement.
    memory_peak_bytes: BTreeMap<String, u64>,
}

impl Figures {
    fn new(gpu: &Gpu, args: &Args) -> Self {
        let summary = gpu.summary();
        Self {
            version: VERSION,
            machine: Machine::this(),
            gpu: summary.name.clone(),
            backend: summary.backend.clone(),
            driver: summary.driver.clone(),
            model: args.model.clone(),
            runs: args.runs,
            peak: None,
            rates: Vec::new(),
            step: None,
            step_full: None,
            group: None,
            sample: None,
            sample_kernels: None,
            roofline: BTreeMap::new(),
            memory_peak_bytes: BTreeMap::new(),
        }
    }

    fn human(&self) -> String {
        let mut parts = Vec::new();
        if let Some(peak) = &self.peak {
            let peak = peak.median();
            let row = |rate: &Rate| {
                vec![
                    rate.kernel.clone(),
                    rate.shape.clone(),
                    format!("{:.1}", rate.gflops),
                    format!("{:.0}%", 100.0 * rate.gflops / peak),
                ]
            };
            let rows: Vec<_> = self.rates.iter().map(row).collect();
            parts.push(table(&["kernel", "shape", "GFLOP/s", "share of peak"], &rows));
            parts.push(format!("measured peak (multiply and add in registers): {peak:.1} GFLOP/s"));
        }
        for (name, step) in [("LoRA", &self.step), ("all weights", &self.step_full)] {
            let Some(Step { times, kernels }) = step else { continue };
            let seconds = median(&times.seconds);
            parts.push(format!(
                "training step, {name}: {} x {} tokens in {seconds:.3} s, {:.0} tokens/s (forward, loss \
                 {:.4}, backward: {} kernels)",
                times.batch,
                times.tokens,
                (times.batch * times.tokens) as f64 / seconds,
                times.loss,
                times.dispatches,
            ));
            let [first, last] = times.held;
            let process = first.process.zip(last.process).map_or(String::new(), |(first, last)| {
                format!("; the process {}, then {}", bytes(first), bytes(last))
            });
            parts.push(format!(
                "  memory after the first and the last of {} runs: buffers {}, then {}{process}",
                times.seconds.len(),
                bytes(first.device),
                bytes(last.device),
            ));
            parts.extend(kernels.as_deref().map(kernel_table));
        }
        if let Some(group) = &self.group {
            let (shared, separate) = (median(&group.shared), median(&group.separate));
            parts.push(format!(
                "D²O group of {} answers of {} tokens to a prompt of {}: {shared:.3} s with the prompt \
                 shared, {separate:.3} s without: {:.2} times faster; gradients differ by at most {:.1e} of \
                 the largest",
                group.answers,
                group.answer,
                group.prompt,
                separate / shared,
                group.gradient_difference,
            ));
        }
        if let Some(sample) = &self.sample {
            let (together, alone) = (median(&sample.together), median(&sample.one_by_one));
            parts.push(format!(
                "sampling {} answers of {} tokens: {together:.1} tokens/s at once, {alone:.1} tokens/s one \
                 by one: {:.1} times faster",
                sample.answers,
                sample.new_tokens,
                together / alone,
            ));
            parts.extend(self.sample_kernels.as_deref().map(kernel_table));
        }
        for (name, step) in &self.roofline {
            parts.push(format!(
                "on paper: training step, {name}, {} tokens, {} kernels, {:.1}e9 operations, {}",
                step.tokens,
                step.kernels,
                1e-9 * step.operations,
                bytes(step.bytes as u64),
            ));
            let row = |bound: &Bound| {
                vec![
                    bound.card.name.into(),
                    format!("{:.1}", bound.card.tflops),
                    format!("{:.0}", bound.card.gigabytes),
                    format!("{:.1} ms", 1e3 * bound.seconds),
                    format!("{:.0}", step.tokens as f64 / bound.seconds),
                    format!("{:.0}%", 100.0 * bound.memory),
                ]
            };
            let rows: Vec<_> = step.bounds.iter().map(row).collect();
            let head = ["GPU", "TFLOP/s", "GB/s", "at least", "tokens/s at most", "of it for memory"];
            parts.push(table(&head, &rows));
        }
        if !self.memory_peak_bytes.is_empty() {
            let peaks = self.memory_peak_bytes.iter().map(|(what, &peak)| format!("{what} {}", bytes(peak)));
            parts.push(format!("peak GPU memory: {}", peaks.collect::<Vec<_>>().join(", ")));
            parts.push(format!(
                "measured with {} ({}, {}) on {}",
                self.gpu, self.backend, self.driver, self.machine
            ));
        }
        parts.join("\n")
    }
}

/// The 12 kernels that took the most time.
fn kernel_table(kernels: &[KernelTime]) -> String {
    let total: f64 = kernels.iter().map(|k| k.seconds).sum();
    let row = |k: &KernelTime| {
        vec![
            k.kernel.clone(),
            k.calls.to_string(),
            format!("{:.1}", 1e3 * k.seconds),
            format!("{:.1}%", 100.0 * k.seconds / total),
        ]
    };
    table(&["kernel", "calls", "ms", "share"], &kernels.iter().take(12).map(row).collect::<Vec<_>>())
}

/// Resident memory of this process in bytes, if the system tells it.
fn resident_bytes() -> Option<u64> {
    let id = sysinfo::get_current_pid().ok()?;
    let (mut system, kind) = (sysinfo::System::new(), sysinfo::ProcessRefreshKind::nothing().with_memory());
    system.refresh_processes_specifics(sysinfo::ProcessesToUpdate::Some(&[id]), false, kind);
    system.process(id).map(sysinfo::Process::memory)
}
