//! `--paranoid`: compares some dispatches of a run with the kernel's f64 reference.
//!
//! A [`Paranoid`] watches a device's dispatches. For some of them it reads the tensors before and after the
//! dispatch ([`Witnessed`]) and compares the outputs with [`crate::reference`]. The sizes and values are
//! those of the run, while [`crate::selftest`] generates its own. Of large outputs, a sample of rows and
//! columns is compared. Elements that the kernel must not write have to stay bit-identical. The checks do not
//! change the run's results.
//!
//! One file per theme, as in the self-test. Every kernel has a function that gives, for each tensor that the
//! kernel writes, the expected values and their tolerances. A tolerance is derived from the absolute values
//! of the terms of a sum. Gradients are as small as 1e-9, so almost no fixed absolute error is allowed.

mod attention;
mod loss;
mod matmul;
mod norm;
mod optimizer;
mod pointwise;
mod rows;
mod sample;
mod witnessed;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use web_time::{Duration, Instant};

pub use witnessed::Witnessed;
use witnessed::{Bound, Compared, Expected, MOST, Output, UNIT, of_sum, strip, word};

use crate::gpu::{Gpu, Seen, Tensor, Witness};
use crate::rng::pcg4d;
use crate::{Error, Result};

/// The expected outputs of a dispatch of one kernel.
type Expect = fn(&Witnessed) -> Vec<Output>;

/// All kernels, by the names of their shaders.
const KERNELS: [(&str, Expect); 43] = [
    ("activation", pointwise::activation),
    ("activation_backward", pointwise::activation_backward),
    ("adamw", optimizer::adamw),
    ("adamw_8bit", optimizer::adamw_8bit),
    ("attention", attention::forward),
    ("attention_delta", attention::delta),
    ("attention_dkv", attention::dkv),
    ("attention_dkv_subgroup", attention::dkv),
    ("attention_dkv_tiled", attention::dkv_tiled),
    ("attention_dq", attention::dq),
    ("attention_dq_subgroup", attention::dq),
    ("attention_dq_tiled", attention::dq),
    ("attention_subgroup", attention::forward),
    ("attention_tiled", attention::forward),
    ("clip_scale", optimizer::clip_scale),
    ("column_sum", norm::column_sum),
    ("dropout", pointwise::dropout),
    ("ema", pointwise::ema),
    ("fma_peak", pointwise::fma_peak),
    ("gather", rows::gather),
    ("gather_backward", rows::gather_backward),
    ("head_norm", norm::head_norm),
    ("head_norm_backward", norm::head_norm_backward),
    ("kv_write", rows::kv_write),
    ("layer_norm", norm::layer_norm),
    ("layer_norm_backward", norm::layer_norm_backward),
    ("log_prob", loss::log_prob),
    ("log_prob_backward", loss::log_prob_backward),
    ("matmul", matmul::product),
    ("matmul_coop", matmul::product),
    ("matmul_subgroup", matmul::product),
    ("matmul_tiled", matmul::product),
    ("matvec", matmul::product),
    ("preference", loss::preference),
    ("retain", loss::retain),
    ("rms_norm", norm::rms_norm),
    ("rms_norm_backward", norm::rms_norm_backward),
    ("rope", pointwise::rope),
    ("row_scale", pointwise::row_scale),
    ("sample", sample::forward),
    ("sequence_sum", rows::sequence_sum),
    ("soft_cap", pointwise::soft_cap),
    ("sum_squares", optimizer::sum_squares),
];

/// Waits for a future of a tensor's bytes and returns them: a witness is not async and cannot await.
pub type Wait = for<'a> fn(Pin<Box<dyn Future<Output = Result<Vec<u8>>> + 'a>>) -> Result<Vec<u8>>;

/// Checks a witnessed dispatch; an error says what is wrong with it.
pub type Judge = Box<dyn Fn(&Witnessed) -> Result<(), String> + Send + Sync>;

/// Chooses the dispatches that are checked: the first of every kernel, then dispatches of all kernels in
/// turn, picked at random, as long as the checks take no more than a tenth of the run's time.
pub struct Paranoid {
    wait: Wait,
    judge: Judge,
    turns: Mutex<Turns>,
}

/// The share of a run's time that checks may take. The first check of each kernel is made in any case.
const SHARE: f64 = 0.1;

/// A new round starts after this many consecutive dispatches of kernels that were already checked in this
/// round.
const ROUND: u32 = 5000;

struct Turns {
    begun: Instant,
    spent: Duration,
    /// The number of checks of each variant, and whether the variant was already checked in this round.
    kernels: BTreeMap<String, (u64, bool)>,
    /// Dispatches since the last one of a variant that was not yet checked in this round.
    waited: u32,
    /// Number of all dispatches.
    count: u32,
    /// Number of checks that failed.
    wrong: u64,
}

impl Paranoid {
    /// A witness that compares dispatches with the references.
    pub fn new(wait: Wait) -> Arc<Self> {
        Self::with(wait, Box::new(Witnessed::check))
    }

