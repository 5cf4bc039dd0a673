//! How much work goes into a submit: none may exceed the time limit of an operating system's GPU watchdog.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use web_time::Instant;

/// The least operations per second that a device is taken to do.
const LEAST_RATE: f64 = 5e7;

/// The limit on the work per submit. It follows the measured time of earlier submits.
#[derive(Clone)]
pub(super) struct Pace(Arc<Mutex<Inner>>);

struct Inner {
    /// Estimated operations that fit in a submit.
    budget: f64,
    /// Target duration of a submit, in seconds.
    aim: f64,
    /// When the last finished submit ended.
    last_done: Option<Instant>,
}

impl Pace {
    /// Submits of `aim` seconds on a device that does `rate` operations per second, until there are
    /// measurements.
    pub fn new(rate: f64, aim: f64) -> Self {
        Self(Arc::new(Mutex::new(Inner { budget: rate * aim, aim, last_done: None })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Estimated operations that fit in a submit.
    pub fn budget(&self) -> f64 {
        self.lock().budget
    }

    /// A submit with an estimated cost of `operations`, which was made at `submitted`, is finished now.
    pub fn finished(&self, operations: f64, submitted: Instant) {
        let mut own = self.lock();
        let now = Instant::now();
        let began = own.last_done.map_or(submitted, |last| last.max(submitted));
        let fits = operations * own.aim / (now - began).as_secs_f64().max(1e-4);
        // Move halfway to what this submit suggests, and never by more than a factor of two at once.
        let moved = (0.5 * (own.budget + fits)).clamp(own.budget * 0.5, own.budget * 2.0);
        own.budget = moved.max(LEAST_RATE * own.aim);
        own.last_done = Some(now);
    }
}
