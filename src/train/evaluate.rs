//! Evaluation on held-out examples, every few steps. The stop rule reads its metrics.

use super::anchors::Pool;
use super::metrics::{Metrics, Observed, kl as kl_divergence, mean, of_groups};
use super::responses::{HeldOutParts, held_out_responses};
use super::stop::{ANCHOR_LOGP, KL, PERPLEXITY};
use super::trainer::GroupOutcome;
use super::weights::{token_weights, weighted};
use crate::Result;
use crate::config::RunConfig;
use crate::data::Example;
use crate::data::packing::Group;
use crate::gpu::Gpu;
use crate::loss::Loss;
use crate::loss::Method;
use crate::loss::formula;
use crate::model::{Capacity, Decoder};
use crate::score::{Scored, score_in};

/// Maximum number of anchors per held-out prompt: they are scored at every evaluation.
const EVAL_ANCHORS: usize = 2;

/// Number of anchors per held-out prompt.
pub(super) fn eval_anchors(config: &RunConfig) -> usize {
    config.method.num_samples.min(EVAL_ANCHORS)
}

/// Held-out examples with their anchors.
pub(super) struct HeldOut {
    pub examples: Vec<Example>,
    pub pools: Vec<Pool>,
    /// Log-probs of the first evaluation, by example and response.
    pub start: Option<Vec<Vec<Scored>>>,
    /// The index of each example among the held-out examples that the run was given.
    pub kept: Vec<usize>,
}

impl HeldOut {
    pub fn new(examples: Vec<Example>) -> Self {
        let pools = vec![Pool::default(); examples.len()];
        Self { kept: (0..examples.len()).collect(), examples, pools, start: None }
    }

    /// Evaluates the policy. Log-ratios are relative to the first evaluation, of the model at step 0.
    pub async fn evaluate(
        &mut self,
        gpu: &Gpu,
        decoder: &Decoder,
        (method, loss): (Method, Loss),
        (budget, capacity): (usize, Capacity),
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Metrics> {
        let examples = self.examples.iter().zip(&self.pools);
        let groups: Vec<Group> = examples
            .map(|(example, pool)| Group {
                prompt: &example.prompt_ids,
                responses: held_out_responses(method, example, pool.ids()),
            })
            .collect();
        let scored = score_in(gpu, decoder, decoder.policy(), &groups, (budget, capacity), progress).await?;
        let start = self.start.get_or_insert_with(|| scored.clone());
        let all = scored.iter().zip(start.iter()).zip(self.examples.iter().zip(&self.pools));
        let of_all: Vec<(&[Scored], &[Scored], HeldOutParts)> = all
            .map(|((now, then), (example, pool))| {
                (&now[..], &then[..], HeldOutParts::of(method, example, pool.anchors.len()))
            })
            .collect();
        let good = || of_all.iter().filter_map(|(now, _, parts)| now.get(parts.good?));
        let good_tokens: usize = good().map(|g| g.token_logps.len()).sum();
        let good_logp: f64 = good().map(|g| f64::from(g.logp)).sum();
        let kl = if method == Method::Kto {
            let last = |scored: &[Scored]| scored.last().map_or(0.0, |r| f64::from(r.logp));
            Some(mean(of_all.iter().map(|(now, then, _)| last(now) - last(then))).max(0.0))
        } else {
            None
        };
        // An example with a good answer only counts for the perplexity alone.
        let with_loss = || of_all.iter().filter(|(_, _, parts)| parts.own > 0);
        let weights =
            self.examples.iter().zip(&self.pools).map(|(e, pool)| token_weights(method, e, pool, 1.0));
        let observed: Vec<Observed> = of_all
            .iter()
            .zip(weights)
            .filter(|((_, _, parts), _)| parts.own > 0)
            .map(|((now, then, parts), weights)| Observed {
                outcome: outcome(loss, kl.unwrap_or(0.0), &now[..parts.own], &then[..parts.own], &weights),
                reference: then[..parts.own].iter().map(|r| r.token_logps.clone()).collect(),
            })
            .collect();
        let mut metrics = if observed.is_empty() {
            Metrics::default()
        } else {
            of_groups("eval_", (method, loss), &observed)
        };
        metrics.0.extend(kl.map(|kl| ("eval_kl".into(), kl)));
        let tokens = |of: &dyn Fn(&HeldOutParts) -> std::ops::Range<usize>| -> Vec<(f32, f32)> {
            let responses =
                with_loss().flat_map(|(now, then, parts)| now[of(parts)].iter().zip(&then[of(parts)]));
            responses
                .flat_map(|(n, t)| n.token_logps.iter().copied().zip(t.token_logps.iter().copied()))
                .collect()
        };
        let anchors = tokens(&|parts| parts.anchors.clone());
        if !anchors.is_empty() {
            metrics.push(ANCHOR_LOGP, mean(anchors.iter().map(|(now, _)| f64::from(*now))));
            let negatives = tokens(&|parts| parts.own - 1..parts.own);
            metrics.push(
                "eval_logps_per_token/negative",
                mean(negatives.iter().map(|(now, _)| f64::from(*now))),
            );
            // For D²O, `of_groups` has computed it already.
            if metrics.get(KL).is_none() {
                metrics.push(KL, kl_divergence(anchors.into_iter()));
            }
        }
        if good_tokens > 0 {
            metrics.push(PERPLEXITY, (-good_logp / good_tokens as f64).exp());
        }
        Ok(metrics)
    }
}

/// Computes a group's loss on the host.
fn outcome(loss: Loss, kl: f64, now: &[Scored], then: &[Scored], weights: &[Vec<f32>]) -> GroupOutcome {
    let doubles = |list: &[f32]| list.iter().copied().map(f64::from).collect::<Vec<f64>>();
    let tokens: Vec<Vec<f64>> = now.iter().map(|r| doubles(&r.token_logps)).collect();
    let policy: Vec<&[f64]> = tokens.iter().map(Vec::as_slice).collect();
    let reference: Vec<f64> = then.iter().zip(weights).map(|(r, w)| f64::from(weighted(r, w))).collect();
    let weights: Vec<Vec<f64>> = weights.iter().map(|list| doubles(list)).collect();
    let weights: Vec<&[f64]> = weights.iter().map(Vec::as_slice).collect();
    let found = formula::forward(loss.formula, &policy, Some(&weights), &reference, loss.terms(kl));
    GroupOutcome {
        loss: found.loss as f32,
        rewards: found.rewards.map(|reward| reward as f32),
        responses: now.to_vec(),
    }
}
