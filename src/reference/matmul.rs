//! The three matrix products of a layer: forward (nt), gradient of the input (nn), gradient of the weight
//! (tn).

/// Sizes of a product: Y is (m, n) and k is summed over; `alpha` scales the product only, not bias or earlier
/// values.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Rows of Y.
    pub m: usize,
    /// Columns of Y.
    pub n: usize,
    /// The summed dimension.
    pub k: usize,
    /// Factor on the product.
    pub alpha: f64,
}

/// Y (m,n) = alpha · X (m,k) · W (n,k)ᵀ [+ bias (n)] [+ y (m,n), the earlier values when accumulating].
pub fn nt(p: Params, x: &[f64], w: &[f64], bias: Option<&[f64]>, y: Option<&[f64]>) -> Vec<f64> {
    assert_eq!((x.len(), w.len()), (p.m * p.k, p.n * p.k));
    let mut out = earlier(p, y);
    for i in 0..p.m {
        for j in 0..p.n {
            let sum: f64 = (0..p.k).map(|c| x[i * p.k + c] * w[j * p.k + c]).sum();
            out[i * p.n + j] += p.alpha * sum + bias.map_or(0.0, |b| b[j]);
        }
    }
    out
}

/// Y (m,n) = alpha · X (m,k) · W (k,n) [+ y (m,n)].
pub fn nn(p: Params, x: &[f64], w: &[f64], y: Option<&[f64]>) -> Vec<f64> {
    assert_eq!((x.len(), w.len()), (p.m * p.k, p.k * p.n));
    let mut out = earlier(p, y);
    for i in 0..p.m {
        for c in 0..p.k {
            for j in 0..p.n {
                out[i * p.n + j] += p.alpha * x[i * p.k + c] * w[c * p.n + j];
            }
        }
    }
    out
}

/// Y (m,n) = alpha · X (k,m)ᵀ · W (k,n) [+ y (m,n)].
pub fn tn(p: Params, x: &[f64], w: &[f64], y: Option<&[f64]>) -> Vec<f64> {
    assert_eq!((x.len(), w.len()), (p.k * p.m, p.k * p.n));
    let mut out = earlier(p, y);
    for c in 0..p.k {
        for i in 0..p.m {
            for j in 0..p.n {
                out[i * p.n + j] += p.alpha * x[c * p.m + i] * w[c * p.n + j];
            }
        }
    }
    out
}

/// Gradients of [`nt`] without bias: dX (m,k) = alpha · dY · W and dW (n,k) = alpha · dYᵀ · X.
pub fn backward(p: Params, x: &[f64], w: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let dx = nn(Params { n: p.k, k: p.n, ..p }, dy, w, None);
    let dw = tn(Params { m: p.n, n: p.k, k: p.m, alpha: p.alpha }, dy, x, None);
    (dx, dw)
}

/// The initial values of an accumulating product.
fn earlier(p: Params, y: Option<&[f64]>) -> Vec<f64> {
    let out = y.map_or_else(|| vec![0.0; p.m * p.n], <[f64]>::to_vec);
    assert_eq!(out.len(), p.m * p.n);
    out
}

#[cfg(test)]
mod tests {
    use super::super::{column_sum, finite};
    use super::*;
    use crate::rng::values;

    #[test]
    fn layouts_by_hand() {
        let p = Params { m: 1, n: 2, k: 2, alpha: 2.0 };
        let (x, w) = ([1.0, 2.0], [3.0, 4.0, 5.0, 6.0]);
        assert_eq!(nt(p, &x, &w, Some(&[10.0, 20.0]), Some(&[100.0, 200.0])), [132.0, 254.0]);
        assert_eq!(nn(p, &x, &w, Some(&[100.0, 200.0])), [126.0, 232.0]);
        // For `tn`, X is (2,1): the same values as a column.
        assert_eq!(tn(p, &x, &w, None), [26.0, 32.0]);
    }

    #[test]
    fn gradients() {
        let p = Params { m: 3, n: 4, k: 5, alpha: 0.7 };
        let (x, w, b, c) = (values(1, 15), values(2, 20), values(3, 4), values(4, 12));
        let (dx, dw) = backward(p, &x, &w, &c);
        let db = column_sum::forward(&c, None, None, 4, None);
        finite::check("dx", &x, &dx, |x| finite::dot(&c, &nt(p, x, &w, Some(&b), None)));
        finite::check("dw", &w, &dw, |w| finite::dot(&c, &nt(p, &x, w, Some(&b), None)));
        finite::check("db", &b, &db, |b| finite::dot(&c, &nt(p, &x, &w, Some(b), None)));
    }
}
