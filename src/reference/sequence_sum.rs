//! Sums over the rows of each sequence: from token log-probs to the logp of a response.

/// out (sequences): Σ x[start..end] for every [start, end) of `spans`; an empty span gives 0.
pub fn forward(x: &[f64], spans: &[[u32; 2]]) -> Vec<f64> {
    spans.iter().map(|s| x[s[0] as usize..s[1] as usize].iter().sum()).collect()
}

/// dx (rows): every row receives the gradient of the sums it is part of.
pub fn backward(dout: &[f64], spans: &[[u32; 2]], rows: usize) -> Vec<f64> {
    let mut dx = vec![0.0; rows];
    for (d, s) in dout.iter().zip(spans) {
        dx[s[0] as usize..s[1] as usize].iter_mut().for_each(|x| *x += d);
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    #[test]
    fn gradients() {
        let (x, c, spans) = (values(1, 7), values(2, 3), [[0, 3], [3, 3], [4, 7]]);
        let sums = forward(&x, &spans);
        assert!((sums[0] - (x[0] + x[1] + x[2])).abs() < 1e-15 && sums[1] == 0.0);
        let dx = backward(&c, &spans, 7);
        finite::check("dx", &x, &dx, |x| finite::dot(&c, &forward(x, &spans)));
    }
}
