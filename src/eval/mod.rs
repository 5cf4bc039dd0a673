//! Meters: what a run did to the model's answers, and how sure that is.

pub mod compare;
pub mod helpdesk;
pub mod judge;
pub mod lexicon;
pub mod stats;
