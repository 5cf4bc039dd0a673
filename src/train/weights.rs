//! The weights of single tokens in the loss: of the marked part of a flagged answer, and of anchors that
//! count less than others.

use super::anchors::Pool;
use super::responses::loss_responses;
use crate::data::Example;
use crate::loss::{Method, Takes};
use crate::score::Scored;

/// The weight of each token of the loss's responses, in their order. The mean weight of a group's anchors is
/// 1, so that they weigh as much together as anchors that are all alike. The flagged answer's weights are
/// multiplied by `factor`.
pub(super) fn token_weights(method: Method, example: &Example, pool: &Pool, factor: f32) -> Vec<Vec<f32>> {
    let responses = loss_responses(method, example, pool.ids());
    let mut weights: Vec<Vec<f32>> = responses.iter().map(|ids| vec![1.0; ids.len()]).collect();
    if method.takes() == Takes::Anchors {
        let sum: f32 = pool.anchors.iter().map(|anchor| anchor.weight).sum();
        let mean = sum / pool.anchors.len().max(1) as f32;
        for (weights, anchor) in weights.iter_mut().zip(&pool.anchors) {
            weights.fill(if mean > 0.0 { anchor.weight / mean } else { 1.0 });
        }
    }
    let flagged = weights.last_mut().filter(|_| method.takes() != Takes::Chosen);
    if let Some(flagged) = flagged {
        if let Some(marked) = example.negative_weights.as_ref().filter(|m| m.len() == flagged.len()) {
            flagged.copy_from_slice(marked);
        }
        flagged.iter_mut().for_each(|weight| *weight *= factor);
    }
    weights
}

/// The weighted sum of a response's log-probs. With weights of 1 it is the device's own sum.
pub(super) fn weighted(scored: &Scored, weights: &[f32]) -> f32 {
    if weights.iter().all(|w| *w == 1.0) {
        return scored.logp;
    }
    scored.token_logps.iter().zip(weights).fold(0.0, |sum, (logp, weight)| weight.mul_add(*logp, sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Prompt;
    use crate::train::Anchor;

    #[test]
    fn marks_weigh_the_flagged_answer_and_anchors_keep_their_mean() {
        let anchor = |weight| Anchor { ids: vec![5, 2], ended: true, step: 0, weight };
        let mut pool = Pool { anchors: vec![anchor(1.0), anchor(0.0), anchor(0.5)], ..Pool::default() };
        let mut example = Example {
            negative_ids: Some(vec![7, 8, 2]),
            negative_weights: Some(vec![0.0, 1.0, 0.0]),
            chosen_ids: Some(vec![9]),
            ..Example::asking(1, 0, Prompt::Text(String::new()), vec![1])
        };
        let of = |method, example: &Example, pool: &Pool| token_weights(method, example, pool, 1.0);
        let marked = vec![0.0, 1.0, 0.0];
        let expected = [vec![2.0; 2], vec![0.0; 2], vec![1.0; 2], marked.clone()];
        assert_eq!(of(Method::D2o, &example, &pool), expected);
        assert_eq!(token_weights(Method::Npo, &example, &pool, 1.5), [vec![0.0, 1.5, 0.0]]);
        assert_eq!(of(Method::Npo, &example, &pool), std::slice::from_ref(&marked));
        assert_eq!(of(Method::Dpo, &example, &pool), [vec![1.0], marked]);
        assert_eq!(of(Method::Sft, &example, &pool), [vec![1.0]]);
        example.negative_weights = None;
        pool.anchors.iter_mut().for_each(|anchor| anchor.weight = 1.0);
        assert!(of(Method::D2o, &example, &pool).concat().iter().all(|w| *w == 1.0));

        let scored = Scored { token_logps: vec![-1.0, -2.0, -4.0], logp: -7.1, entropy: 0.0 };
        assert_eq!(weighted(&scored, &[1.0; 3]), -7.1);
        assert_eq!(weighted(&scored, &[0.5, 0.0, 2.0]), -8.5);
    }
}
