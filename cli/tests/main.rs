//! The program as a user meets it: the real binary on real files. A file for each command; and flags.rs and
//! inputs.rs for what all commands say of wrong input (exit code 2, one clear message, nothing written),
//! models.rs and hub.rs for the models that they read, resume.rs for runs that are cut off.

// Tests that send signals are for Unix.
#![cfg_attr(windows, allow(unused_imports))]

mod align;
mod answers;
mod app;
mod bench;
mod data;
mod demo;
mod devices;
mod documents;
mod eval;
mod export;
mod flags;
mod generate;
mod hub;
mod inputs;
mod inspect;
mod judge;
mod mark;
mod models;
mod plan;
mod report;
mod resume;
mod room;
mod sample;
mod score;
mod selftest;
mod serve;
mod server;
mod weights;
