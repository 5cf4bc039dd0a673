//! The fastest variant of a kernel for each shape, as measured on one adapter.

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

/// The measurements for one shape class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The fastest variant.
    pub variant: String,
    /// The default variant, used without measurements.
    pub guess: String,
    /// Floating-point operations of one call.
    pub operations: f64,
    /// The median seconds of every variant.
    pub seconds: BTreeMap<String, f64>,
}

impl Tuning {
    /// For this adapter, without any choices yet.
    pub fn new(summary: &AdapterSummary) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: summary.name.clone(),
            backend: summary.backend.clone(),
            driver: summary.driver.clone(),
            choices: BTreeMap::new(),
        }
    }

    /// Whether the measurements were made on this adapter, with this driver and this version's kernels.
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
