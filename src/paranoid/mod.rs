//! `--paranoid`: now and then a kernel's reference is asked what a dispatch of the run should have come to.
//!
//! A [`Paranoid`] watches a device's dispatches. Of some it reads the tensors before and after ([`Witnessed`]) and compares what was
//! written with [`crate::reference`], at the sizes and numbers that the run has, where [`crate::selftest`] has its own. Of large outputs a
//! sample of rows and columns is compared. Everything else in a tensor that is written must still be what it was, to the bit.
//! Nothing of it changes what the run computes.
//!
//! One file a theme, as in the self-test. A kernel's part says, for each tensor it writes, what should be there and what f32 may be off by,
//! from the sizes of the terms that were added up: gradients are as small as 1e-9, so nothing is allowed in absolute terms.

mod attention;
mod loss;
mod matmul;
mod norm;
mod optimizer;
mod pointwise;
mod rows;
mod sample;

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::gpu::{DType, Gpu, Seen, Tensor, Witness};
use crate::reference::blocks::{self, Format};
use crate::reference::rng::pcg4d;
use crate::{Error, Result};

/// Of the values that are compared, what f32 may be off by in proportion.
const EPS: f64 = 2e-5;

/// Half a unit in the last place of f32, as a share.
const UNIT: f64 = 1.0 / 16_777_216.0;

/// Elements of an output that are compared, about.
const MOST: usize = 1 << 16;

/// What a kernel's part makes of a dispatch.
type Expect = fn(&Witnessed) -> Vec<Output>;

/// The kernels of a run: all but the one that measures an adapter's peak.
const KERNELS: [(&str, Expect); 42] = [
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
    ("rms_norm", norm::rms_norm),
    ("rms_norm_backward", norm::rms_norm_backward),
    ("rope", pointwise::rope),
    ("row_scale", pointwise::row_scale),
    ("sample", sample::forward),
    ("sequence_sum", rows::sequence_sum),
    ("soft_cap", pointwise::soft_cap),
    ("sum_squares", optimizer::sum_squares),
    // Not in a run: it measures an adapter's peak.
    ("fma_peak", |_| Vec::new()),
];

/// How a future of a tensor's bytes is waited for: a witness cannot be awaited.
pub type Wait = for<'a> fn(Pin<Box<dyn Future<Output = Result<Vec<u8>>> + 'a>>) -> Result<Vec<u8>>;

/// What is done with a dispatch that was witnessed.
pub type Judge = Box<dyn Fn(&Witnessed) -> Result<(), String> + Send + Sync>;

/// Which dispatches are checked: a kernel's first, then all kernels in turn, any of their dispatches, as long as that takes no more than
/// [`SHARE`] of the time.
pub struct Paranoid {
    wait: Wait,
    judge: Judge,
    turns: Mutex<Turns>,
}

/// The share of a run's time that checks may take, but for the first of each kernel.
const SHARE: f64 = 0.1;

/// Dispatches without a kernel whose turn it is after which all have had theirs.
const ROUND: u32 = 5000;

struct Turns {
    begun: Instant,
    spent: Duration,
    /// The checks of each variant, and whether it has had its turn in this round.
    kernels: BTreeMap<String, (u64, bool)>,
    /// Dispatches since the last whose turn it was.
    waited: u32,
    /// All dispatches.
    count: u32,
}

impl Paranoid {
    /// Compares with the references.
    pub fn new(wait: Wait) -> Arc<Self> {
        Self::with(wait, Box::new(Witnessed::check))
    }

    /// Hands what it sees to `judge`.
    pub fn with(wait: Wait, judge: Judge) -> Arc<Self> {
        let (begun, spent, kernels) = (Instant::now(), Duration::ZERO, BTreeMap::new());
        let turns = Mutex::new(Turns { begun, spent, kernels, waited: 0, count: 0 });
        Arc::new(Self { wait, judge, turns })
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The checks of each variant so far.
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
        // Not always the same one of a step.
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
        format!("{total} dispatches of {} kernels compared with their references: all agree", checks.len())
    }

