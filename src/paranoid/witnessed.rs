//! A dispatch with its inputs and outputs, and their comparison with the expected outputs.

use std::ops::Range;

use super::KERNELS;
use crate::gpu::DType;
use crate::reference::blocks;
use crate::rng::pcg4d;

/// The relative tolerance of compared values.
pub(super) const EPS: f64 = 2e-5;

/// The absolute tolerance of every number: about 85 times the smallest normal number of f32.
const LEAST: f64 = 1e-36;

/// Half a unit in the last place of f32, as a relative error.
pub(super) const UNIT: f64 = 1.0 / 16_777_216.0;

/// About how many elements of an output are compared.
pub(super) const MOST: usize = 1 << 16;

/// A tensor of a dispatch.
#[derive(Clone)]
pub(super) struct Bound {
    pub(super) dtype: DType,
    pub(super) len: usize,
    pub(super) before: Vec<u8>,
    /// The bytes after the dispatch; `None` for a tensor that the kernel may not write.
    pub(super) after: Option<Vec<u8>>,
}

pub(super) fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|b| bytes[4 * i + b]))
}

impl Bound {
    /// The word `i`, before the dispatch.
    pub(super) fn word(&self, i: usize) -> u32 {
        word(&self.before, i)
    }

    /// The `i`-th group of four words, before the dispatch.
    pub(super) fn four(&self, i: usize) -> [u32; 4] {
        std::array::from_fn(|j| self.word(4 * i + j))
    }

    /// The element `i`, before the dispatch; not for quantised types. Elements past the end are 0, as they
    /// are for kernels that work on whole vec4s.
    pub(super) fn at(&self, i: usize) -> f64 {
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

    /// `len` elements from `start` on, before the dispatch.
    pub(super) fn range(&self, start: usize, len: usize) -> Vec<f64> {
        let block = self.dtype.block();
        if block == 1 {
            return (start..start + len).map(|i| self.at(i)).collect();
        }
        // The blocks of these elements, in each region (codes, scales, scales of scales).
        let (first, end) = (start / block * block, (start + len).next_multiple_of(block));
        let bytes = |elements: usize| match self.dtype {
            // The device's layout rounds the scales up to whole words only at the tensor's end.
            DType::Nf4 => [elements / 2, elements / 16, 0],
            dtype => dtype.regions(elements),
        };
        let (from, to, regions) = (bytes(first), bytes(end), self.dtype.regions(self.len));
        let parts = std::array::from_fn(|i| {
            let start: usize = regions[..i].iter().sum();
            &self.before[start + from[i]..start + to[i]]
        });
        blocks::forward(blocks::Format::named(&format!("{:?}", self.dtype)), parts, end - first)
            [start - first..][..len]
            .to_vec()
    }

    /// `count` elements from `at` on, `stride` apart, before the dispatch.
    pub(super) fn strided(&self, at: usize, stride: usize, count: usize) -> Vec<f64> {
        (0..count).map(|i| self.at(at + i * stride)).collect()
    }
}

/// A dispatch, with the contents of its tensors before and after it.
#[derive(Clone)]
pub struct Witnessed {
    pub(super) kernel: String,
    pub(super) params: Vec<u8>,
    pub(super) bound: Vec<Bound>,
    /// Seed for the sample of elements that are compared.
    pub(super) seed: u32,
}

/// The expected contents of one tensor after a dispatch.
pub(super) struct Output {
    pub(super) binding: usize,
    /// Elements that the kernel may write.
    pub(super) written: Vec<Range<usize>>,
    /// Elements that are compared, with their expected values.
    pub(super) compared: Vec<Compared>,
}

pub(super) struct Compared {
    pub(super) at: usize,
    pub(super) expected: Expected,
}

pub(super) enum Expected {
    /// A number, and its absolute tolerance in addition to the relative tolerance [`EPS`].
    Near(f64, f64),
    /// As [`Expected::Near`], for a number that is stored as a code: `found` is the decoded value.
    Read { found: f64, expected: f64, slack: f64 },
    /// A number, and its absolute tolerance without [`EPS`]: for numbers that a step changes by a smaller
    /// share than [`EPS`].
    Within(f64, f64),
    /// A word, which must be equal.
    Word(u32),
}

impl Output {
    pub(super) fn new(binding: usize, written: Vec<Range<usize>>) -> Self {
        Self { binding, written, compared: Vec::new() }
    }

