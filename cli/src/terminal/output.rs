//! What a command prints: figures on stdout (a table, or one JSON object), everything else on stderr.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::terminal::progress::{Progress, Unit};
use aweigh::error::{Error, Result};
use aweigh::files::hub::Download;

/// How this process speaks.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    terminal: bool,
}

impl Output {
    /// Figures as JSON or as text; notes and progress or not. Progress is drawn only where stderr is a
    /// terminal.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, terminal: io::stderr().is_terminal() }
    }

    /// Whether figures are wanted as JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether notes and progress are unwanted.
    pub fn quiet(&self) -> bool {
        self.quiet
    }

    /// A line on stderr, unless `--quiet`.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            to_stderr(text);
        }
    }

    /// A line on stderr that begins with "warning:", always.
    pub fn warn(&self, text: impl Display) {
        to_stderr(format_args!("warning: {text}"));
    }

    /// The command's figures: `human` on stdout, or with `--json` the one JSON object. Call it once, at the
    /// end.
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

    /// Text on stdout as it comes (an answer in a chat, rows of JSONL); nothing with `--json`, whose stdout
    /// is one object.
    ///
    /// # Errors
    /// [`Error::Io`] when stdout cannot be written to.
    pub fn text(&self, text: impl Display) -> Result<()> {
        if self.json { Ok(()) } else { self.write(format_args!("{text}")) }
    }

    /// A progress bar, or plain lines now and then where stderr is no terminal, or nothing with `--quiet`.
    pub fn progress(&self, label: &str, total: u64, unit: Unit) -> Progress {
        Progress::new(label, total, unit, !self.quiet, self.terminal)
    }

    /// A bar for each file that is downloaded.
    pub fn downloads(&self) -> impl FnMut(Download) + use<'_> {
        let mut current: Option<(String, u64, Progress)> = None;
        move |download| {
            let Download { file, done, total } = download;
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
        }
    }

    fn write(&self, text: std::fmt::Arguments) -> Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_fmt(text).and_then(|()| stdout.flush()).map_err(io_error)
    }
}

/// A closed stderr is no reason to stop.
pub(crate) fn to_stderr(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn io_error(source: io::Error) -> Error {
    Error::io("stdout", "write", source)
}

/// Lays `rows` out in columns under `headers`; columns that hold only numbers are flush right.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let unit = |text: &'_ str| {
        UNITS.iter().find_map(|unit| text.strip_suffix(unit)?.strip_suffix(' ').map(str::len))
    };
    let numeric = |text: &str| {
        let number = unit(text).map_or(text.trim_end_matches('%'), |end| &text[..end]);
        ["", "-"].contains(&text) || number.parse::<f64>().is_ok()
    };
    let mut lines = vec![String::new(); rows.len() + 1];
    for (column, header) in headers.iter().enumerate() {
        let mut cells = vec![(*header).to_owned()];
        cells.extend(rows.iter().map(|row| cell(row, column)));
        let width = cells.iter().map(|text| text.chars().count()).max().unwrap_or(0);
        let right = !rows.is_empty() && cells[1..].iter().all(|text| numeric(text));
        for (line, text) in lines.iter_mut().zip(&cells) {
            let gap = if column == 0 { "" } else { "  " };
            *line += &if right { format!("{gap}{text:>width$}") } else { format!("{gap}{text:<width$}") };
        }
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// A number with its thousands apart: `134,515,008`.
pub fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/// A byte count as a person reads it: `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    let step = (1..UNITS.len()).rev().find(|step| count >> (10 * step) > 0).unwrap_or(0);
    if step == 0 {
        format!("{count} bytes")
    } else {
        format!("{:.1} {}", count as f64 / (1u64 << (10 * step)) as f64, UNITS[step])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_words_left_and_numbers_right() {
        let rows = vec![vec!["one".into(), "1.5".into(), "a".into()], vec!["three".into(), "-10".into()]];
        assert_eq!(table(&["name", "n", "x"], &rows), "name     n  x\none    1.5  a\nthree  -10");
        let rows = vec![vec!["one".into(), "1.5 MiB".into()], vec!["two".into(), "-".into()]];
        assert_eq!(table(&["name", "size"], &rows), "name     size\none   1.5 MiB\ntwo         -");
        assert_eq!(table(&["name"], &[]), "name");
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(
            [count(0), count(999), count(1000), count(134_515_008)],
            ["0", "999", "1,000", "134,515,008"]
        );
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!([bytes(7), bytes(1536), bytes(3 << 30)], ["7 bytes", "1.5 KiB", "3.0 GiB"]);
    }
}
