//! Held-out examples, scored now and then: what the stop rule sees.

use super::anchors::Pool;
use super::metrics::{Metrics, Observed, mean, of_groups};
use super::step::{GroupOutcome, Scored, score_in};
use super::stop::{ANCHOR_LOGP, PERPLEXITY};
use crate::Result;
use crate::config::Method;
use crate::data::Example;
use crate::data::packing::Group;
use crate::gpu::Gpu;
use crate::loss::Loss;
use crate::model::{Capacity, Decoder};
use crate::reference::preference;

/// Anchors of a held-out prompt at most: they are scored often.
pub(super) const EVAL_ANCHORS: usize = 2;

/// Held-out examples with their anchors and what the model gave them before the first step.
pub(super) struct HeldOut {
    pub examples: Vec<Example>,
    pub pools: Vec<Pool>,
    start: Option<Vec<Vec<Scored>>>,
}

impl HeldOut {
    pub fn new(examples: Vec<Example>) -> Self {
        let pools = vec![Pool::default(); examples.len()];
        Self { examples, pools, start: None }
    }

    /// Scores the policy. Log-ratios are taken against the first evaluation, the model at step 0.
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
        let mut observed = Vec::new();
        let (mut good_logp, mut good_tokens) = (0.0, 0usize);
        for ((now, then), example) in scored.iter().zip(start.iter()).zip(&self.examples) {
            let extra = usize::from(method == Method::D2o && example.chosen_ids.is_some());
            let own = now.len() - extra;
            let good = match method {
                Method::D2o => now.get(own),
                Method::Dpo | Method::Sft => now.first(),
            };
            good_logp += good.map_or(0.0, |g| f64::from(g.logp));
            good_tokens += good.map_or(0, |g| g.token_logps.len());
            // A good answer by itself only counts for the perplexity.
            if own == 0 {
                continue;
            }
            let reference = then[..own].iter().map(|r| r.token_logps.clone()).collect();
            observed.push(Observed { outcome: outcome(loss, &now[..own], &then[..own]), reference });
        }
        let mut metrics =
            if observed.is_empty() { Metrics::default() } else { of_groups("eval_", method, &observed) };
        if method == Method::D2o && !observed.is_empty() {
            let per_token = |pick: &dyn Fn(&GroupOutcome) -> Vec<Scored>| {
                mean(
                    observed.iter().flat_map(|o| pick(&o.outcome)).flat_map(|r| r.token_logps).map(f64::from),
                )
            };
            let anchors = |o: &GroupOutcome| o.responses[..o.responses.len() - 1].to_vec();
            metrics.push(ANCHOR_LOGP, per_token(&anchors));
            let negative = |o: &GroupOutcome| o.responses.last().cloned().into_iter().collect();
            metrics.push("eval_logps_per_token/negative", per_token(&negative));
        }
        if good_tokens > 0 {
            metrics.push(PERPLEXITY, (-good_logp / good_tokens as f64).exp());
        }
        Ok(metrics)
    }
}

/// The responses that a method's loss takes, in its order.
pub(super) fn loss_responses<'a>(
    method: Method,
    example: &'a Example,
    anchors: impl Iterator<Item = &'a [u32]>,
) -> Vec<&'a [u32]> {
    let chosen = example.chosen_ids.as_deref();
    let negative = example.negative_ids.as_deref();
    match method {
        Method::D2o => anchors.chain(negative).collect(),
        Method::Dpo => chosen.into_iter().chain(negative).collect(),
        Method::Sft => chosen.into_iter().collect(),
    }
}

/// Those of a held-out example: the loss's, then the good answer where it is not among them.
pub(super) fn held_out_responses<'a>(
    method: Method,
    example: &'a Example,
    anchors: impl Iterator<Item = &'a [u32]>,
) -> Vec<&'a [u32]> {
    let good = example.chosen_ids.as_deref().filter(|_| method == Method::D2o);
    loss_responses(method, example, anchors).into_iter().chain(good).collect()
}

/// The loss of a group on the host: the reference of `shaders/preference.wgsl`.
fn outcome(loss: Loss, now: &[Scored], then: &[Scored]) -> GroupOutcome {
    let logps = |scored: &[Scored]| scored.iter().map(|r| f64::from(r.logp)).collect::<Vec<_>>();
    let lengths: Vec<u32> = now.iter().map(|r| r.token_logps.len() as u32).collect();
    let found =
        preference::forward(loss.method.into(), &logps(now), &logps(then), &lengths, loss.length_normalize);
    GroupOutcome {
        loss: found.loss as f32,
        z: found.z as f32,
        anchor_reward: found.rewards[0] as f32,
        negative_reward: found.rewards[1] as f32,
        responses: now.to_vec(),
    }
}
