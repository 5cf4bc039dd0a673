//! Sampled tokens, and the rows after a step of the sampler.

use super::{Output, UNIT, Witnessed};
use crate::kernels::sample::{self as kernel, NONE, Params};
use crate::reference::sample::{self, SamplingParams, Sequence};

/// Bindings: logits, seen, state, tokens, ranges, history, settings.
pub(super) fn forward(seen: &Witnessed) -> Vec<Output> {
    let p: Params = seen.params();
    let [rows, vocab, words, columns] = [p.rows, p.vocab, p.seen_words, p.columns].map(|size| size as usize);
    let ends = [p.ends, p.more_ends].concat()[..p.end_count as usize].to_vec();
    let settings = |row: usize| {
        let word = |i| seen.bound[6].word(row * kernel::SamplingParams::WORDS + i);
        let float = |i| f64::from(f32::from_bits(word(i)));
        SamplingParams {
            filters: sample::Params {
                top_k: word(1) as usize,
                top_p: float(2),
                temperature: float(3),
                repetition_penalty: float(4),
            },
            seed: word(0),
            max_new_tokens: word(5),
            ends: ends.clone(),
        }
    };
    let column = |row: usize| row * columns + p.column as usize;
    let mut of_logits = Output::first(0, rows * vocab);
    let [mut of_seen, mut of_state, mut of_tokens, mut of_ranges] =
        [(1, words), (2, 4), (3, 4), (4, 4)].map(|(binding, width)| Output::first(binding, rows * width));
    let mut of_history = Output::new(5, (0..rows).map(|row| column(row)..column(row) + 1).collect());
    let history = seen.bound[5].after.as_deref().unwrap_or_default();
    for r in seen.pick_rows(rows, vocab) {
        let bit = |id: &u32| seen.bound[1].word(r * words + *id as usize / 32) >> (id % 32) & 1 == 1;
        let [state, token, range] = [2, 3, 4].map(|binding| seen.bound[binding].four(r));
        let logits = seen.bound[0].range(r * vocab, vocab);
        let row = Sequence {
            logits,
            seen: (0..vocab as u32).filter(bit).collect(),
            state,
            token,
            range,
            drawn: NONE,
        };
        if !row.logits.iter().all(|logit| logit.is_finite()) {
            continue;
        }
        let settings = settings(r);
        let drawn = super::word(history, column(r));
        assert!(row.state[3] == 1 || drawn < p.vocab, "row {r}: sampled token {drawn} of {vocab}");
        // A row that has ended samples nothing. If the token depends on rounding, the device's is accepted.
        let id = if row.state[3] == 1 { NONE } else { row.draw(&settings).unwrap_or(drawn) };
        of_history.word(column(r), id);
        let after = row.after(drawn, &settings);
        let most = row.logits.iter().fold(0.0, |most: f64, logit| most.max(logit.abs()));
        let share = 1e-5 + 8.0 * UNIT * most / settings.filters.temperature.max(1e-3);
        let weights = row.weights(&settings);
        // Weights far below the largest are 0 on the device: exp(-200).
        of_logits.row(r * vocab, &weights, |i| share * weights[i].abs() + 1e-37);
        let mut bits = vec![0; words];
        after.seen.iter().for_each(|id| bits[*id as usize / 32] |= 1u32 << (id % 32));
        bits.iter().enumerate().for_each(|(i, bits)| of_seen.word(r * words + i, *bits));
        for (output, four) in
            [(&mut of_state, after.state), (&mut of_tokens, after.token), (&mut of_ranges, after.range)]
        {
            four.iter().enumerate().for_each(|(i, word)| output.word(4 * r + i, *word));
        }
    }
    vec![of_logits, of_seen, of_state, of_tokens, of_ranges, of_history]
}