    fn watch(&self, gpu: &Gpu, seen: &Seen, run: &mut dyn FnMut()) -> Result<()> {
        let started = Instant::now();
        let seed = self.turns().count;
        let witnessed = self.witness(gpu, seen, run, seed)?;
        let verdict = (self.judge)(&witnessed);
        let mut turns = self.turns();
        turns.spent += started.elapsed();
        let (checks, had) = turns.kernels.entry(witnessed.kernel).or_default();
        (*checks, *had) = (*checks + 1, true);
        log::debug!("checked {} in {:.3} s", seen.kernel, started.elapsed().as_secs_f64());
        verdict.map_err(|what| {
            let summary = gpu.summary();
            let adapter = format!("{} ({})", summary.name, summary.driver);
            Error::WrongResult { kernel: seen.kernel.into(), what, adapter }
        })
    }
}

/// A tensor of a dispatch.
#[derive(Clone)]
struct Bound {
    dtype: DType,
    len: usize,
    before: Vec<u8>,
    /// Of one that the kernel may write.
    after: Option<Vec<u8>>,
}

fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|b| bytes[4 * i + b]))
}

impl Bound {
    /// A word, as it was.
    fn word(&self, i: usize) -> u32 {
        word(&self.before, i)
    }

    /// Four words, as they were.
    fn four(&self, i: usize) -> [u32; 4] {
        std::array::from_fn(|j| self.word(4 * i + j))
    }

    /// An element, as it was; not of a quantised type. Kernels on whole vec4s find 0 behind the last.
    fn at(&self, i: usize) -> f64 {
        if i >= self.len {
            return 0.0;
        }
        let half = || u16::from_le_bytes([self.before[2 * i], self.before[2 * i + 1]]);
        match self.dtype {
            DType::Bf16 => half::bf16::from_bits(half()).to_f64(),
            DType::F16 => half::f16::from_bits(half()).to_f64(),
            _ => f64::from(f32::from_bits(self.word(i))),
        }
    }

    /// `len` elements from `start` on, as they were.
    fn range(&self, start: usize, len: usize) -> Vec<f64> {
        let block = self.dtype.block();
        if block == 1 {
            return (start..start + len).map(|i| self.at(i)).collect();
        }
        let format = match self.dtype {
            DType::Q4 => Format::Q4,
            DType::Q8 => Format::Q8,
            DType::Q4K => Format::Q4K,
            DType::Q5K => Format::Q5K,
            DType::Q6K => Format::Q6K,
            _ => Format::Nf4,
        };
        // The blocks that hold them, in each region.
        let (first, end) = (start / block * block, (start + len).next_multiple_of(block));
        let bytes = |elements: usize| match self.dtype {
            // Whole words only at the end.
            DType::Nf4 => [elements / 2, elements / 16, 0],
            dtype => dtype.regions(elements),
        };
        let (from, to, regions) = (bytes(first), bytes(end), self.dtype.regions(self.len));
        let parts = std::array::from_fn(|i| {
            let start: usize = regions[..i].iter().sum();
            &self.before[start + from[i]..start + to[i]]
        });
        blocks::forward(format, parts, end - first)[start - first..][..len].to_vec()
    }

    /// Elements at equal distances, as they were.
    fn strided(&self, at: usize, stride: usize, count: usize) -> Vec<f64> {
        (0..count).map(|i| self.at(at + i * stride)).collect()
    }
}

/// A dispatch, and what its tensors held before and after it.
#[derive(Clone)]
pub struct Witnessed {
    kernel: String,
    params: Vec<u8>,
    bound: Vec<Bound>,
    /// Of the sample.
    seed: u32,
}

/// What a kernel should have left in one tensor.
struct Output {
    binding: usize,
    /// Elements that it may write.
    written: Vec<Range<usize>>,
    /// Elements that are compared, and what should be there.
    compared: Vec<Compared>,
}

