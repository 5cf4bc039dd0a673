//! Sampling: the sampled tokens, their distribution and the updates of the rows are compared with the
//! reference.

use std::fmt::Display;

use super::fixture::{Output, below, values, words};
use super::{Check, Depth, Failure, Outcome, agree, check, equal};
use crate::gpu::{Gpu, Recorder, Tensor};
use crate::kernels::sample::{self, Common, MAX_ENDS, Rows, SamplingParams};
use crate::reference::{self, sample::Sequence};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("sample_draws", draws),
        check!("sample_frequencies", frequencies),
        check!("sample_row_order", row_order),
        check!("sample_own_settings", own_settings),
        check!("sample_finishes", finishes),
        check!("sample_survives_bad_logits", bad_logits),
    ]
}

/// The value of the history and the guards before a step.
const UNTOUCHED: u32 = 0xabab_abab;
/// Columns of the history, and the one that is written.
const COLUMNS: usize = 3;
const COLUMN: usize = 1;

/// A row with these logits; its other fields are generated.
fn row(index: u32, logits: Vec<f64>) -> Sequence {
    let vocab = logits.len() as u32;
    let seen: Vec<u32> = (0..vocab).filter(|&id| below(4, 21, id + 1000 * index) == 0).collect();
    let [prompt, sample, step] = [22, 23, 24].map(|seed| below(90, seed, index));
    let at = below(1000, 25, index);
    Sequence {
        logits,
        seen,
        state: [prompt, sample, step, 0],
        token: [1, at, 2 * at, 0],
        range: [3, 9, 40, 40 + at],
        drawn: UNTOUCHED,
    }
}

/// A row with one of four kinds of logits, by `index`: a wide range, ties, a narrow range, or one logit far
/// above the rest.
fn random(index: u32, vocab: usize) -> Sequence {
    let wide = values(100 + index, vocab, 8.0);
    let logits = match index % 4 {
        0 => wide,
        1 => wide.iter().map(|l| l.round() / 2.0).collect(),
        2 => values(100 + index, vocab, 0.5),
        _ => wide.iter().enumerate().map(|(v, l)| if v == vocab / 3 { 12.0 } else { l / 4.0 }).collect(),
    };
    row(index, logits)
}

/// The settings in the reference's types.
fn of(settings: &SamplingParams) -> reference::sample::SamplingParams {
    reference::sample::SamplingParams {
        filters: reference::sample::Params {
            temperature: f64::from(settings.temperature),
            top_k: settings.top_k as usize,
            top_p: f64::from(settings.top_p),
            repetition_penalty: f64::from(settings.repetition_penalty),
        },
        max_new_tokens: settings.max_new_tokens,
        seed: settings.seed,
        ends: settings.ends.clone(),
    }
}

/// A u32 tensor with a guard after it.
fn guarded(gpu: &Gpu, data: impl Iterator<Item = u32>) -> crate::Result<Tensor> {
    words(gpu, &data.chain([UNTOUCHED; 8]).collect::<Vec<_>>())
}

async fn unguarded(gpu: &Gpu, tensor: &Tensor, what: impl Display) -> Result<Vec<u32>, Failure> {
    let mut data = tensor.read_u32(gpu).await?;
    let guard = data.split_off(data.len() - 8);
    equal(format!("{what}, past the end"), &guard, &[UNTOUCHED; 8])?;
    Ok(data)
}

/// The rows after one step on the device.
async fn step(gpu: &Gpu, settings: &SamplingParams, rows: &[Sequence]) -> Result<Vec<Sequence>, Failure> {
    step_each(gpu, &vec![settings.clone(); rows.len()], rows).await
}

