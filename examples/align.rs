//! Aligns a model away from flagged answers. Afterwards the run's folder has a PEFT adapter in adapter/.
//!
//!     cargo run --release --example align -- MODEL_DIR flagged.jsonl RUN_DIR

use aweigh::run::{Place, RunFiles};
use aweigh::train::Unwatched;
use aweigh::{RunConfig, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, output] = arguments.as_slice() else {
        return Err("usage: align MODEL_DIR|tiny DATA.jsonl RUN_DIR".into());
    };
    let mut config = RunConfig::default();
    config.model.model = model.clone();
    config.data.train = data.into();
    config.output.output_dir = output.into();
    config.method.num_samples = 4;
    config.train.max_steps = Some(8);
    let files = RunFiles::open(&config)?;
    let finished = run(&files, config, Place::New { overwrite: false }, &mut Unwatched)?;
    println!("{} steps: {}", finished.summary.steps, finished.summary.reason_text);
    Ok(())
}
