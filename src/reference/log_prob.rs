//! Log-probability of one target per row of logits, with the row's log-sum-exp and entropy.

/// The results of [`forward`], one value per row.
#[derive(Clone, Debug)]
pub struct Rows {
    /// log softmax of the target, (R).
    pub logp: Vec<f64>,
    /// log Σ exp of the row, (R); the backward pass needs it.
    pub lse: Vec<f64>,
    /// −Σ p log p in nats, (R).
    pub entropy: Vec<f64>,
}

/// logits (R, vocab), target (R) -> `logp = l[target] − lse`, lse, entropy = lse − Σ p·l.
pub fn forward(logits: &[f64], target: &[u32], vocab: usize) -> Rows {
    let mut out = Rows { logp: vec![], lse: vec![], entropy: vec![] };
    for (row, &target) in logits.chunks_exact(vocab).zip(target) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = most + row.iter().map(|l| (l - most).exp()).sum::<f64>().ln();
        // A logit of −inf has probability 0, and its term 0 · −inf counts as 0.
        let mean: f64 = row.iter().filter(|l| l.is_finite()).map(|l| (l - lse).exp() * l).sum();
        out.logp.push(row[target as usize] - lse);
        out.lse.push(lse);
        out.entropy.push(lse - mean);
    }
    out
}

/// dlogits (R, vocab) = `coef[r] · (onehot(target[r]) − softmax(row r))`, with coef = dL/dlogp per row.
pub fn backward(logits: &[f64], target: &[u32], lse: &[f64], coef: &[f64], vocab: usize) -> Vec<f64> {
    logits
        .iter()
        .enumerate()
        .map(|(i, l)| {
            let (r, v) = (i / vocab, i % vocab);
            let hit = if v == target[r] as usize { 1.0 } else { 0.0 };
            coef[r] * (hit - (l - lse[r]).exp())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    #[test]
    fn uniform_and_large_logits() {
        let rows = forward(&[5.0, 5.0, 5.0, 5.0, 1e4, 0.0, -1e4, f64::NEG_INFINITY], &[1, 0], 4);
        assert!((rows.logp[0] + 4f64.ln()).abs() < 1e-14 && (rows.entropy[0] - 4f64.ln()).abs() < 1e-14);
        assert_eq!((rows.logp[1], rows.lse[1], rows.entropy[1]), (0.0, 1e4, 0.0));
    }

    #[test]
    fn entropy_by_its_definition() {
        let logits = values(4, 6);
        let rows = forward(&logits, &[0], 6);
        let p = logits.iter().map(|l| (l - rows.lse[0]).exp());
        assert!((rows.entropy[0] + p.map(|p| p * p.ln()).sum::<f64>()).abs() < 1e-14);
    }

    #[test]
    fn gradients() {
        let (logits, target, coef) = (values(1, 28), [3, 0, 6, 3], [-1.5, 0.5, 0.75, 2.0]);
        let lse = forward(&logits, &target, 7).lse;
        let dlogits = backward(&logits, &target, &lse, &coef, 7);
        finite::check("dlogits", &logits, &dlogits, |l| {
            forward(l, &target, 7).logp.iter().zip(coef).map(|(p, c)| p * c).sum()
        });
    }
}