/// As [`step`], each row with its own settings. The end tokens are those of the first row's.
async fn step_each(
    gpu: &Gpu,
    settings: &[SamplingParams],
    rows: &[Sequence],
) -> Result<Vec<Sequence>, Failure> {
    let (count, vocab) = (rows.len(), rows[0].logits.len());
    let seen_words = vocab.div_ceil(32);
    let mut bits = vec![0u32; count * seen_words];
    for (r, row) in rows.iter().enumerate() {
        row.seen.iter().for_each(|&id| bits[r * seen_words + id as usize / 32] |= 1 << (id % 32));
    }
    let logits =
        Output::holding(gpu, &rows.iter().flat_map(|row| row.logits.iter().copied()).collect::<Vec<_>>())?;
    let tensors = [
        guarded(gpu, bits.into_iter())?,
        guarded(gpu, rows.iter().flat_map(|row| row.state))?,
        guarded(gpu, rows.iter().flat_map(|row| row.token))?,
        guarded(gpu, rows.iter().flat_map(|row| row.range))?,
        guarded(gpu, rows.iter().flat_map(|_| [UNTOUCHED; COLUMNS]))?,
    ];
    let [seen, state, tokens, ranges, history] = &tensors;
    let own = words(gpu, &settings.iter().flat_map(|own| own.words(vocab)).collect::<Vec<_>>())?;
    let mut rec = Recorder::new(gpu);
    let bound = Rows { logits: &logits.tensor, seen, state, tokens, ranges, history, settings: &own };
    sample::forward(&mut rec, &Common::of(settings), bound, (count, vocab), (COLUMN, COLUMNS))?;
    rec.submit();
    let penalised = logits.read(gpu, "logits").await?;
    let mut read = Vec::new();
    for (tensor, name) in tensors.iter().zip(["seen", "state", "tokens", "ranges", "history"]) {
        read.push(unguarded(gpu, tensor, name).await?);
    }
    for (i, &word) in read[4].iter().enumerate().filter(|(i, _)| i % COLUMNS != COLUMN) {
        equal(format!("history, word {i}, of another step"), &[word], &[UNTOUCHED])?;
    }
    let four = |data: &[u32], r: usize| [data[4 * r], data[4 * r + 1], data[4 * r + 2], data[4 * r + 3]];
    let after = |r: usize| Sequence {
        logits: penalised[r * vocab..(r + 1) * vocab].iter().map(|&l| f64::from(l)).collect(),
        seen: (0..vocab as u32)
            .filter(|&id| read[0][r * seen_words + id as usize / 32] >> (id % 32) & 1 == 1)
            .collect(),
        state: four(&read[1], r),
        token: four(&read[2], r),
        range: four(&read[3], r),
        drawn: read[4][r * COLUMNS + COLUMN],
    };
    Ok((0..count).map(after).collect())
}

/// Compares everything but the logits, which would make the message too long.
fn same(what: impl Display, found: &Sequence, expected: &Sequence) -> Outcome {
    let short = |row: &Sequence| (row.drawn, row.state, row.token, row.range, row.seen.clone());
    if short(found) == short(expected) {
        return Ok(());
    }
    let (found, expected) = (short(found), short(expected));
    Err(Failure(format!(
        "{what}: (drawn, state, token, range, seen): expected {expected:?}, found {found:?}"
    )))
}

fn settings(temperature: f32, top_k: u32, top_p: f32, repetition_penalty: f32) -> SamplingParams {
    SamplingParams {
        temperature,
        top_k,
        top_p,
        repetition_penalty,
        max_new_tokens: 80,
        seed: 1234,
        ends: vec![2, 5, 11, 17, 23, 31],
    }
}

fn all_settings() -> Vec<SamplingParams> {
    vec![
        settings(0.9, 5, 0.9, 1.3),
        settings(0.0, 0, 1.0, 1.0),
        settings(1.0, 0, 1.0, 1.0),
        settings(0.7, 0, 0.8, 1.0),
        settings(1.5, 3, 1.0, 1.0),
        settings(1.0, 1, 1.0, 1.0),
        settings(0.0, 0, 1.0, 2.0),
        settings(0.5, 1000, 0.01, 0.8),
        settings(0.9, 50, 0.95, 1.1),
        settings(1.0, 0, 1.0, 1.8),
    ]
}

