//! `aweigh selftest`: does this GPU compute correctly?

use std::time::{Duration, Instant};

use pollster::block_on;
use serde::Serialize;

use crate::args::GpuArgs;
use crate::machine::{Machine, ReportArgs, VERSION};
use crate::open;
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::{Unit, seconds};
use crate::terminal::text::table;
use aweigh::error::{Error, Result};
use aweigh::gpu::{AdapterSummary, Gpu, Precision};
use aweigh::reference::compare::take_largest_error;
use aweigh::selftest::{Depth, Outcome, checks};

/// Check every kernel on this GPU against a reference in double precision.
///
/// Every kernel, forward and backward, and the gradients of a small model are compared with the same formulas
/// in double precision on the CPU. The verdict says whether this GPU and its driver can be trusted. Exit code
/// 1 means that they cannot.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Check only the smallest shapes, and on a software adapter only the kernels that a run would take:
    /// seconds instead of minutes
    #[arg(long)]
    pub quick: bool,
    /// The report.
    #[command(flatten)]
    pub report: ReportArgs,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh selftest
  aweigh selftest --report selftest.json
  aweigh selftest --quick --gpu llvmpipe --json";

/// Runs the self-test.
///
/// # Errors
/// [`Error::NoAdapter`], or [`Error::SelfTest`] if a result is wrong; the figures are printed first.
pub fn run(args: Args, output: &Output) -> Result<()> {
    args.report.check()?;
    let gpu = open::gpu(&args.gpu)?;
    output.note(format_args!("GPU {}; {}", open::gpu_text(&gpu), gpu.summary().driver));
    let figures = check(&gpu, args.quick, output)?;
    args.report.write(&figures, output)?;
    output.result(figures.human(), &figures)?;
    match figures.failed {
        0 => Ok(()),
        failed => Err(Error::SelfTest { failed, total: figures.checks.len(), adapter: figures.adapter() }),
    }
}

/// Runs all checks and prints a line to stderr for each.
fn check(gpu: &Gpu, quick: bool, output: &Output) -> Result<Figures> {
    let (all, depth) = (checks(), if quick { Depth::Quick } else { Depth::Full });
    let mut progress = output.progress("selftest", all.len() as u64, Unit::Items);
    let start = Instant::now();
    let mut rows = Vec::new();
    for check in all {
        interrupt::check()?;
        let began = Instant::now();
        take_largest_error();
        let outcome = block_on(check.run(gpu, depth));
        let row = CheckFigures::new(check.name, outcome, began.elapsed(), take_largest_error());
        progress.note(&row.line());
        progress.advance(1, 0);
        rows.push(row);
    }
    progress.finish();
    Ok(Figures { precision: gpu.precision(), ..Figures::new(gpu.summary(), quick, rows, start.elapsed()) })
}

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
struct CheckFigures {
    name: &'static str,
    passed: bool,
    /// The shape, the element, the expected and the found value, or the device's report.
    failure: Option<String>,
    seconds: f64,
    /// The largest error of an element, as a share of the largest element of its tensor; 0 where bits or
    /// counts are compared.
    largest_error: f64,
}

impl CheckFigures {
    fn new(name: &'static str, outcome: Outcome, time: Duration, largest_error: f64) -> Self {
        let failure = outcome.err().map(|failure| failure.0);
        Self { name, passed: failure.is_none(), failure, seconds: time.as_secs_f64(), largest_error }
    }

    fn line(&self) -> String {
        let verdict = if self.passed { "ok    " } else { "FAILED" };
        let error = match self.largest_error {
            0.0 => String::new(),
            error => format!(", errors up to {error:.0e} of the largest element"),
        };
        format!("{verdict}  {}  {}{error}", self.name, seconds(Duration::from_secs_f64(self.seconds)))
    }
}

/// What `--json` prints.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    version: &'static str,
    machine: Machine,
    gpu: AdapterSummary,
    precision: Precision,
    quick: bool,
    /// Whether every check passed, at `precision`.
    exact: bool,
    passed: usize,
    failed: usize,
    seconds: f64,
    checks: Vec<CheckFigures>,
}

impl Figures {
    fn new(gpu: &AdapterSummary, quick: bool, checks: Vec<CheckFigures>, time: Duration) -> Self {
        let passed = checks.iter().filter(|check| check.passed).count();
        Self {
            version: VERSION,
            machine: Machine::this(),
            gpu: gpu.clone(),
            precision: Precision::F32,
            quick,
            exact: passed == checks.len(),
            passed,
            failed: checks.len() - passed,
            seconds: time.as_secs_f64(),
            checks,
        }
    }

    /// The adapter's name, with backend and driver.
    fn adapter(&self) -> String {
        if self.gpu.driver.is_empty() {
            self.gpu.name.clone()
        } else {
            format!("{} ({}, {})", self.gpu.name, self.gpu.backend, self.gpu.driver)
        }
    }

    /// The verdict if all checks passed; otherwise the failures, as the error that follows has the verdict.
    fn human(&self) -> String {
        if self.exact {
            let (count, adapter) = (self.checks.len(), self.adapter());
            let time = seconds(Duration::from_secs_f64(self.seconds));
            let exact = match self.precision {
                Precision::F32 => "exact",
                Precision::F16 => "correct to f16 precision",
            };
            return format!(
                "All {count} checks passed on {adapter}: training on it is {exact}. It took {time}."
            );
        }
        let failures = self.checks.iter().filter_map(|c| Some(vec![c.name.to_owned(), c.failure.clone()?]));
        table(&["failed check", "what is wrong"], &failures.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aweigh::gpu::Tier;
    use aweigh::selftest::Failure;

    fn figures(outcomes: [Outcome; 2]) -> Figures {
        let gpu = AdapterSummary {
            index: 0,
            name: "Card".into(),
            backend: "Vulkan".into(),
            kind: "DiscreteGpu".into(),
            driver: "drv 1.2".into(),
            max_binding: 0,
            max_buffer: 0,
            workgroup_memory: 0,
            subgroup_size: None,
            shader_f16: false,
            cooperative_matrices: Vec::new(),
            tier: Tier::Portable,
        };
        let rows = ["one", "two"].into_iter().zip(outcomes);
        let rows = rows.map(|(name, outcome)| CheckFigures::new(name, outcome, Duration::from_secs(2), 0.0));
        Figures::new(&gpu, true, rows.collect(), Duration::from_secs(4))
    }

    #[test]
    fn the_verdict_names_the_adapter() {
        let good = figures([Ok(()), Ok(())]);
        assert!(good.exact);
        let verdict =
            "All 2 checks passed on Card (Vulkan, drv 1.2): training on it is exact. It took 4.0 s.";
        assert_eq!(good.human(), verdict);
        let rounded = Figures { precision: Precision::F16, ..good.clone() };
        assert!(rounded.human().contains("is correct to f16 precision."));
        assert_eq!(good.checks[0].line(), "ok      one  2.0 s");
    }

    #[test]
    fn failures_are_listed() {
        let bad = figures([Ok(()), Err(Failure("y: index 1: expected 2, found 3".into()))]);
        assert!(!bad.exact && bad.failed == 1 && bad.passed == 1);
        assert_eq!(bad.human(), "failed check  what is wrong\ntwo           y: index 1: expected 2, found 3");
        let error = Error::SelfTest { failed: 1, total: 2, adapter: bad.adapter() };
        assert!(
            error
                .to_string()
                .starts_with("1 of 2 checks failed on Card (Vulkan, drv 1.2): do not train on it")
        );
        assert_eq!(error.exit_code(), 1);
    }
}
