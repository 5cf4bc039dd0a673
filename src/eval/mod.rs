//! Trained judges, word lists, comparisons and statistics, for `aweigh eval` and `aweigh judge`.

pub mod compare;
pub mod judge;
pub mod lexicon;
pub mod stats;
