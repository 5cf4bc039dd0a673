//! In which order examples are seen.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// An endless stream of example numbers: each epoch a fresh shuffle from the seed and the epoch's number.
pub(super) struct Order {
    count: usize,
    seed: u32,
    shuffle: bool,
    epoch: u64,
    left: Vec<usize>,
}

impl Order {
    pub fn new(count: usize, seed: u32, shuffle: bool) -> Self {
        Self { count, seed, shuffle, epoch: 0, left: Vec::new() }
    }

    /// The next `n` examples; a batch may reach into the next epoch.
    pub fn next(&mut self, n: usize) -> Vec<usize> {
        let mut batch = Vec::with_capacity(n);
        while batch.len() < n {
            if self.left.is_empty() {
                // Taken from the back.
                self.left = (0..self.count).rev().collect();
                if self.shuffle {
                    let seed = (u64::from(self.seed) << 32) ^ self.epoch;
                    self.left.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
                }
                self.epoch += 1;
            }
            batch.extend(self.left.pop());
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_example_once() {
        for shuffle in [false, true] {
            let mut order = Order::new(5, 1, shuffle);
            let (mut first, mut second) = (order.next(5), order.next(5));
            assert_eq!(first == second, !shuffle);
            first.sort_unstable();
            second.sort_unstable();
            assert_eq!((first.as_slice(), second.as_slice()), (&[0, 1, 2, 3, 4][..], &[0, 1, 2, 3, 4][..]));
        }
        assert_eq!(Order::new(3, 1, false).next(4), [0, 1, 2, 0]);
    }
}
