//! Trained judges, word lists, comparisons and statistics, for `aweigh eval` and `aweigh judge`; and the
//! share of bad answers among unlabelled ones, alike prompts, and the faulty steps of an answer.

pub mod advantage;
pub mod clusters;
pub mod compare;
pub mod head;
pub mod judge;
pub mod lexicon;
pub mod mixture;
pub mod stats;