    /// A witness that passes the witnessed dispatches to `judge`.
    pub fn with(wait: Wait, judge: Judge) -> Arc<Self> {
        let (begun, spent, kernels) = (Instant::now(), Duration::ZERO, BTreeMap::new());
        let turns = Mutex::new(Turns { begun, spent, kernels, waited: 0, count: 0, wrong: 0 });
        Arc::new(Self { wait, judge, turns })
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of checks of each variant so far.
    pub fn checks(&self) -> BTreeMap<String, u64> {
        self.turns().kernels.iter().map(|(kernel, (checks, _))| (kernel.clone(), *checks)).collect()
    }

    fn read(&self, gpu: &Gpu, tensor: &Tensor) -> Result<Vec<u8>> {
        (self.wait)(Box::pin(tensor.read_in_pieces(gpu)))
    }

    fn witness(&self, gpu: &Gpu, seen: &Seen, run: &mut dyn FnMut(), seed: u32) -> Result<Witnessed> {
        let read = |tensor: &&Tensor| {
            let (dtype, len) = (tensor.dtype(), tensor.len());
            Ok(Bound { dtype, len, before: self.read(gpu, tensor)?, after: None })
        };
        let bound = seen.bindings.iter().map(read).collect::<Result<Vec<_>>>();
        run();
        let mut bound = bound?;
        let written = bound.iter_mut().zip(seen.bindings).zip(seen.writes).filter(|(_, writes)| **writes);
        for ((bound, tensor), _) in written {
            bound.after = Some(self.read(gpu, tensor)?);
        }
        Ok(Witnessed { kernel: seen.kernel.into(), params: seen.params.to_vec(), bound, seed })
    }
}

impl Turns {
    fn wants(&mut self, kernel: &str) -> bool {
        self.count = self.count.wrapping_add(1);
        self.waited += 1;
        if self.waited > ROUND {
            self.kernels.values_mut().for_each(|(_, had)| *had = false);
            self.waited = 0;
        }
        let Some((_, had)) = self.kernels.get(kernel) else { return true };
        if *had {
            return false;
        }
        self.waited = 0;
        // Picked at random, so that it is not always the same dispatch of a step.
        let chosen = pcg4d([self.count, 1, 2, 3])[0].is_multiple_of(4);
        chosen && self.spent.as_secs_f64() < SHARE * self.begun.elapsed().as_secs_f64()
    }
}

impl std::fmt::Debug for Paranoid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paranoid").field("checks", &self.checks()).finish_non_exhaustive()
    }
}

impl Witness for Paranoid {
    fn wants(&self, kernel: &str) -> bool {
        self.turns().wants(kernel)
    }

    fn report(&self) -> String {
        let checks = self.checks();
        let total: u64 = checks.values().sum();
        let verdict = match self.turns().wrong {
            0 => "all agree".into(),
            wrong => format!("{wrong} differ"),
        };
        format!("{total} dispatches of {} kernels compared with their references: {verdict}", checks.len())
    }

    fn watch(&self, gpu: &Gpu, seen: &Seen, run: &mut dyn FnMut()) -> Result<()> {
        let started = Instant::now();
        let seed = self.turns().count;
        let witnessed = self.witness(gpu, seen, run, seed)?;
        // An index in a table may be out of range, because a kernel wrote it: a panic here counts as a wrong
        // result.
        let judged = catch_unwind(AssertUnwindSafe(|| (self.judge)(&witnessed)));
        let verdict = judged.unwrap_or_else(|cause| {
            let text = cause.downcast_ref::<String>().cloned();
            Err(text.unwrap_or_else(|| "a value in its tensors is invalid".into()))
        });
        let mut turns = self.turns();
        turns.spent += started.elapsed();
        let (checks, had) = turns.kernels.entry(witnessed.kernel).or_default();
        (*checks, *had) = (*checks + 1, true);
        turns.wrong += u64::from(verdict.is_err());
        log::debug!("checked {} in {:.3} s", seen.kernel, started.elapsed().as_secs_f64());
        verdict.map_err(|what| {
            let summary = gpu.summary();
            let adapter = format!("{} ({})", summary.name, summary.driver);
            Error::WrongResult { kernel: seen.kernel.into(), what, adapter }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shader::permutations;

    #[test]
    fn every_shader_has_its_part() {
        let named: std::collections::BTreeSet<_> = KERNELS.iter().map(|(name, _)| name.to_string()).collect();
        let listed = permutations().unwrap();
        let shaders = listed.iter().map(|variant| variant.to_string().split(' ').next().unwrap().to_string());
        // The device itself records the sentinel, so no witness sees it.
        assert_eq!(named, shaders.filter(|name| name != "sentinel").collect());
    }

    #[test]
    fn kernels_take_turns() {
        let paranoid = Paranoid::new(|_| Ok(Vec::new()));
        let mut turns = paranoid.turns();
        turns.begun = Instant::now() - Duration::from_secs(1000);
        let mut check = |kernel: &str| {
            let wanted = turns.wants(kernel);
            if wanted {
                turns.kernels.entry(kernel.into()).or_insert((0, true)).1 = true;
            }
            wanted
        };
        assert!(check("a") && check("b") && !check("a"), "the first of each, and no more");
        let more: Vec<u32> = (0..3 * ROUND).filter(|_| check("a")).collect();
        assert!(more.len() == 2, "once a round: {more:?}");
        turns.spent = Duration::from_secs(200);
        assert!((0..3 * ROUND).all(|_| !turns.wants("a")), "not beyond its share of the time");
        assert!(turns.wants("c"), "but for the first");
    }
}