struct Compared {
    at: usize,
    expected: Expected,
}

enum Expected {
    /// A number, and what it may be off by beside [`EPS`] in proportion.
    Near(f64, f64),
    /// The same of a number that is not in the tensor as such: what was found in the element.
    Read { found: f64, expected: f64, slack: f64 },
    /// A word.
    Word(u32),
}

impl Output {
    fn new(binding: usize, written: Vec<Range<usize>>) -> Self {
        Self { binding, written, compared: Vec::new() }
    }

    /// A tensor that is written from its start on.
    fn first(binding: usize, len: usize) -> Self {
        Self::part(binding, 0..len)
    }

    fn part(binding: usize, written: Range<usize>) -> Self {
        Self::new(binding, [written].into())
    }

    fn near(&mut self, at: usize, expected: f64, slack: f64) {
        self.compared.push(Compared { at, expected: Expected::Near(expected, slack) });
    }

    fn word(&mut self, at: usize, expected: u32) {
        self.compared.push(Compared { at, expected: Expected::Word(expected) });
    }

    /// Elements from `at` on.
    fn row(&mut self, at: usize, expected: &[f64], slack: impl Fn(usize) -> f64) {
        expected.iter().enumerate().for_each(|(i, &expected)| self.near(at + i, expected, slack(i)));
    }
}

/// What a sum of `n` terms may be off by, as a share of the sum of their sizes. Errors mostly cancel; but of many small terms that are
/// added to a large one, as softmax's to a one-hot, each is rounded the same way: 1.2e-4 was seen with n = 49,152.
fn of_sum(n: usize) -> f64 {
    let n = n as f64;
    UNIT * (8.0 + 4.0 * n.sqrt() + n / 4.0)
}

/// The elements of rows that start `stride` apart.
fn strip(at: usize, stride: usize, rows: usize, width: usize) -> Vec<Range<usize>> {
    (0..rows).map(|row| at + row * stride..at + row * stride + width).collect()
}

impl Witnessed {
    /// The kernel's variant.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The parameter block.
    fn params<P: bytemuck::Pod>(&self) -> P {
        bytemuck::pod_read_unaligned(&self.params)
    }

    fn has(&self, flag: &str) -> bool {
        self.kernel.split(' ').any(|word| word == flag)
    }

    /// The value of a constant of the variant.
    fn constant(&self, name: &str) -> usize {
        let value = self.kernel.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{}: no {name}", self.kernel))
    }

    /// All of `0..total`, or about `most` of them with the first and the last.
    fn pick(&self, total: usize, most: usize) -> Vec<usize> {
        let most = most.max(2);
        if total <= most {
            return (0..total).collect();
        }
        let middle = (1..most - 1).map(|i| {
            let (from, to) = (i * total / most, (i + 1) * total / most);
            from + pcg4d([i as u32, self.seed, 5, 7])[0] as usize % (to - from)
        });
        let mut picked: Vec<usize> = [0].into_iter().chain(middle).chain([total - 1]).collect();
        picked.dedup();
        picked
    }

    /// Rows of `width`, as many as are worth comparing.
    fn pick_rows(&self, rows: usize, width: usize) -> Vec<usize> {
        self.pick(rows, MOST / width.max(1))
    }

    /// Compares what the kernel wrote with the reference.
    ///
    /// # Errors
    /// The element that is off the most, with its tensor's place among the bindings, what was expected and what was found.
    pub fn check(&self) -> Result<(), String> {
        self.expect()?.iter().try_for_each(|output| self.compare(output))
    }

    fn expect(&self) -> Result<Vec<Output>, String> {
        let shader = self.kernel.split(' ').next().unwrap_or_default();
        let known = KERNELS.iter().find(|(name, _)| *name == shader);
        let (_, expect) = known.ok_or_else(|| format!("there is no reference for {shader}"))?;
        Ok(expect(self))
    }

