//! The main job from Rust: align a model away from flagged answers and write a PEFT adapter.
//!
//!     cargo run --release --example align -- MODEL_DIR flagged.jsonl adapter_model.safetensors

use aweigh::config::RunConfig;
use aweigh::files::Model;
use aweigh::gpu::{Gpu, Options};
use aweigh::train::{Inputs, Unwatched, align};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, output] = arguments.as_slice() else {
        return Err("usage: align MODEL_DIR|tiny DATA.jsonl OUTPUT.safetensors".into());
    };
    let model = Model::open(model)?;
    let rows = std::fs::read(data)?;
    let mut config = RunConfig::default();
    config.method.num_samples = 4;
    config.train.max_steps = Some(8);
    pollster::block_on(async {
        let gpu = Gpu::open(&Options::default()).await?;
        let prepared = Inputs::new(model.bytes(), (data.as_str(), rows.as_slice())).prepare(&gpu, &config)?;
        let outcome = align(&gpu, prepared.setup, &config, &mut Unwatched).await?;
        println!("{} steps: {}", outcome.steps, outcome.reason);
        std::fs::write(output, outcome.decoder.trained_safetensors(&gpu).await?)?;
        Ok(())
    })
}