    /// A tensor whose first `len` elements are written.
    pub(super) fn first(binding: usize, len: usize) -> Self {
        Self::part(binding, 0..len)
    }

    pub(super) fn part(binding: usize, written: Range<usize>) -> Self {
        Self::new(binding, [written].into())
    }

    pub(super) fn near(&mut self, at: usize, expected: f64, slack: f64) {
        self.compared.push(Compared { at, expected: Expected::Near(expected, slack) });
    }

    pub(super) fn within(&mut self, at: usize, expected: f64, slack: f64) {
        self.compared.push(Compared { at, expected: Expected::Within(expected, slack) });
    }

    pub(super) fn word(&mut self, at: usize, expected: u32) {
        self.compared.push(Compared { at, expected: Expected::Word(expected) });
    }

    /// Expects the elements from `at` on to be `expected`, with an absolute tolerance for each index.
    pub(super) fn row(&mut self, at: usize, expected: &[f64], slack: impl Fn(usize) -> f64) {
        expected.iter().enumerate().for_each(|(i, &expected)| self.near(at + i, expected, slack(i)));
    }
}

/// The tolerance of a sum of `n` terms, as a share of the sum of their absolute values. Rounding errors
/// mostly cancel. But when many small terms are added to a large one, as those of a softmax to a one-hot, all
/// are rounded in the same direction.
pub(super) fn of_sum(n: usize) -> f64 {
    let n = n as f64;
    UNIT * (8.0 + 4.0 * n.sqrt() + n / 4.0)
}

/// The ranges of `rows` rows of `width` elements that start `stride` apart.
pub(super) fn strip(at: usize, stride: usize, rows: usize, width: usize) -> Vec<Range<usize>> {
    (0..rows).map(|row| at + row * stride..at + row * stride + width).collect()
}

impl Witnessed {
    /// The kernel's variant.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The parameter block.
    pub(super) fn params<P: bytemuck::Pod>(&self) -> P {
        bytemuck::pod_read_unaligned(&self.params)
    }

    pub(super) fn has(&self, flag: &str) -> bool {
        self.kernel.split(' ').any(|word| word == flag)
    }

    /// The value of a constant of the variant.
    pub(super) fn constant(&self, name: &str) -> usize {
        let value = self.kernel.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{}: no {name}", self.kernel))
    }

