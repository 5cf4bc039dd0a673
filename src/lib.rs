//! Aligns small language models away from flagged answers, on any GPU: WGSL compute shaders, driven through
//! wgpu.
//!
//! ```no_run
//! use aweigh::config::RunConfig;
//! use aweigh::files::Model;
//! use aweigh::gpu::{Gpu, Options};
//! use aweigh::train::{Inputs, Unwatched, align};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("SmolLM2-135M-Instruct")?;
//! let rows = std::fs::read("flagged.jsonl")?;
//! let config = RunConfig::default();
//! pollster::block_on(async {
//!     let gpu = Gpu::open(&Options::default()).await?;
//!     let inputs = Inputs::new(model.bytes(), ("flagged.jsonl", &rows));
//!     let prepared = inputs.prepare(&gpu, &config)?;
//!     let outcome = align(&gpu, prepared.setup, &config, &mut Unwatched).await?;
//!     println!("{} steps: {}", outcome.steps, outcome.reason);
//!     std::fs::write("adapter_model.safetensors", outcome.decoder.trained_safetensors(&gpu).await?)?;
//!     Ok(())
//! })
//! # }
//! ```
//!
//! The method is D²O: Duan et al., "Negating Negatives: Alignment with Human Negative Samples via
//! Distributional Dispreference Optimization", [arXiv 2403.03419](https://arxiv.org/abs/2403.03419).
//! ARCHITECTURE.md in the repository shows the way of a batch through the modules below.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod assets;
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
pub mod sample;
pub mod score;
pub mod selftest;
pub mod shader;
pub mod train;

pub use error::{Error, Result};
