//! The result of a self-test, as it is shown and written to a file.

use serde::Serialize;
use web_time::Instant;

use super::{Check, Depth, Outcome};
use crate::error::Error;
use crate::gpu::{AdapterSummary, Gpu, Precision};
use crate::reference::compare::take_largest_error;

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// The check's name.
    pub name: &'static str,
    /// Whether all results agree with the reference.
    pub passed: bool,
    /// The shape, the element, the expected and the found value, or the device's report.
    pub failure: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// The largest error of an element, as a share of the largest element of its tensor; 0 where bits or
    /// counts are compared.
    pub largest_error: f64,
}

impl CheckReport {
    /// The report of a check with this outcome.
    pub fn new(name: &'static str, outcome: Outcome, seconds: f64, largest_error: f64) -> Self {
        let failure = outcome.err().map(|failure| failure.0);
        Self { name, passed: failure.is_none(), failure, seconds, largest_error }
    }
}

impl Check {
    /// Runs the check on `gpu`, and measures its time and its largest error.
    pub async fn report(&self, gpu: &Gpu, depth: Depth) -> CheckReport {
        let began = Instant::now();
        take_largest_error();
        let outcome = self.run(gpu, depth).await;
        CheckReport::new(self.name, outcome, began.elapsed().as_secs_f64(), take_largest_error())
    }
}

/// The result of a self-test. `M` describes the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Report<M> {
    /// The program's version, commit and target.
    pub version: &'static str,
    /// The machine.
    pub machine: M,
    /// The GPU.
    pub gpu: AdapterSummary,
    /// Whether products round their inputs.
    pub precision: Precision,
    /// Whether only the smallest shapes were checked.
    pub quick: bool,
    /// Whether every check passed, at `precision`.
    pub exact: bool,
    /// The number of checks that passed.
    pub passed: usize,
    /// The number of checks that failed.
    pub failed: usize,
    /// How long it took.
    pub seconds: f64,
    /// The checks.
    pub checks: Vec<CheckReport>,
}

impl<M> Report<M> {
    /// The report of `checks` on a GPU.
    pub fn new(
        (version, machine): (&'static str, M),
        (gpu, precision): (&AdapterSummary, Precision),
        quick: bool,
        (checks, seconds): (Vec<CheckReport>, f64),
    ) -> Self {
        let passed = checks.iter().filter(|check| check.passed).count();
        Self {
            version,
            machine,
            gpu: gpu.clone(),
            precision,
            quick,
            exact: passed == checks.len(),
            passed,
            failed: checks.len() - passed,
            seconds,
            checks,
        }
    }

    /// The adapter's name, with backend and driver.
    pub fn adapter(&self) -> String {
        let AdapterSummary { name, backend, driver, .. } = &self.gpu;
        if driver.is_empty() { name.clone() } else { format!("{name} ({backend}, {driver})") }
    }

    /// Why this GPU cannot be trusted; `None` if all checks passed.
    pub fn error(&self) -> Option<Error> {
        let total = self.checks.len();
        (!self.exact).then(|| Error::SelfTest { failed: self.failed, total, adapter: self.adapter() })
    }

    /// The verdict in words.
    pub fn verdict(&self) -> String {
        let exact = match self.precision {
            Precision::F32 => "exact",
            Precision::F16 => "correct to f16 precision",
        };
        let (all, adapter) = (self.checks.len(), self.adapter());
        let passed = || format!("All {all} checks passed on {adapter}: training on it is {exact}.");
        self.error().map_or_else(passed, |error| error.to_string())
    }
}