    /// The elements that [`Witnessed::check`] compares, but for those that should be no finite number: bindings and places in them.
    pub fn compared(&self) -> Vec<(usize, usize)> {
        let finite = |compared: &Compared| match compared.expected {
            Expected::Near(expected, _) | Expected::Read { expected, .. } => expected.is_finite(),
            Expected::Word(_) => true,
        };
        let mut places = Vec::new();
        for Output { binding, compared, .. } in self.expect().unwrap_or_default() {
            places.extend(compared.iter().filter(|one| finite(one)).map(|one| (binding, one.at)));
        }
        places
    }

    /// Spoils what the kernel wrote into one element: a number by a quarter of the largest beside it, a word's lowest bit.
    pub fn spoil(&mut self, (binding, at): (usize, usize)) {
        let Bound { dtype, after, .. } = &mut self.bound[binding];
        let Some(after) = after else { return };
        let found = word(after, at);
        let spoilt = match dtype {
            DType::F32 => {
                let value = f32::from_bits(found);
                let near = at.saturating_sub(64)..(at + 64).min(after.len() / 4);
                let sizes =
                    near.map(|i| f32::from_bits(word(after, i)).abs()).filter(|size| size.is_finite());
                (value + sizes.fold(1e-20, f32::max) / 4.0).to_bits()
            }
            _ => found ^ 1,
        };
        after[4 * at..4 * at + 4].copy_from_slice(&spoilt.to_le_bytes());
    }

    fn compare(&self, output: &Output) -> Result<(), String> {
        let bound = &self.bound[output.binding];
        let Some(after) = &bound.after else {
            return Err(format!("binding {} is not written", output.binding));
        };
        let mut worst: Option<(f64, String)> = None;
        let mut off = 0;
        for &Compared { at, ref expected } in &output.compared {
            let there = word(after, at);
            let (found, expected, slack) = match *expected {
                Expected::Word(expected) => (f64::from(there), f64::from(expected), f64::NEG_INFINITY),
                Expected::Near(expected, slack) => (f64::from(f32::from_bits(there)), expected, slack),
                Expected::Read { found, expected, slack } => (found, expected, slack),
            };
            // Words are as expected or not.
            let allowed = (slack + EPS * expected.abs()).max(0.0);
            // A run may come to numbers that are none: that is not the kernel's fault.
            let beyond = !expected.is_finite() || expected.abs() + allowed > f64::from(f32::MAX);
            if (found - expected).abs() <= allowed || found == expected || beyond {
                continue;
            }
            off += 1;
            let miss = ((found - expected).abs() / (allowed + 1e-45)).min(f64::MAX);
            if worst.as_ref().is_none_or(|(most, _)| miss > *most) {
                let what = format!("expected {expected:e} within {allowed:e}, found {found:e}");
                worst = Some((miss, format!("binding {}, element {at}: {what}", output.binding)));
            }
        }
        if let Some((_, what)) = worst {
            return Err(format!("{what}; {off} of {} compared", output.compared.len()));
        }
        self.untouched(output, after)
    }

    /// Fails where a word changed that is not the kernel's to write.
    fn untouched(&self, output: &Output, after: &[u8]) -> Result<(), String> {
        let bound = &self.bound[output.binding];
        let mut ranges = output.written.clone();
        ranges.sort_unstable_by_key(|range| range.start);
        let len = bound.before.len() / 4;
        let mut at = 0;
        ranges.push(len..len);
        for Range { start, end } in ranges {
            let same = |i: &usize| word(&bound.before, *i) == word(after, *i);
            if let Some(i) = (at..start.min(len)).find(|i| !same(i)) {
                return Err(format!(
                    "binding {}, element {i}: written, and not the kernel's",
                    output.binding
                ));
            }
            at = at.max(end);
        }
        Ok(())
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
        assert_eq!(named, shaders.collect());
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