async fn draws(gpu: &Gpu, depth: Depth) -> Outcome {
    // Vocabulary and rows.
    for &(vocab, count) in
        depth.of(&[(33, 9), (300, 8), (7, 17), (1, 1), (2, 3), (64, 8), (65, 30), (2053, 5), (50_257, 2)])
    {
        let rows: Vec<Sequence> = (0..count).map(|index| random(index, vocab)).collect();
        let (mut compared, mut close) = (0, 0);
        for settings in all_settings() {
            let found = step(gpu, &settings, &rows).await?;
            for (r, (found, row)) in found.iter().zip(&rows).enumerate() {
                let logits: Vec<f32> = found.logits.iter().map(|&l| l as f32).collect();
                let what = format!("weights, vocab={vocab} row {r} of {count}, {settings:?}");
                agree(what, &logits, &row.weights(&of(&settings)))?;
                let Some(id) = row.draw(&of(&settings)) else {
                    close += 1;
                    continue;
                };
                compared += 1;
                same(
                    format!("vocab={vocab} row {r} of {count}, {settings:?}"),
                    found,
                    &row.after(id, &of(&settings)),
                )?;
            }
        }
        if 4 * close > compared {
            return Err(Failure(format!(
                "vocab={vocab}: {compared} samples compared, {close} too close to an edge to compare"
            )));
        }
    }
    Ok(())
}

/// Over many samples of one prompt, each token's frequency matches its probability after filtering, within
/// five standard deviations.
async fn frequencies(gpu: &Gpu, depth: Depth) -> Outcome {
    let count = if depth == Depth::Full { 8192 } else { 1024 };
    for settings in [settings(1.0, 0, 1.0, 1.0), settings(0.7, 7, 0.9, 1.0)] {
        let logits = values(31, 10, 2.0);
        let rows: Vec<Sequence> = (0..count)
            .map(|sample| Sequence { state: [3, sample, 2, 0], seen: vec![], ..row(0, logits.clone()) })
            .collect();
        let kept = rows[0].kept(&of(&settings), 0.0);
        let total: f64 = kept.iter().sum();
        let mut drawn = vec![0u32; logits.len()];
        for row in step(gpu, &settings, &rows).await? {
            let id = row.drawn as usize;
            *drawn.get_mut(id).ok_or_else(|| Failure(format!("sampled {id} of 10, {settings:?}")))? += 1;
        }
        for (id, (&drawn, kept)) in drawn.iter().zip(kept).enumerate() {
            let share = kept / total;
            let mean = share * f64::from(count);
            if (f64::from(drawn) - mean).abs() > 5.0 * (mean * (1.0 - share)).sqrt() {
                let expected = format!("expected {mean:.1} of {count} samples, found {drawn}");
                return Err(Failure(format!("token {id}: {expected}, {settings:?}")));
            }
        }
    }
    Ok(())
}

/// A row's token depends on its prompt, sample and step, not on its index in the batch or on the other rows.
async fn row_order(gpu: &Gpu, _: Depth) -> Outcome {
    let rows: Vec<Sequence> = (0..13).map(|index| random(index, 131)).collect();
    for settings in [settings(1.0, 0, 1.0, 1.0), settings(0.9, 20, 0.9, 1.2)] {
        let together = step(gpu, &settings, &rows).await?;
        let backwards: Vec<Sequence> = rows.iter().rev().cloned().collect();
        for (r, found) in step(gpu, &settings, &backwards).await?.iter().rev().enumerate() {
            same(format!("row {r}, in reverse, {settings:?}"), found, &together[r])?;
        }
        for (r, row) in rows.iter().enumerate().step_by(5) {
            let alone = step(gpu, &settings, std::slice::from_ref(row)).await?;
            same(format!("row {r} alone, {settings:?}"), &alone[0], &together[r])?;
        }
    }
    Ok(())
}

