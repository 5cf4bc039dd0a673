//! The commands, one file each.

pub mod align;
pub mod app;
pub mod bench;
pub mod completions;
pub mod data;
pub mod demo;
pub mod devices;
pub mod eval;
pub mod export;
pub mod generate;
pub mod inspect;
pub mod judge;
pub mod mark;
pub mod plan;
pub mod report;
pub mod sample;
pub mod score;
pub mod selftest;
pub mod serve;
