//! `aweigh devices`: lists the adapters and their features, and tunes one.

use std::io::Write;

use pollster::block_on;

use crate::args::GpuArgs;
use crate::commands::bench::ModelSource;
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::Unit;
use crate::terminal::text::{bytes, table};
use aweigh::bench::{self, Runs, products};
use aweigh::error::{Error, Result};
use aweigh::files::cache;
use aweigh::gpu::{AdapterSummary, Choice, list_adapters, why_first};
use aweigh::run::OpenGpu;

/// List the GPUs that can be used, or measure which kernels are fastest on one.
///
/// --gpu takes the number in the first column, or part of the name. With --tune, every kernel that can
/// compute a model's matrix products is timed on one GPU, and all commands use the fastest from then on.
/// Results do not change.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Measure which kernels are fastest on the GPU, and save the choices for all commands
    #[arg(long)]
    pub tune: bool,
    /// With --tune: the model whose matrix shapes are measured, a directory in Hugging Face's layout, "tiny",
    /// or "smollm2-135m" for the shapes of that model
    #[arg(long, value_name = "DIR|NAME", default_value = "smollm2-135m")]
    pub model: String,
    /// The GPU to tune.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh devices
  aweigh devices --tune --model SmolLM2-135M-Instruct
  aweigh devices --json";

/// Lists the adapters, or tunes one.
///
/// # Errors
/// [`aweigh::error::Error::NoAdapter`] if there is none; for tuning, GPU errors.
pub fn run(args: Args, output: &Output) -> Result<()> {
    if args.tune {
        return tune(&args, output);
    }
    let devices = block_on(list_adapters(args.gpu.backend))?;
    let headers = [
        "gpu",
        "name",
        "kind",
        "backend",
        "driver",
        "largest binding",
        "workgroup memory",
        "subgroups",
        "f16",
        "cooperative matrices",
        "kernels",
    ];
    let rows: Vec<_> = devices.iter().map(row).collect();
    let mut text = table(&headers, &rows);
    let free = args.gpu.gpu.is_none() && args.gpu.backend.is_none();
    if let Some(why) = why_first(&devices, None).filter(|_| free) {
        text += &format!("\nwithout --gpu, commands use {} ({why})", devices[0].name);
    }
    output.result(text, &serde_json::json!({ "devices": devices }))
}

fn row(device: &AdapterSummary) -> Vec<String> {
    let subgroups = match device.subgroup_size {
        Some((least, most)) if least == most => least.to_string(),
        Some((least, most)) => format!("{least} to {most}"),
        None => "none".into(),
    };
    let matrices: Vec<String> = device.cooperative_matrices.iter().map(ToString::to_string).collect();
    vec![
        device.index.to_string(),
        device.name.clone(),
        device.kind.clone(),
        device.backend.clone(),
        device.driver.clone(),
        bytes(device.max_binding),
        bytes(u64::from(device.workgroup_memory)),
        subgroups,
        if device.shader_f16 { "yes" } else { "no" }.into(),
        if matrices.is_empty() { "none".into() } else { matrices.join(", ") },
        format!("{:?}", device.tier).to_lowercase(),
    ]
}

/// Runs of each measurement: few and short, as there are hundreds of measurements.
const RUNS: Runs = Runs { count: 3, seconds: 0.02 };

fn tune(args: &Args, output: &Output) -> Result<()> {
    let (config, dtype) = ModelSource::open(&args.model, output)?.shape()?;
    let gpu = OpenGpu::open_unmeasured(&args.gpu.options())?;
    let mut file = cache::tuning_file(gpu.summary())?;
    let products = products(&config, dtype);
    let mut progress = output.progress("measuring", products.len() as u64, Unit::Items);
    let mut found = block_on(bench::tune(&gpu, &products, RUNS, |class, choice| {
        let best = choice.seconds.get(&choice.variant).copied().unwrap_or(f64::NAN);
        progress.note(&format!(
            "{class}: {} ({:.1} GFLOP/s)",
            choice.variant,
            choice.operations / best * 1e-9
        ));
        progress.advance(1, 0);
        interrupt::check()
    }))?;
    progress.finish();
    let rows: Vec<_> = found.choices.iter().map(|(class, choice)| choice_row(class, choice)).collect();
    let text = table(&["product", "fastest kernel", "GFLOP/s", "speedup over the default"], &rows);
    // Keeps earlier choices, for the shapes of other models.
    if let Some(earlier) = cache::tuning(gpu.summary()).filter(|earlier| earlier.is_of(gpu.summary())) {
        let fresh = std::mem::replace(&mut found.choices, earlier.choices);
        found.choices.extend(fresh);
    }
    let path = file.path().to_path_buf();
    let json = serde_json::to_vec_pretty(&found).unwrap_or_default();
    file.write_all(&json).map_err(|error| Error::io(&path, "write", error))?;
    file.commit()?;
    output.result(format!("{text}\nsaved to {}", path.display()), &found)
}

fn choice_row(class: &str, choice: &Choice) -> Vec<String> {
    let best = choice.seconds.get(&choice.variant).copied().unwrap_or(f64::NAN);
    let gain = if choice.variant == choice.guess { "none".into() } else { format!("x {:.2}", choice.gain()) };
    let rate = format!("{:.1}", choice.operations / best * 1e-9);
    vec![class.to_string(), choice.variant.clone(), rate, gain]
}
