//! Meters: how a run changed the model's answers, and how certain that is.

pub mod compare;
pub mod judge;
pub mod lexicon;
pub mod stats;
