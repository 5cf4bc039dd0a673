//! Aweigh.
#![deny(unsafe_code)]
pub mod assets;
pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod eval;
pub mod files;
pub mod gpu;
pub mod kernels;
pub mod loss;
pub mod model;
pub mod nn;
pub mod optim;
pub mod reference;
pub mod sample;
pub mod selftest;
pub mod shader;
pub mod train;
pub use error::{Error, Result};
