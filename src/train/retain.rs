//! The retain term's prompts: which are used in which batch, and the model's own answers to them.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::anchors::Pool;
use crate::data::Example;
use crate::data::packing::Group;
use crate::score::Scored;

/// Ordinary prompts with the answers that the model gave before training.
pub(super) struct Retained {
    pub examples: Vec<Example>,
    /// One answer each.
    pub pools: Vec<Pool>,
    /// The index of each example among those that the run was given.
    pub kept: Vec<usize>,
    /// The answers' log-probs under the model before training; empty until they are scored.
    pub start: Vec<Scored>,
}

impl Retained {
    pub fn new(examples: Vec<Example>) -> Self {
        let pools = vec![Pool::default(); examples.len()];
        Self { kept: (0..examples.len()).collect(), examples, pools, start: Vec::new() }
    }

    /// Indices of the examples of a batch of `size`: all examples in turn, in an order that `seed` gives.
    /// `number` counts the batches of the run.
    pub fn of_batch(&self, number: usize, size: usize, seed: u32) -> Vec<usize> {
        let count = self.examples.len();
        if count == 0 {
            return Vec::new();
        }
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(u64::from(seed)));
        // More than all of them would put an example into a batch twice.
        let size = size.min(count);
        (number * size..(number + 1) * size).map(|i| order[i % count]).collect()
    }

    /// The prompt of an example and its answer.
    pub fn group(&self, i: usize) -> Group<'_> {
        Group { prompt: &self.examples[i].prompt_ids, responses: self.pools[i].ids().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Prompt;

    #[test]
    fn batches_take_all_prompts_in_turn() {
        let example =
            |row: usize| Example::asking(row + 1, row, Prompt::Text(String::new()), vec![row as u32]);
        let retained = Retained::new((0..5).map(example).collect());
        let all: Vec<usize> = (0..5).flat_map(|number| retained.of_batch(number, 2, 7)).collect();
        for i in 0..5 {
            assert_eq!(all.iter().filter(|&&j| j == i).count(), 2, "{all:?}");
        }
        assert_eq!(all[..5], all[5..]);
        assert_ne!(retained.of_batch(0, 5, 7), retained.of_batch(0, 5, 8));
        assert_eq!(retained.of_batch(3, 9, 7).len(), 5);
        assert!(Retained::new(Vec::new()).of_batch(0, 2, 7).is_empty());
    }
}
