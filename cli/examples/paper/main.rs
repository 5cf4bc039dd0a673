//! The paper's comparison in miniature: D²O against the methods of its table.
//!
//!     cargo run --release --example paper -- tiny [DIR]
//!     cargo run --release --example paper -- tuned [DIR]
//!     cargo run --release --example paper -- choices [DIR]
//!     cargo run --release --example paper -- smollm2 MODEL DATA [DIR]
//!
//! `tiny`: the help desk, with three seeds. The data are 256 prompts of its training split, each with a
//! hostile answer and a positive. The positive is hostile too for 34% of the prompts, as in the paper's data.
//! Every method has the same 60 steps of 8 prompts at the same rate, and every tenth step is measured on 200
//! held-out prompts. Each finished run is a line of DIR/runs.jsonl (DIR is `paper-results` by default); runs
//! that are already in the file are not run again. Charts (SVG) and a table of the means over the seeds are
//! written beside it.
//!
//! `tuned`: the help desk again, with fewer pairs, and every method at the learning rate and the step that
//! suit it best; see [`tuned`].
//!
//! `choices`: the help desk once more, with each option for anchors and negatives; see [`choices`].
//!
//! `smollm2`: the same comparison with a real model and answers that people flagged; see [`smollm2`].

mod choices;
mod marks;
mod negatives;
mod plots;
mod smollm2;
mod tiny;
mod tuned;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aweigh::Result;
use aweigh::files::Lines;
use aweigh::gpu::{Gpu, Options};
use pollster::block_on;

type Any<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> Any<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let folder = |given: Option<&&str>| -> Any<PathBuf> {
        let folder = PathBuf::from(given.unwrap_or(&"paper-results"));
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    };
    match args.as_slice() {
        ["tiny", rest @ ..] if rest.len() < 2 => {
            let runs = folder(rest.first())?.join("runs.jsonl");
            let gpu = block_on(Gpu::open(&Options::default()))?;
            println!("{}", gpu.summary().name);
            tiny::run(&gpu, &runs)?;
            plots::write(&runs, &tiny::charts())
        }
        ["tuned", rest @ ..] if rest.len() < 2 => {
            let runs = folder(rest.first())?.join("tuned.jsonl");
            let gpu = block_on(Gpu::open(&Options::default()))?;
            println!("{}", gpu.summary().name);
            tuned::run(&gpu, &runs)
        }
        ["choices", rest @ ..] if rest.len() < 2 => {
            let runs = folder(rest.first())?.join("choices.jsonl");
            let gpu = block_on(Gpu::open(&Options::default()))?;
            println!("{}", gpu.summary().name);
            choices::run(&gpu, &runs)
        }
        ["smollm2", model, data, rest @ ..] if rest.len() < 2 => {
            smollm2::run(model, Path::new(data), &folder(rest.first())?)
        }
        _ => {
            Err("say what to compare on: tiny [DIR], tuned [DIR], choices [DIR], or smollm2 MODEL DATA [DIR]"
                .into())
        }
    }
}

/// The lines of an earlier, perhaps interrupted, comparison. A line that was cut off is removed.
fn finished(path: &Path) -> Any<Vec<serde_json::Value>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    Lines::resume(path.into(), |_| true)?;
    std::fs::read_to_string(path)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Adds a line to the file.
fn append(path: &Path, line: &impl serde::Serialize) -> Any<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(writeln!(file, "{}", serde_json::to_string(line)?)?)
}
