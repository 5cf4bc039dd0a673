//! The jobs of a batch and their seats: each has room in the cache for one context, and remembers what is in
//! it.

use super::SamplingParams;
use super::rows::{Drawn, Row};

/// A request: a prompt whose answer is to be sampled.
#[derive(Debug, Clone)]
pub struct Job {
    /// The prompt's tokens; at least one.
    pub prompt: Vec<u32>,
    /// The settings. The end tokens must be the same for all jobs.
    pub settings: SamplingParams,
    /// The answer's number among several to the prompt: part of the random counter.
    pub sample: u32,
    /// The key of the model that answers; see [`Batch::turn`](super::Batch::turn).
    pub model: u64,
    /// The number of alternatives whose log-probs are wanted, besides the log-prob of each token; `None` for
    /// no log-probs.
    pub top_logprobs: Option<usize>,
}

/// A job's number in its batch.
pub type Ticket = u64;

/// One place for a job, with its part of the cache.
#[derive(Default)]
pub(super) struct Seat {
    /// The model of the cached tokens.
    pub model: u64,
    /// The tokens whose keys and values are in the seat's part of the cache.
    pub cached: Vec<u32>,
    pub job: Option<Running>,
    /// The ticket of the last job: the seat with the lowest has not been used for longest.
    pub last: Ticket,
}

/// A job that has a seat.
pub(super) struct Running {
    pub ticket: Ticket,
    pub job: Job,
    pub drawn: Drawn,
    /// Tokens of the prompt that were in the cache already.
    pub reused: usize,
}

impl Seat {
    /// The number of tokens of a job's prompt that are in this seat's cache.
    pub fn common(&self, job: &Job) -> usize {
        if self.model == job.model { common(&self.cached, job) } else { 0 }
    }
}

impl Running {
    /// Whether its prompt is computed, but for the last token of the answer so far.
    pub fn answers(&self) -> bool {
        !self.drawn.ids.is_empty()
    }

    /// Its row, if the seat's part of the cache begins at slot `start`.
    pub fn row(&self, start: usize) -> Row<'_> {
        let prompt = &self.job.prompt;
        let end = (start + prompt.len()) as u32;
        Row {
            slots: [start as u32, end, end],
            before: prompt.last().copied().unwrap_or(0),
            counters: [0, self.job.sample],
            drawn: &self.drawn,
            settings: &self.job.settings,
        }
    }
}

/// The number of tokens with which both `ids` and a job's prompt begin. The last token of a prompt is not
/// among them: it is always computed, because it predicts the answer's first token.
pub(super) fn common(ids: &[u32], job: &Job) -> usize {
    let most = &job.prompt[..job.prompt.len() - 1];
    ids.iter().zip(most).take_while(|(a, b)| a == b).count()
}

/// The free seat for a job: the one whose cache mostly is the beginning of its prompt, which is how a
/// conversation goes on, or the one that has not been used for longest. `None` if no seat is free.
pub(super) fn seat_for(seats: &[Seat], job: &Job) -> Option<usize> {
    let free = || seats.iter().enumerate().filter(|(_, seat)| seat.job.is_none());
    let goes_on = |seat: &Seat| {
        let known = seat.common(job);
        if 2 * known >= seat.cached.len() { known } else { 0 }
    };
    let longest = free().max_by_key(|(_, seat)| goes_on(seat)).filter(|(_, seat)| goes_on(seat) > 0);
    longest.or_else(|| free().min_by_key(|(_, seat)| seat.last)).map(|(i, _)| i)
}
