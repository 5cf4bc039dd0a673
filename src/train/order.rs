//! The order in which examples are trained on.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::config::TrainConfig;

/// The examples of each optimizer step. Every epoch is a new shuffle, from the seed and the epoch's number.
/// No step spans two epochs: as in transformers' Trainer, an epoch's last step is smaller if the step size
/// does not divide the number of examples.
pub(super) struct Order {
    count: usize,
    /// Examples per batch, and batches per step.
    batch: usize,
    accumulation: usize,
    seed: u32,
    shuffle: bool,
    epoch: u64,
    left: Vec<usize>,
    /// The examples of each cluster, if these are drawn from as often.
    clusters: Vec<Vec<usize>>,
}

impl Order {
    /// An order of `count` examples (at least 1), in batches of up to `batch`, with `accumulation` batches
    /// per step.
    pub fn new(count: usize, (batch, accumulation): (usize, usize), seed: u32, shuffle: bool) -> Self {
        Self { count, batch, accumulation, seed, shuffle, epoch: 0, left: Vec::new(), clusters: Vec::new() }
    }

    /// The order of `count` examples by the settings, and the number of steps of the whole run.
    pub fn of(count: usize, t: &TrainConfig) -> (Self, usize) {
        let batches = (t.per_device_train_batch_size, t.gradient_accumulation_steps);
        let order = Self::new(count, batches, t.seed, t.shuffle);
        let of_epochs = (t.num_train_epochs * order.steps_per_epoch() as f64).ceil().max(1.0);
        let total = t.max_steps.unwrap_or(of_epochs as usize);
        (order, total)
    }

    /// The same order, but each epoch takes as many examples of each cluster: those of small clusters more
    /// than once, and not all of large ones. `of_example` has the cluster of each example; if it is empty,
    /// nothing changes.
    pub fn balanced(mut self, of_example: &[usize]) -> Self {
        let count = of_example.iter().max().map_or(0, |last| last + 1);
        self.clusters = vec![Vec::new(); count];
        of_example.iter().enumerate().for_each(|(i, cluster)| self.clusters[*cluster].push(i));
        self
    }

    /// The examples of an epoch: one from each cluster in turn, in rounds that go on where the epoch before
    /// ended. Every pass over a cluster is a new shuffle.
    fn of_clusters(&self, epoch: u64) -> Vec<usize> {
        let shuffled = |count: usize, number: u64, stream: u64| {
            let mut order: Vec<usize> = (0..count).collect();
            if self.shuffle {
                let mut rng = ChaCha8Rng::seed_from_u64((u64::from(self.seed) << 32) ^ number);
                rng.set_stream(stream);
                order.shuffle(&mut rng);
            }
            order
        };
        let (count, clusters) = (self.count as u64, self.clusters.len() as u64);
        // The order of the current round, and of each cluster's current pass.
        let mut turns = (u64::MAX, Vec::new());
        let mut passes = vec![(u64::MAX, Vec::new()); self.clusters.len()];
        let one = |place: u64| {
            let round = place / clusters;
            if turns.0 != round {
                turns = (round, shuffled(self.clusters.len(), round, 1));
            }
            let cluster = turns.1[(place % clusters) as usize];
            let members = &self.clusters[cluster];
            let (pass, at) = (round / members.len() as u64, round as usize % members.len());
            if passes[cluster].0 != pass {
                passes[cluster] = (pass, shuffled(members.len(), pass, 2 + cluster as u64));
            }
            members[passes[cluster].1[at]]
        };
        (epoch * count..(epoch + 1) * count).map(one).collect()
    }

    /// Batches per epoch.
    fn batches(&self) -> usize {
        self.count.div_ceil(self.batch)
    }

    /// Steps per epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.batches().div_ceil(self.accumulation)
    }

    /// Epochs done after `steps` steps, counted in batches as transformers does.
    pub fn epochs(&self, steps: usize) -> f64 {
        let (whole, rest) = (steps / self.steps_per_epoch(), steps % self.steps_per_epoch());
        whole as f64 + (rest * self.accumulation) as f64 / self.batches() as f64
    }

    /// Indices of the next step's examples.
    pub fn next(&mut self) -> Vec<usize> {
        if self.left.is_empty() {
            // Reversed, because steps take their examples from the back.
            if self.clusters.is_empty() {
                self.left = (0..self.count).rev().collect();
                if self.shuffle {
                    let seed = (u64::from(self.seed) << 32) ^ self.epoch;
                    self.left.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
                }
            } else {
                self.left = self.of_clusters(self.epoch);
                self.left.reverse();
            }
            self.epoch += 1;
        }
        let stay = self.left.len().saturating_sub(self.batch * self.accumulation);
        self.left.drain(stay..).rev().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_drawn_from_as_often() {
        // 12 examples of one cluster, 3 of another, 1 of a third.
        let of_example: Vec<usize> = (0..16).map(|i| usize::from(i >= 12) + usize::from(i == 15)).collect();
        for shuffle in [false, true] {
            let mut order = Order::new(16, (4, 1), 7, shuffle).balanced(&of_example);
            let mut seen = [0; 16];
            for _ in 0..12 {
                order.next().into_iter().for_each(|i| seen[i] += 1);
            }
            let counts = [&seen[..12], &seen[12..15], &seen[15..]].map(|part| part.iter().sum::<usize>());
            assert_eq!(counts.iter().sum::<usize>(), 48);
            assert_eq!(counts, [16; 3]);
            // All examples of a cluster are seen before any is seen again.
            assert!(seen[..12].iter().all(|n| (1..=2).contains(n)), "{seen:?}");
            assert!(seen[12..15].iter().all(|n| (5..=6).contains(n)), "{seen:?}");
        }
        let mut same = Order::new(5, (1, 2), 1, true).balanced(&[]);
        assert_eq!(same.next(), Order::new(5, (1, 2), 1, true).next());
    }

    #[test]
    fn every_epoch_sees_every_example_once_and_ends_where_the_data_does() {
        for shuffle in [false, true] {
            let mut order = Order::new(5, (1, 2), 1, shuffle);
            let mut epoch = || [order.next(), order.next(), order.next()];
            let (first, second) = (epoch(), epoch());
            assert_eq!(first == second, !shuffle);
            for steps in [first, second] {
                assert_eq!(steps.each_ref().map(Vec::len), [2, 2, 1]);
                let mut seen = steps.concat();
                seen.sort_unstable();
                assert_eq!(seen, [0, 1, 2, 3, 4]);
            }
        }
        let mut order = Order::new(3, (8, 1), 1, false);
        assert_eq!([order.next(), order.next()], [[0, 1, 2], [0, 1, 2]]);
    }

    #[test]
    fn epochs_are_counted_in_batches() {
        let order = Order::new(5, (4, 1), 1, true);
        assert_eq!(order.steps_per_epoch(), 2);
        assert_eq!([0, 1, 2, 3, 4].map(|steps| order.epochs(steps)), [0.0, 0.5, 1.0, 1.5, 2.0]);
        let order = Order::new(9, (2, 2), 1, true);
        assert_eq!([1, 2, 3, 4].map(|steps| order.epochs(steps)), [0.4, 0.8, 1.0, 1.4]);
        assert_eq!(Order::new(3, (8, 1), 1, true).epochs(2), 2.0);
    }
}
