//! `aweigh selftest`: does this GPU compute correctly?

use std::time::{Duration, Instant};

use pollster::block_on;

use crate::args::GpuArgs;
use crate::machine::{Machine, ReportArgs, VERSION};
use crate::open;
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use crate::terminal::progress::{Unit, seconds};
use crate::terminal::text::table;
use aweigh::error::Result;
use aweigh::gpu::Gpu;
use aweigh::selftest::{CheckReport, Depth, Report, checks};

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
/// [`NoAdapter`](aweigh::Error::NoAdapter), or [`SelfTest`](aweigh::Error::SelfTest) if a result is wrong;
/// the figures are printed first.
pub fn run(args: Args, output: &Output) -> Result<()> {
    args.report.check()?;
    let gpu = open::gpu(&args.gpu)?;
    output.note(format_args!("GPU {}; {}", open::gpu_text(&gpu), gpu.summary().driver));
    let report = check(&gpu, args.quick, output)?;
    args.report.write(&report, output)?;
    output.result(human(&report), &report)?;
    report.error().map_or(Ok(()), Err)
}

/// Runs all checks and prints a line to stderr for each.
fn check(gpu: &Gpu, quick: bool, output: &Output) -> Result<Report<Machine>> {
    let (all, depth) = (checks(), if quick { Depth::Quick } else { Depth::Full });
    let mut progress = output.progress("selftest", all.len() as u64, Unit::Items);
    let start = Instant::now();
    let mut rows = Vec::new();
    for check in all {
        interrupt::check()?;
        let row = block_on(check.report(gpu, depth));
        progress.note(&line(&row));
        progress.advance(1, 0);
        rows.push(row);
    }
    progress.finish();
    let rows = (rows, start.elapsed().as_secs_f64());
    Ok(Report::new((VERSION, Machine::this()), (gpu.summary(), gpu.precision()), quick, rows))
}

/// A check's result in a line.
fn line(check: &CheckReport) -> String {
    let verdict = if check.passed { "ok    " } else { "FAILED" };
    let error = match check.largest_error {
        0.0 => String::new(),
        error => format!(", errors up to {error:.0e} of the largest element"),
    };
    format!("{verdict}  {}  {}{error}", check.name, seconds(Duration::from_secs_f64(check.seconds)))
}

/// The verdict if all checks passed; otherwise the failures, as the error that follows has the verdict.
fn human(report: &Report<Machine>) -> String {
    if report.exact {
        let time = seconds(Duration::from_secs_f64(report.seconds));
        return format!("{} It took {time}.", report.verdict());
    }
    let failures = report.checks.iter().filter_map(|c| Some(vec![c.name.to_owned(), c.failure.clone()?]));
    table(&["failed check", "what is wrong"], &failures.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aweigh::gpu::{AdapterSummary, Precision, Tier};
    use aweigh::selftest::{Failure, Outcome};

    fn report(outcomes: [Outcome; 2]) -> Report<Machine> {
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
        let rows = rows.map(|(name, outcome)| CheckReport::new(name, outcome, 2.0, 0.0)).collect();
        Report::new((VERSION, Machine::this()), (&gpu, Precision::F32), true, (rows, 4.0))
    }

    #[test]
    fn the_verdict_names_the_adapter() {
        let good = report([Ok(()), Ok(())]);
        assert!(good.exact && good.error().is_none());
        let verdict =
            "All 2 checks passed on Card (Vulkan, drv 1.2): training on it is exact. It took 4.0 s.";
        assert_eq!(human(&good), verdict);
        let rounded = Report { precision: Precision::F16, ..good.clone() };
        assert!(human(&rounded).contains("is correct to f16 precision."));
        assert_eq!(line(&good.checks[0]), "ok      one  2.0 s");
    }

    #[test]
    fn failures_are_listed() {
        let bad = report([Ok(()), Err(Failure("y: index 1: expected 2, found 3".into()))]);
        assert!(!bad.exact && bad.failed == 1 && bad.passed == 1);
        assert_eq!(human(&bad), "failed check  what is wrong\ntwo           y: index 1: expected 2, found 3");
        let error = bad.error().unwrap();
        assert!(
            error
                .to_string()
                .starts_with("1 of 2 checks failed on Card (Vulkan, drv 1.2): do not train on it")
        );
        assert_eq!((error.exit_code(), bad.verdict()), (1, error.to_string()));
    }
}