    /// Picks all of `0..total`, or about `most` of them, including the first and the last.
    pub(super) fn pick(&self, total: usize, most: usize) -> Vec<usize> {
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

    /// Picks rows of `width` elements, together about [`MOST`] elements.
    pub(super) fn pick_rows(&self, rows: usize, width: usize) -> Vec<usize> {
        // At least four: the first, the last, and two others.
        self.pick(rows, (MOST / width.max(1)).max(4))
    }

    /// Compares the kernel's outputs with the reference.
    ///
    /// # Errors
    /// For a wrong result: the element that exceeds its tolerance the most, with its binding, the expected
    /// and the found value; or an element that the kernel must not write, but changed.
    pub fn check(&self) -> Result<(), String> {
        self.expect()?.iter().try_for_each(|output| self.compare(output))
    }

    fn expect(&self) -> Result<Vec<Output>, String> {
        let shader = self.kernel.split(' ').next().unwrap_or_default();
        let known = KERNELS.iter().find(|(name, _)| *name == shader);
        let (_, expect) = known.ok_or_else(|| format!("there is no reference for {shader}"))?;
        Ok(expect(self))
    }

    /// The elements that [`Witnessed::check`] compares, as (binding, element). Those whose expected value is
    /// NaN or infinite are left out.
    pub fn compared(&self) -> Vec<(usize, usize)> {
        let finite = |compared: &Compared| match compared.expected {
            Expected::Near(expected, _) | Expected::Within(expected, _) | Expected::Read { expected, .. } => {
                expected.is_finite()
            }
            Expected::Word(_) => true,
        };
        let mut places = Vec::new();
        for Output { binding, compared, .. } in self.expect().unwrap_or_default() {
            places.extend(compared.iter().filter(|one| finite(one)).map(|one| (binding, one.at)));
        }
        places
    }

    /// Corrupts an element that the kernel wrote: adds a quarter of the largest value near it to a number, or
    /// flips the lowest bit of a word. Where all values near it are rounding errors, such as the gradient of
    /// a query that sees one key, the largest value of the tensor counts.
    pub fn spoil(&mut self, (binding, at): (usize, usize)) {
        let Bound { dtype, after, .. } = &mut self.bound[binding];
        let Some(after) = after else { return };
        let found = word(after, at);
        let spoilt = match dtype {
            DType::F32 => {
                let value = f32::from_bits(found);
                let all = after.len() / 4;
                let largest = |range: std::ops::Range<usize>| {
                    let sizes = range.map(|i| f32::from_bits(word(after, i)).abs());
                    sizes.filter(|size| size.is_finite()).fold(1e-20, f32::max)
                };
                let (near, far) = (largest(at.saturating_sub(64)..(at + 64).min(all)), largest(0..all));
                (value + if near < 1e-5 * far { far } else { near } / 4.0).to_bits()
            }
            _ => found ^ 1,
        };
        after[4 * at..4 * at + 4].copy_from_slice(&spoilt.to_le_bytes());
    }

    /// Whether an input holds NaN, or a number so large that a sum of squares overflows: in f16 if the kernel
    /// rounds to f16, otherwise in f32.
    fn is_extreme(&self) -> bool {
        let most = if self.has("HALF") { 255.0 } else { 1e18 };
        let numbers = self.bound.iter().filter(|bound| bound.dtype == DType::F32);
        numbers.flat_map(|bound| (0..bound.len).map(|i| bound.at(i))).any(|x| x.is_nan() || x.abs() >= most)
    }

    fn compare(&self, output: &Output) -> Result<(), String> {
        let bound = &self.bound[output.binding];
        let Some(after) = &bound.after else {
            return Err(format!("binding {} is not written", output.binding));
        };
        let (mut worst, mut extreme): (Option<(f64, String)>, Option<bool>) = (None, None);
        let mut off = 0;
        for &Compared { at, ref expected } in &output.compared {
            let there = word(after, at);
            let (found, expected, slack) = match *expected {
                Expected::Word(expected) => (f64::from(there), f64::from(expected), f64::NEG_INFINITY),
                Expected::Near(expected, slack) => {
                    (f64::from(f32::from_bits(there)), expected, slack + EPS * expected.abs())
                }
                Expected::Within(expected, slack) => (f64::from(f32::from_bits(there)), expected, slack),
                Expected::Read { found, expected, slack } => (found, expected, slack + EPS * expected.abs()),
            };
            // Words have no tolerance. Subnormal numbers may be flushed to 0, also in intermediate results.
            let allowed = if slack == f64::NEG_INFINITY { 0.0 } else { slack + LEAST };
            // A run may diverge to NaN or infinity: that is not a bug in the kernel.
            let beyond = !expected.is_finite()
                || expected.abs() + allowed > f64::from(f32::MAX)
                || !found.is_finite() && *extreme.get_or_insert_with(|| self.is_extreme());
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
            return Err(format!("{what}; {off} of {} compared elements differ", output.compared.len()));
        }
        self.untouched(output, after)
    }

    /// Fails if a word changed that the kernel must not write.
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
                    "binding {}, element {i}: changed, but the kernel must not write it",
                    output.binding
                ));
            }
            at = at.max(end);
        }
        Ok(())
    }
}