/// Rows with settings of their own sample what they sample when all have the same settings.
async fn own_settings(gpu: &Gpu, _: Depth) -> Outcome {
    for vocab in [33, 300] {
        let rows: Vec<Sequence> = (0..20).map(|index| random(index, vocab)).collect();
        let settings: Vec<SamplingParams> = (0..20)
            .map(|r: u32| {
                let own = all_settings()[r as usize % all_settings().len()].clone();
                SamplingParams { seed: r / 2, max_new_tokens: 30 + 3 * r, ..own }
            })
            .collect();
        let mixed = step_each(gpu, &settings, &rows).await?;
        for ((found, settings), row) in mixed.iter().zip(&settings).zip(&rows) {
            let alone = step(gpu, settings, std::slice::from_ref(row)).await?;
            same(format!("vocab={vocab}, {settings:?}"), found, &alone[0])?;
        }
    }
    Ok(())
}

/// A row ends at any of the end tokens or at its last allowed step; a row that has ended is not changed.
async fn finishes(gpu: &Gpu, _: Depth) -> Outcome {
    let vocab = 40;
    let leading =
        |index: u32, id: u32| row(index, (0..vocab).map(|v| if v == id { 5.0 } else { -1.0 }).collect());
    let ends: Vec<u32> = (0..MAX_ENDS as u32).map(|e| 3 + 4 * e).collect();
    for (temperature, count) in [(0.0, MAX_ENDS), (0.05, MAX_ENDS), (0.0, 5), (0.0, 0)] {
        let settings = SamplingParams {
            temperature,
            ends: ends[..count].to_vec(),
            max_new_tokens: 200,
            ..settings(0.0, 0, 1.0, 1.5)
        };
        let mut rows: Vec<Sequence> = (0..vocab).map(|id| leading(id, id)).collect();
        rows[1].state[2] = 199;
        rows[2].state[2] = 198;
        rows[3].state[3] = 1;
        rows[4].state[3] = 1;
        for row in &mut rows {
            // The leading token must not have been seen: with the penalty it would no longer lead.
            row.seen.clear();
        }
        let found = step(gpu, &settings, &rows).await?;
        for (id, (found, row)) in (0..vocab).zip(found.iter().zip(&rows)) {
            same(format!("row {id}, {settings:?}"), found, &row.after(id, &of(&settings)))?;
        }
    }
    let settings = SamplingParams { ends: vec![0; MAX_ENDS + 1], ..settings(0.0, 0, 1.0, 1.0) };
    match step(gpu, &settings, &[leading(0, 0)]).await {
        Err(Failure(message)) if message.contains("at most 8") => Ok(()),
        other => Err(Failure(format!("{} end tokens: {other:?}", MAX_ENDS + 1))),
    }
}

/// NaN logits end a row without a valid id. Infinite and huge logits must not hang the device, or make it
/// sample a token that has no probability mass.
async fn bad_logits(gpu: &Gpu, _: Depth) -> Outcome {
    let vocab = 70;
    let mut rows: Vec<Sequence> = (0..5).map(|index| random(index, vocab)).collect();
    rows[0].logits.fill(f64::NAN);
    for (v, logit) in rows[1].logits.iter_mut().enumerate() {
        *logit = if v % 2 == 0 { f64::NEG_INFINITY } else { *logit };
    }
    for (v, logit) in rows[2].logits.iter_mut().enumerate() {
        *logit = f64::from(2.5e38f32) * if v % 7 == 3 { 1.0 } else { -1.0 };
    }
    rows[4].logits[9] = f64::INFINITY;
    for settings in all_settings() {
        let settings = SamplingParams { repetition_penalty: 1.0, ..settings };
        let found = step(gpu, &settings, &rows).await?;
        let ids: Vec<u32> = found.iter().map(|row| row.drawn).collect();
        let fine = ids[0] >= vocab as u32
            && found[0].state[3] == 1
            && ids[1] % 2 == 1
            && ids[2] % 7 == 3
            && ids[3] < vocab as u32
            && (ids[4] == 9 || ids[4] >= vocab as u32);
        if !fine {
            let kinds = "NaN, -inf, 2.5e38, plain values and +inf";
            return Err(Failure(format!("rows with logits of {kinds} sampled {ids:?}, {settings:?}")));
        }
    }
    Ok(())
}
