//! Estimates the time left of a run over all phases: the work left of each kind, times its measured cost. A
//! cost that is not measured yet is derived from one that is.

use web_time::Instant;

/// A kind of work, with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Sampling many answers at a time, in sampled tokens.
    Draw,
    /// Scoring answers, in packed tokens.
    Score,
    /// Optimizer steps, in packed tokens.
    Train,
    /// Sampling the answers of an evaluation, in sampled tokens.
    Answer,
}

/// Time per token of each kind of [`Work`] relative to [`Work::Draw`], used until that kind is measured. From
/// SmolLM2-135M on llvmpipe.
const COSTS: [f64; 4] = [1.0, 0.5, 1.2, 1.0];

/// Work of one kind: units left, units done, and the seconds these took.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    left: f64,
    done: f64,
    seconds: f64,
    /// Units and seconds of the first piece, which includes compiling kernels.
    first: (f64, f64),
}

impl Part {
    fn add(&mut self, units: f64, seconds: f64) {
        self.done += units;
        self.seconds += seconds;
        self.left = (self.left - units).max(0.0);
        if self.first.0 == 0.0 {
            self.first = (self.done, self.seconds);
        }
    }

    /// Seconds per unit, without the first piece.
    fn rate(&self) -> Option<f64> {
        let (units, seconds) = (self.done - self.first.0, self.seconds - self.first.1);
        (units > 0.0).then(|| seconds / units)
    }
}

/// Work that depends on the length of answers that are not sampled yet: tokens without these answers, and the
/// number of times that such an answer occurs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Growing {
    pub tokens: f64,
    pub answers: f64,
}

impl Growing {
    fn at(self, length: f64) -> f64 {
        self.tokens + self.answers * length
    }

    pub fn times(self, factor: f64) -> Self {
        Self { tokens: factor * self.tokens, answers: factor * self.answers }
    }

    pub fn plus(self, other: Self) -> Self {
        Self { tokens: self.tokens + other.tokens, answers: self.answers + other.answers }
    }
}

/// The work left in a run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Expected {
    pub draw: Growing,
    pub score: Growing,
    pub train: Growing,
    pub answer: Growing,
}

impl Expected {
    /// Sets the work left in `forecast`, for future answers of `length` tokens.
    pub fn apply(&self, forecast: &mut Forecast, length: f64) {
        forecast.set_left(Work::Draw, self.draw.at(length));
        forecast.set_left(Work::Score, self.score.at(length));
        forecast.set_left(Work::Train, self.train.at(length));
        forecast.set_left(Work::Answer, self.answer.at(length));
    }
}

/// Estimates the time left; it becomes more accurate as work is done.
#[derive(Debug)]
pub struct Forecast {
    parts: [Part; 4],
    last: Instant,
}

impl Default for Forecast {
    fn default() -> Self {
        Self { parts: Default::default(), last: Instant::now() }
    }
}

impl Forecast {
    /// Sets the units left of `work`.
    pub fn set_left(&mut self, work: Work, units: f64) {
        self.parts[work as usize].left = units.max(0.0);
    }

    /// Records that `units` of `work` were done since the last call.
    pub fn did(&mut self, work: Work, units: f64) {
        let now = Instant::now();
        self.parts[work as usize].add(units, (now - self.last).as_secs_f64());
        self.last = now;
    }

    /// Seconds left; `None` until a second piece of any kind is done, because the first one's time includes
    /// compilation.
    pub fn left(&self) -> Option<f64> {
        // Costs of kinds not measured yet are derived from the kind that has taken the longest.
        let rates = (0..4).filter_map(|i| Some((i, self.parts[i].rate()?)));
        let (known, rate) =
            rates.max_by(|a, b| self.parts[a.0].seconds.total_cmp(&self.parts[b.0].seconds))?;
        let of = |i: usize| {
            let part = &self.parts[i];
            part.left * part.rate().unwrap_or(rate * COSTS[i] / COSTS[known])
        };
        Some((0..4).map(of).sum())
    }
}

/// Expected tokens per answer, given `answers` finished and `tokens` sampled so far and at most `most` tokens
/// per answer. Assumes that each token is the last with the same probability, `answers / tokens`.
pub fn expected_length(answers: usize, tokens: usize, most: usize) -> f64 {
    let most = most as f64;
    let chance = answers as f64 / tokens.max(1) as f64;
    // If nearly all answers reach the limit, the limit and not an end token ends them.
    if chance * most < 1.1 {
        return most;
    }
    (1.0 - (1.0 - chance).max(0.0).powf(most)) / chance
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(parts: [(f64, f64, f64); 4]) -> Option<f64> {
        let parts = parts.map(|(left, done, seconds)| Part { left, done, seconds, ..Part::default() });
        Forecast { parts, ..Forecast::default() }.left()
    }

    #[test]
    fn what_is_known_of_one_kind_stands_for_the_others() {
        assert_eq!(after([(10.0, 0.0, 0.0); 4]), None);
        // Two seconds per sampled token; the other kinds by their costs.
        let guessed = after([(10.0, 5.0, 10.0), (10.0, 0.0, 0.0), (10.0, 0.0, 0.0), (0.0, 0.0, 0.0)]);
        assert_eq!(guessed, Some(10.0 * 2.0 + 10.0 * 2.0 * 0.5 + 10.0 * 2.0 * 1.2));
        let known = after([(0.0, 5.0, 10.0), (0.0, 1.0, 1.0), (10.0, 2.0, 1.0), (0.0, 0.0, 0.0)]);
        assert_eq!(known, Some(5.0));
    }

    #[test]
    fn the_first_piece_of_a_kind_does_not_count_once_there_is_another() {
        let mut part = Part { left: 10.0, ..Part::default() };
        part.add(1.0, 100.0);
        assert_eq!(part.rate(), None);
        part.add(2.0, 4.0);
        assert_eq!((part.rate(), part.left), (Some(2.0), 7.0));
    }

    #[test]
    fn work_that_is_done_is_no_longer_left() {
        let mut forecast = Forecast::default();
        forecast.set_left(Work::Train, 10.0);
        forecast.did(Work::Train, 4.0);
        assert_eq!((forecast.parts[2].left, forecast.parts[2].done), (6.0, 4.0));
        assert_eq!(forecast.left(), None);
        forecast.did(Work::Train, 40.0);
        assert_eq!(forecast.left(), Some(0.0));
    }

    #[test]
    fn lengths_follow_from_what_is_drawn() {
        assert_eq!(expected_length(0, 0, 128), 128.0);
        assert_eq!(expected_length(0, 5000, 128), 128.0);
        // All were cut.
        assert_eq!(expected_length(10, 1280, 128), 128.0);
        // One token in twenty is the last.
        let found = expected_length(50, 1000, 128);
        assert!((found - 20.0).abs() < 0.1, "{found}");
        assert!((expected_length(1000, 1000, 128) - 1.0).abs() < 1e-9);
    }
}
