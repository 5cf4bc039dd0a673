//! What a command prints: figures on stdout (a table, or one JSON object), everything else on stderr.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::terminal::progress::{Progress, Unit};
use crate::terminal::text::to_stderr;
use aweigh::error::{Error, Result};
use aweigh_app::messages::{self, Messages};

/// How a command prints: as text or JSON, quiet or not.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    terminal: bool,
}

impl Output {
    /// `json`: print figures as JSON. `quiet`: print no notes and no progress. Progress bars are drawn only
    /// if stderr is a terminal.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, terminal: io::stderr().is_terminal() }
    }

    /// Whether figures are printed as JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether notes and progress are turned off.
    pub fn quiet(&self) -> bool {
        self.quiet
    }

    /// Prints a line to stderr, unless `--quiet`.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            to_stderr(text);
        }
    }

    /// Prints a line that begins with "warning:" to stderr, even with `--quiet`.
    pub fn warn(&self, text: impl Display) {
        to_stderr(format_args!("warning: {text}"));
    }

    /// Prints the command's figures to stdout: `human`, or with `--json` the JSON object `figures`. Call it
    /// once, at the end.
    ///
    /// # Errors
    /// [`Error::Io`] when stdout cannot be written to.
    pub fn result(&self, human: impl Display, figures: &impl Serialize) -> Result<()> {
        if self.json {
            let text = serde_json::to_string(figures).map_err(|error| io_error(error.into()))?;
            self.write(format_args!("{text}\n"))
        } else {
            self.write(format_args!("{}\n", human.to_string().trim_end_matches('\n')))
        }
    }

    /// Prints text to stdout immediately (an answer in a chat, rows of JSONL). Prints nothing with `--json`,
    /// where stdout is one JSON object.
    ///
    /// # Errors
    /// [`Error::Io`] when stdout cannot be written to.
    pub fn text(&self, text: impl Display) -> Result<()> {
        if self.json { Ok(()) } else { self.write(format_args!("{text}")) }
    }

    /// A progress bar, plain lines every few seconds if stderr is not a terminal, or nothing with `--quiet`.
    pub fn progress(&self, label: &str, total: u64, unit: Unit) -> Progress {
        Progress::new(label, total, unit, !self.quiet, self.terminal)
    }

    fn write(&self, text: std::fmt::Arguments) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_fmt(text).and_then(|()| stdout.flush()).map_err(io_error)
    }
}

impl Messages for Output {
    fn note(&self, text: &dyn Display) {
        Self::note(self, text);
    }

    fn warn(&self, text: &dyn Display) {
        Self::warn(self, text);
    }

    fn downloads(&self) -> Box<messages::Progress<'_>> {
        let mut current: Option<(String, u64, Progress)> = None;
        Box::new(move |file, done, total| {
            if current.as_ref().is_none_or(|(name, ..)| name != file) {
                current = Some((file.into(), 0, self.progress(file, total, Unit::Bytes)));
            }
            let Some((_, before, progress)) = &mut current else { return };
            progress.advance(done.saturating_sub(*before), 0);
            *before = done;
            if done == total
                && let Some((.., progress)) = current.take()
            {
                progress.finish();
            }
        })
    }
}

fn io_error(source: io::Error) -> Error {
    Error::io("stdout", "write", source)
}
