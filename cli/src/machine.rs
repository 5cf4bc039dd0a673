//! The machine that a figure was measured on, and reports of how Aweigh ran there.

use std::path::{Path, PathBuf};

use aweigh::error::{Error, Result};
use aweigh::files::{refuse_existing, write_whole};
use aweigh::gpu::instruction_sets;
use serde::Serialize;

use crate::terminal::output::Output;
use crate::terminal::text::to_stderr;

/// This program's version, with commit, target and wgpu's version.
pub const VERSION: &str = env!("AWEIGH_VERSION");

/// Flags of the commands that can write a report.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct ReportArgs {
    /// Also write the figures to FILE, as JSON to attach to an issue: GPU, driver, processor, system, version
    /// and what was measured; of a model's path only the last part. It is shown before it is written
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

impl ReportArgs {
    /// Fails at once if the report could not be written at the end.
    ///
    /// # Errors
    /// [`Error::Input`] if the file exists, or its folder does not.
    pub fn check(&self) -> Result<()> {
        self.report.as_deref().map_or(Ok(()), |path| {
            refuse_existing(path, "--report", false).map_err(|error| match error {
                // There is no --overwrite.
                Error::Input { place, expected, found, .. } if path.exists() => {
                    Error::input(place, expected, found, "give another name")
                }
                other => other,
            })
        })
    }

    /// Shows the report on stderr and writes it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, figures: &impl Serialize, output: &Output) -> Result<()> {
        let Some(path) = &self.report else { return Ok(()) };
        let text = serde_json::to_string_pretty(figures).unwrap_or_default() + "\n";
        to_stderr(format_args!("The report:\n{text}"));
        write_whole(path, text.as_bytes())?;
        output
            .note(format_args!("written to {}; attach it to an issue \"It ran on my GPU\"", path.display()));
        Ok(())
    }
}

/// A model's name for reports: of a path, only the last part.
pub fn without_folders(model: &str) -> String {
    Path::new(model).file_name().map_or_else(|| model.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The processor and the system. How fast a software adapter is depends on the instruction sets.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name, as it gives it.
    pub processor: String,
    /// Cores that this program may use.
    pub cores: usize,
    /// Those instruction sets of the processor that decide how fast a software adapter is.
    pub instruction_sets: Vec<&'static str>,
    /// The operating system and the architecture.
    pub system: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let cpus = sysinfo::CpuRefreshKind::nothing();
        let system = sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_cpu(cpus));
        let processor = system.cpus().first().map_or("", |cpu| cpu.brand()).trim();
        Self {
            processor: if processor.is_empty() { "unknown".into() } else { processor.into() },
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            instruction_sets: instruction_sets(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { processor, cores, instruction_sets, system } = self;
        write!(f, "{processor} ({}), {cores} cores, {system}", instruction_sets.join(", "))
    }
}
