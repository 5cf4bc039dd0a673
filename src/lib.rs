//! Aligns small language models away from flagged answers, on any GPU: WGSL compute shaders, driven through
//! wgpu.
//!
//! ```no_run
//! # #[cfg(feature = "files")]
//! # fn main() -> aweigh::Result<()> {
//! use aweigh::run::{Place, RunFiles};
//! use aweigh::train::Unwatched;
//! use aweigh::{RunConfig, run};
//!
//! let mut config = RunConfig::default();
//! config.model.model = "SmolLM2-135M-Instruct".into();
//! config.data.train = "flagged.jsonl".into();
//! config.output.output_dir = "run".into();
//! let files = RunFiles::open(&config)?;
//! let finished = run(&files, config, Place::New { overwrite: false }, &mut Unwatched)?;
//! println!("{} steps; run/adapter is what PEFT loads", finished.summary.steps);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "files"))]
//! # fn main() {}
//! ```
//!
//! The repository's `examples/` have a run on a background thread with pause and stop, resuming, and a chat.
//! The crate's root exports what most programs need; other items of the modules may change from version to
//! version. Features: `files` (on by default: folders, memory maps, runs and checkpoints on disk),
//! `hub` (models by their names on the Hugging Face Hub), `clap` (the settings as flags of a command line).
//! Without `files` the library takes and returns bytes: [`train::Inputs`] and [`train::align()`].
//!
//! The method is D²O: Duan et al., "Negating Negatives: Alignment with Human Negative Samples via
//! Distributional Dispreference Optimization", [arXiv 2403.03419](https://arxiv.org/abs/2403.03419).
//! ARCHITECTURE.md in the repository follows a batch through the modules below.

#![deny(unsafe_code)]
#![warn(missing_docs)]
// A tab has no threads: what belongs to the browser stays on its own.
#![cfg_attr(target_arch = "wasm32", allow(clippy::arc_with_non_send_sync))]

pub mod bench;
pub mod config;
pub mod data;
pub mod error;
pub mod eval;
#[cfg(feature = "files")]
pub mod files;
pub mod gpu;
pub mod kernels;
pub mod loss;
pub mod model;
pub mod nn;
pub mod optim;
pub mod paranoid;
pub mod reference;
pub mod rng;
#[cfg(feature = "files")]
pub mod run;
pub mod sample;
pub mod score;
pub mod selftest;
pub mod shader;
pub mod tiny;
pub mod train;

pub use config::RunConfig;
pub use error::{Error, Result};
#[cfg(feature = "files")]
pub use files::Model;
pub use gpu::Gpu;
#[cfg(feature = "files")]
pub use run::{Watcher, run};
pub use train::{Observer, Phase, Wish};
