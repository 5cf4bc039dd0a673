//! Log-probs and hidden states of given answers, without a training step.

use crate::Result;
use crate::data::packing::{Group, Packed, split};
use crate::gpu::{Gpu, Recorder};
use crate::model::{Capacity, Decoder, Workspace};
use crate::nn::Pass;

/// Log-probs of one response.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The log-prob of each token, including the end-of-turn token.
    pub token_logps: Vec<f32>,
    /// The sum of `token_logps`, as the device computed it.
    pub logp: f32,
    /// Mean entropy of the predictions, in nats.
    pub entropy: f32,
}

/// Reads the scores of each group's responses from the workspace. The copies from the device have already
/// been submitted when this returns.
pub(crate) fn read_scores<'g>(
    gpu: &'g Gpu,
    ws: &Workspace,
    packed: Packed,
) -> impl Future<Output = Result<Vec<Vec<Scored>>>> + use<'g> {
    let (rows, sequences) = (packed.predict.len(), packed.rows.len());
    let stats = ws.stats.slice(0, 3 * rows).read_f32(gpu);
    let sums = ws.sums.slice(0, 2 * sequences).read_f32(gpu);
    async move { Ok(scores(&packed, &stats.await?, &sums.await?)) }
}

fn scores(packed: &Packed, stats: &[f32], sums: &[f32]) -> Vec<Vec<Scored>> {
    let sequences = packed.rows.len();
    let mut scored = packed.rows.iter().enumerate().map(|(s, span)| {
        let (start, end) = (span[0] as usize, span[1] as usize);
        let entropy = sums[sequences + s] / (end - start).max(1) as f32;
        Scored { token_logps: stats[start..end].to_vec(), logp: sums[s], entropy }
    });
    packed.groups.iter().map(|g| scored.by_ref().take((g[1] - g[0]) as usize).collect()).collect()
}

/// Scores every response of `groups` under `pass`, in batches of at most `budget` tokens, in a workspace of
/// its own. After each batch, `progress` gets its number of groups and tokens.
pub async fn score(
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    groups: &[Group<'_>],
    budget: usize,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<Scored>>> {
    let batches = batches(groups, budget);
    let capacity = Capacity::covering(batches.iter(), None);
    score_batches(gpu, decoder, pass, batches, capacity, progress).await
}

/// Like [`score`], in a workspace of a given capacity.
pub(crate) async fn score_in(
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    groups: &[Group<'_>],
    (budget, capacity): (usize, Capacity),
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<Scored>>> {
    score_batches(gpu, decoder, pass, batches(groups, budget), capacity, progress).await
}

/// The mean hidden state `(D)` of each response of `groups` under `pass`: after the last norm, over the
/// states that predict the response's tokens. In batches of at most `budget` tokens, in a workspace of the
/// given capacity; `progress` as in [`score`].
pub(crate) async fn mean_states_in(
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    groups: &[Group<'_>],
    (budget, capacity): (usize, Capacity),
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<Vec<f32>>>> {
    let mut ws = decoder.workspace(gpu, capacity)?;
    let width = decoder.config().width;
    let mut results = Vec::new();
    for packed in batches(groups, budget) {
        let mut rec = Recorder::new(gpu);
        ws.load(&mut rec, &packed)?;
        let states = decoder.states(&mut rec, pass, &ws)?;
        rec.submit();
        let states = states.slice(0, packed.predict.len() * width).read_f32(gpu).await?;
        let mean = |[first, end]: [u32; 2]| -> Vec<f32> {
            let rows = &states[first as usize * width..end as usize * width];
            let sum = |i: usize| rows[i..].iter().step_by(width).sum::<f32>();
            (0..width).map(|i| sum(i) / (end - first).max(1) as f32).collect()
        };
        let of_group = |[first, end]: [u32; 2]| (first..end).map(|s| mean(packed.rows[s as usize])).collect();
        results.extend(packed.groups.iter().map(|group| of_group(*group)));
        progress(packed.groups.len(), packed.tokens.len())?;
    }
    Ok(results)
}

fn batches(groups: &[Group], budget: usize) -> Vec<Packed> {
    split(groups, budget, usize::MAX).into_iter().map(|range| Packed::new(&groups[range])).collect()
}

async fn score_batches(
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    batches: Vec<Packed>,
    capacity: Capacity,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<Scored>>> {
    let mut ws = decoder.workspace(gpu, capacity)?;
    let mut results = Vec::new();
    for packed in batches {
        let mut rec = Recorder::new(gpu);
        ws.load(&mut rec, &packed)?;
        decoder.score(&mut rec, pass, &ws)?;
        rec.submit();
        let (groups, tokens) = (packed.groups.len(), packed.tokens.len());
        results.extend(read_scores(gpu, &ws, packed).await?);
        progress(groups, tokens)?;
    }
    Ok(results)
}
