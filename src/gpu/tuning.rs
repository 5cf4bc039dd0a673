//! Which variant of a kernel is the fastest for a shape, as measured on one adapter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::AdapterSummary;

/// The measured choices of one adapter with one driver.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// The version of this crate whose kernels were measured.
    pub version: String,
    /// The adapter's name.
    pub adapter: String,
    /// Its backend.
    pub backend: String,
    /// Its driver, with the version.
    pub driver: String,
    /// The choice for each shape class, by the name that the kernels give the class.
    pub choices: BTreeMap<String, Choice>,
}

/// What was measured for one shape class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The fastest variant.
    pub variant: String,
    /// The variant that is used when nothing was measured.
    pub guess: String,
    /// Floating-point operations of one call.
    pub operations: f64,
    /// The median seconds of every variant.
    pub seconds: BTreeMap<String, f64>,
}

impl Tuning {
    /// No choices yet, for this adapter.
    pub fn new(summary: &AdapterSummary) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: summary.name.clone(),
            backend: summary.backend.clone(),
            driver: summary.driver.clone(),
            choices: BTreeMap::new(),
        }
    }

    /// Whether it was measured on this adapter, with this driver and these kernels.
    pub fn is_of(&self, summary: &AdapterSummary) -> bool {
        Self { choices: BTreeMap::new(), ..self.clone() } == Self::new(summary)
    }
}

impl Choice {
    /// How many times faster the choice is than the guess.
    pub fn gain(&self) -> f64 {
        let seconds = |variant: &str| self.seconds.get(variant).copied().unwrap_or(f64::NAN);
        seconds(&self.guess) / seconds(&self.variant)
    }
}
