//! Progress on stderr: a bar on a terminal, otherwise a plain line every few seconds.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::terminal::text::{bytes, to_stderr};
use aweigh::train::{Forecast, Work, expected_length};

/// The unit of a progress count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Optimizer steps.
    Steps,
    /// Prompts, answers, rows.
    Items,
    /// Bytes.
    Bytes,
}

/// The time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// One progress display: count and total, tokens per second, time left, and a short message.
///
/// If it is dropped before [`Progress::finish`], for example because of an error, the bar is removed.
#[derive(Debug)]
pub struct Progress {
    label: String,
    unit: Unit,
    bar: Option<ProgressBar>,
    lines: bool,
    total: u64,
    position: u64,
    tokens: u64,
    words: String,
    start: Instant,
    last_line: Option<Instant>,
    /// Estimated milliseconds until the whole command ends, or one of the two constants below. Shared with
    /// the bar.
    left: Arc<AtomicU64>,
}

/// No estimate is expected from outside: the time left is extrapolated from this count's mean rate.
const OWN_MEAN: u64 = u64::MAX;
/// An estimate from [`Progress::left`] is expected, but none was given yet.
const NOT_YET: u64 = u64::MAX - 1;

impl Progress {
    /// If `shown` is false, nothing is printed. `terminal` selects the bar instead of plain lines.
    pub(crate) fn new(label: &str, total: u64, unit: Unit, shown: bool, terminal: bool) -> Self {
        let left = Arc::new(AtomicU64::new(OWN_MEAN));
        let bar = (shown && terminal).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style(unit, left.clone()));
            bar.set_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Self {
            label: label.into(),
            unit,
            bar,
            lines: shown && !terminal,
            total,
            position: 0,
            tokens: 0,
            words: String::new(),
            start: Instant::now(),
            last_line: None,
            left,
        }
    }

    /// Shows the time given to [`Progress::left`], and no time until it is called.
    pub fn told(self) -> Self {
        self.left.store(NOT_YET, Ordering::Relaxed);
        self
    }

    /// Sets the estimated seconds until the whole command ends, not only this count.
    pub fn left(&mut self, seconds: f64) {
        let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        self.left.store(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// Adds `count` finished items and their `tokens` tokens (0 if tokens do not apply).
    pub fn advance(&mut self, count: u64, tokens: u64) {
        self.position += count;
        self.tokens += tokens;
        if let Some(bar) = &self.bar {
            bar.set_message(self.message());
            bar.set_position(self.position);
        }
        // `finish` prints the last line.
        let more = self.position < self.total;
        if self.lines && more && self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            to_stderr(self.line());
        }
    }

    /// Sets the message after the count, as in "loss 0.61".
    pub fn words(&mut self, words: impl Into<String>) {
        self.words = words.into();
        if let Some(bar) = &self.bar {
            bar.set_message(self.message());
        }
    }

    /// Prints a separate line, above the bar if there is one.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| to_stderr(text)),
            None if self.lines => to_stderr(text),
            None => {}
        }
    }

    /// Tokens per second since the start.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Removes the bar and prints a final line.
    pub fn finish(mut self) {
        let line = format!("{} in {}", self.line_without_time(), seconds(self.start.elapsed()));
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            to_stderr(line);
        } else if self.lines {
            to_stderr(line);
        }
    }

    fn message(&self) -> String {
        let mut text = String::new();
        if self.tokens > 0 {
            let _ = write!(text, "{:.0} tokens/s  ", self.tokens_per_second());
        }
        text + &self.words
    }

    fn line_without_time(&self) -> String {
        let message = self.message();
        let count = |count: u64| match self.unit {
            Unit::Bytes => bytes(count),
            Unit::Steps | Unit::Items => count.to_string(),
        };
        let (position, total) = (count(self.position), count(self.total));
        let line = format!("{} {position}/{total}  {}", self.label, message.trim_end());
        line.trim_end().to_owned()
    }

    fn line(&self) -> String {
        let told = self.left.load(Ordering::Relaxed);
        let left = left(told, self.start.elapsed(), self.position, self.total);
        format!("{}  {left}", self.line_without_time()).trim_end().to_owned()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The bar's style. Its time left replaces indicatif's own, which follows only the last few positions: for
/// steps of several seconds the overall mean is steadier.
fn style(unit: Unit, told: Arc<AtomicU64>) -> ProgressStyle {
    let template = match unit {
        Unit::Bytes => "{prefix} {wide_bar} {bytes}/{total_bytes}  {left}  {msg}",
        Unit::Steps | Unit::Items => "{prefix} {wide_bar} {pos}/{len}  {left}  {msg}",
    };
    let left = move |state: &ProgressState, out: &mut dyn Write| {
        let told = told.load(Ordering::Relaxed);
        let _ = out.write_str(&left(told, state.elapsed(), state.pos(), state.len().unwrap_or(0)));
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("left", left)
}

/// The progress of a command that samples answers in several parts; it estimates the time left for all parts.
pub struct Course {
    part: usize,
    parts: usize,
    /// Answers to sample in total, each of at most `most` tokens. `answers` and `tokens` were sampled so far.
    wanted: usize,
    most: usize,
    answers: usize,
    tokens: usize,
    forecast: Forecast,
}

impl Course {
    /// For `wanted` answers of at most `most` tokens each, sampled in `parts` parts.
    pub fn new(parts: usize, wanted: usize, most: usize) -> Self {
        Self { part: 0, parts, wanted, most, answers: 0, tokens: 0, forecast: Forecast::default() }
    }

    /// Starts the next part and returns its name, as in "2 of 4".
    pub fn next_part(&mut self) -> String {
        self.part += 1;
        format!("{} of {}", self.part, self.parts)
    }

    /// Adds newly sampled `answers` and `tokens`, and updates `progress` with the time left for all parts.
    pub fn drew(&mut self, answers: usize, tokens: usize, progress: &mut Progress) {
        (self.answers, self.tokens) = (self.answers + answers, self.tokens + tokens);
        self.forecast.did(Work::Draw, tokens as f64);
        let all = self.wanted as f64 * expected_length(self.answers, self.tokens, self.most);
        self.forecast.set_left(Work::Draw, all - self.tokens as f64);
        if let Some(seconds) = self.forecast.left() {
            progress.left(seconds);
        }
        progress.advance(answers as u64, tokens as u64);
    }
}

/// The time left, for display; empty while it is not known.
fn left(told: u64, elapsed: Duration, done: u64, total: u64) -> String {
    match (told, done) {
        (NOT_YET, _) | (OWN_MEAN, 0) => String::new(),
        (OWN_MEAN, _) => {
            let rest = elapsed.mul_f64(total.saturating_sub(done) as f64 / done as f64);
            format!("{} left", seconds(rest))
        }
        _ => format!("about {} left in total", seconds(Duration::from_millis(told))),
    }
}

/// A duration for display: `3.2 s`, `4 min 05 s`, `2 h 07 min`.
pub fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    match whole {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        let text = |s: f64| seconds(Duration::from_secs_f64(s));
        assert_eq!(
            [text(3.21), text(59.0), text(245.0), text(7620.0)],
            ["3.2 s", "59 s", "4 min 05 s", "2 h 07 min"]
        );
    }

    #[test]
    fn a_line_has_the_count_the_speed_and_the_words() {
        let mut progress = Progress::new("train", 10, Unit::Steps, false, false);
        progress.words("loss 0.69");
        progress.advance(2, 100);
        let line = progress.line();
        assert!(line.starts_with("train 2/10  ") && line.contains("tokens/s  loss 0.69  "), "{line}");
        assert!(line.ends_with(" left"), "{line}");
        let mut progress = progress.told();
        assert!(progress.line().ends_with("loss 0.69"), "{}", progress.line());
        progress.left(65.0);
        assert!(progress.line().ends_with("  about 1 min 05 s left in total"), "{}", progress.line());
    }

    #[test]
    fn both_templates_parse() {
        for template in [
            "{prefix} {wide_bar} {bytes}/{total_bytes}  {left}  {msg}",
            "{prefix} {wide_bar} {pos}/{len}  {left}  {msg}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
