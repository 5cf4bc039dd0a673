//! The least time in which a card could do a training step, on paper: for each kernel the longer of the times
//! that its arithmetic takes at the card's peak, and that its tensors take to come from memory once (Williams
//! et al., "Roofline", CACM 2009). Nothing runs for it, and it is no prediction of what Aweigh reaches.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::steps::ids;
use crate::Result;
use crate::data::packing::{Group, Packed};
use crate::gpu::{Gpu, Purpose, Recorder, Seen, Witness};
use crate::model::{Capacity, Decoder};
use crate::nn::{Arenas, Recompute};

/// A card, with the figures that its maker gives.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Card {
    /// Its name.
    pub name: &'static str,
    /// f32 operations a second, in units of 1e12, without tensor units.
    pub tflops: f64,
    /// Bytes a second between the GPU and its memory, in units of 1e9.
    pub gigabytes: f64,
}

/// From a small GPU in a processor to a large card of its own.
pub const CARDS: [Card; 5] = [
    Card { name: "Intel UHD 770 (DDR4-3200)", tflops: 0.79, gigabytes: 51.0 },
    Card { name: "AMD Radeon 780M (DDR5-5600)", tflops: 4.1, gigabytes: 90.0 },
    Card { name: "Apple M2, 10 cores", tflops: 3.6, gigabytes: 100.0 },
    Card { name: "AMD RX 6600", tflops: 8.9, gigabytes: 224.0 },
    Card { name: "NVIDIA RTX 3060", tflops: 12.7, gigabytes: 360.0 },
];

/// A kernel that would run.
#[derive(Debug)]
struct Work {
    operations: f64,
    bytes: f64,
}

/// Counts the work of dispatches instead of running them.
#[derive(Debug, Default)]
pub struct Counting(Mutex<Vec<Work>>);

impl Counting {
    fn take(&self) -> Vec<Work> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Witness for Counting {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn watch(&self, _: &Gpu, seen: &Seen, _: &mut dyn FnMut()) -> Result<()> {
        let bytes = match seen.kernel.starts_with("gather") {
            // Of a table only some rows; each element is an operation.
            true => 8.0 * seen.operations,
            false => seen.bindings.iter().map(|tensor| tensor.dtype().size(tensor.len()) as f64).sum(),
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Work { operations: seen.operations, bytes });
        Ok(())
    }

    fn report(&self) -> String {
        String::new()
    }
}

/// The least time of a step on a card.
#[derive(Debug, Clone, Serialize)]
pub struct Bound {
    /// The card.
    pub card: Card,
    /// Seconds.
    pub seconds: f64,
    /// The share of them in which memory is the limit.
    pub memory: f64,
}

/// A step's work, and its least time on each card.
#[derive(Debug, Clone, Serialize)]
pub struct Roofline {
    /// Tokens of the step.
    pub tokens: usize,
    /// Kernels.
    pub kernels: usize,
    /// Operations.
    pub operations: f64,
    /// Bytes of all kernels' tensors.
    pub bytes: f64,
    /// On each of [`CARDS`].
    pub bounds: Vec<Bound>,
}

/// The least times of a forward and a backward pass on `batch` sequences of `tokens` tokens, where `gpu` was
/// opened with `counting` as its witness.
///
/// # Errors
/// A batch over the model's context, or an error that the device reports.
pub fn roofline(
    gpu: &Gpu,
    counting: &Counting,
    decoder: &Decoder,
    (batch, tokens): (usize, usize),
) -> Result<Roofline> {
    decoder.check_context("bench: --tokens", tokens)?;
    let ids = ids(tokens, decoder.config().vocab);
    let packed = Packed::new(&vec![Group { prompt: &ids[..1], responses: vec![&ids[1..]] }; batch]);
    let mut ws = decoder.workspace(gpu, Capacity::covering([&packed].into_iter(), Some(Recompute::None)))?;
    let gradients = Arenas::new(gpu, decoder.layout(), Purpose::Gradients, "gradients")?;
    counting.take();
    let mut rec = Recorder::new(gpu);
    ws.load(&mut rec, &packed)?;
    decoder.score(&mut rec, decoder.policy(), &ws)?;
    decoder.backward(&mut rec, decoder.policy(), &gradients, &ws)?;
    rec.submit();
    let work = counting.take();
    let bound = |card: Card| {
        let times = |one: &Work| [one.operations / (1e12 * card.tflops), one.bytes / (1e9 * card.gigabytes)];
        let all: Vec<[f64; 2]> = work.iter().map(times).collect();
        let seconds = all.iter().map(|[arithmetic, memory]| arithmetic.max(*memory)).sum();
        let memory: f64 = all.iter().filter(|[a, m]| m > a).map(|[_, memory]| memory).sum();
        Bound { card, seconds, memory: memory / seconds }
    };
    Ok(Roofline {
        tokens: batch * tokens,
        kernels: work.len(),
        operations: work.iter().map(|one| one.operations).sum(),
        bytes: work.iter().map(|one| one.bytes).sum(),
        bounds: CARDS.map(bound).into(),
    })
}
