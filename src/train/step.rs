//! One optimizer step over packed micro-batches, and scoring without one.

use std::pin::Pin;

use crate::Result;
use crate::data::packing::{Group, Packed, split};
use crate::gpu::{Gpu, Recorder};
use crate::loss::Loss;
use crate::model::{Capacity, Decoder, Workspace};
use crate::nn::{Dropout, Pass};
use crate::optim::Optimizer;

/// Log-probs of one response.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Of each token, end-of-turn included.
    pub token_logps: Vec<f32>,
    /// Their sum, as the device added it.
    pub logp: f32,
    /// Mean entropy of the predictions, in nats.
    pub entropy: f32,
}

/// One group's part of a step.
#[derive(Debug, Clone)]
pub struct GroupOutcome {
    /// The group's loss.
    pub loss: f32,
    /// The argument of σ; `rewards/margins`.
    pub z: f32,
    /// β × the anchors' mean log-ratio.
    pub anchor_reward: f32,
    /// α × the negative's log-ratio.
    pub negative_reward: f32,
    /// Its responses, in order.
    pub responses: Vec<Scored>,
}

/// A result that the device is still at work on. It can wait while more is recorded.
pub type Pending<'g, T> = Pin<Box<dyn Future<Output = Result<T>> + 'g>>;

/// The workspace's results by group and response. The copies are on their way when this returns.
fn read_scores<'g>(
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

/// Scores every response of `groups` under `pass`, in batches of at most `budget` tokens, in a workspace of its own.
/// `progress` is told the groups and tokens of each batch as it is done.
pub async fn score(
    gpu: &Gpu,
    decoder: &Decoder,
    pass: Pass<'_>,
    groups: &[Group<'_>],
    budget: usize,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<Scored>>> {
    let batches: Vec<Packed> =
        split(groups, budget, usize::MAX).into_iter().map(|range| Packed::new(&groups[range])).collect();
    let mut ws = decoder.workspace(gpu, Capacity::covering(batches.iter(), false))?;
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

/// A policy in training: its optimizer and the workspace of its steps.
pub struct Trainer<'g> {
    gpu: &'g Gpu,
    /// The model.
    pub decoder: Decoder,
    /// Its optimizer.
    pub optimizer: Optimizer,
    workspace: Option<Workspace>,
    loss: Loss,
    seed: u32,
    micro_batches: u32,
}

/// One micro-batch: groups and, for each of their responses in order, its reference's summed log-prob.
pub struct MicroBatch<'a> {
    /// The groups.
    pub groups: Vec<Group<'a>>,
    /// Per response of all groups; empty for methods without a reference.
    pub reference: Vec<f32>,
}

impl<'g> Trainer<'g> {
    /// A trainer of `decoder`.
    pub fn new(gpu: &'g Gpu, decoder: Decoder, optimizer: Optimizer, loss: Loss, seed: u32) -> Self {
        Self { gpu, decoder, optimizer, workspace: None, loss, seed, micro_batches: 0 }
    }

    /// Makes the workspace fit `packed`, growing by a quarter more than asked so that it is seldom done.
    fn fit(&mut self, packed: &Packed) -> Result<&mut Workspace> {
        let needed = Capacity::covering([packed].into_iter(), true);
        let old = self.workspace.as_ref().map(Workspace::capacity);
        let fits = old.is_some_and(|c| {
            needed.tokens <= c.tokens
                && needed.rows <= c.rows
                && needed.sequences <= c.sequences
                && needed.groups <= c.groups
        });
        let ws = self.workspace.take().filter(|_| fits);
        let ws = match ws {
            Some(ws) => ws,
            None => {
                let old = old.unwrap_or(needed);
                let grown = |now: usize, old: usize| now.max(old) + if now > old { now / 4 } else { 0 };
                let capacity = Capacity {
                    tokens: grown(needed.tokens, old.tokens),
                    rows: grown(needed.rows, old.rows),
                    sequences: grown(needed.sequences, old.sequences),
                    groups: grown(needed.groups, old.groups),
                    training: true,
                };
                self.decoder.workspace(self.gpu, capacity)?
            }
        };
        Ok(self.workspace.insert(ws))
    }

    /// Submits forward, loss and backward of one micro-batch: its gradients are added to the optimizer's. `divisor` is the
    /// number of groups in the whole step. The outcomes come when they are waited for, and nothing else has to wait for them.
    pub fn accumulate(
        &mut self,
        batch: &MicroBatch<'_>,
        divisor: usize,
    ) -> Result<Pending<'g, Vec<GroupOutcome>>> {
        let packed = Packed::new(&batch.groups);
        self.fit(&packed)?;
        let Some(ws) = self.workspace.as_mut() else { return Ok(Box::pin(async { Ok(Vec::new()) })) };
        let mut rec = Recorder::new(self.gpu);
        ws.load(&mut rec, &packed)?;
        ws.reference.write_f32(self.gpu, &batch.reference);
        let dropout = Some(Dropout { step: self.micro_batches, seed: self.seed });
        let pass = Pass { dropout, ..self.decoder.policy() };
        self.decoder.score(&mut rec, pass, ws)?;
        self.loss.record(&mut rec, ws, divisor)?;
        self.decoder.backward(&mut rec, pass, self.optimizer.gradients(), ws)?;
        rec.submit();
        self.micro_batches += 1;
        let outcome = ws.outcome.slice(0, 4 * packed.groups.len()).read_f32(self.gpu);
        let scored = read_scores(self.gpu, ws, packed);
        Ok(Box::pin(async move {
            let (outcome, scored) = (outcome.await?, scored.await?);
            let outcomes = outcome.chunks_exact(4).zip(scored).map(|(o, responses)| GroupOutcome {
                loss: o[0],
                z: o[1],
                anchor_reward: o[2],
                negative_reward: o[3],
                responses,
            });
            Ok(outcomes.collect())
        }))
    }

    /// Submits the optimizer step on the gradients added since the last one. Their norm before clipping comes later.
    pub fn step(&mut self, lr: f64) -> Result<Pending<'g, f32>> {
        let mut rec = Recorder::new(self.gpu);
        self.optimizer.step(&mut rec, self.decoder.layout(), self.decoder.values(), lr)?;
        rec.submit();
        let clip = self.optimizer.clip().read_f32(self.gpu);
        Ok(Box::pin(async move { Ok(clip.await?[0]) }))
    }
}
