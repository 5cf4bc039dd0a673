//! Resumes an interrupted run from its last checkpoint. The result is that of an uninterrupted run.
//!
//!     cargo run --release --example resume -- RUN_DIR

use aweigh::config::Layer;
use aweigh::files::RunFolder;
use aweigh::run::{Place, RunFiles};
use aweigh::train::Unwatched;
use aweigh::{RunConfig, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: resume RUN_DIR")?;
    // This locks the folder: no other run can write to it.
    let place = Place::Resume(RunFolder::resume(folder.as_ref(), "RUN_DIR")?);
    let settings = format!("{folder}/config.toml");
    let text = std::fs::read_to_string(&settings)?;
    let mut config = RunConfig::resolve(vec![Layer::from_toml(&text, &settings)?])?;
    config.output.output_dir = folder.into();
    let files = RunFiles::open(&config)?;
    let finished = run(&files, config, place, &mut Unwatched)?;
    println!("{} steps: {}", finished.summary.steps, finished.summary.reason_text);
    Ok(())
}
