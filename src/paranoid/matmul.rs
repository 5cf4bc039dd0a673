//! Matrix products: some rows and columns of the output are compared, with sums over all of k.

use super::{Output, UNIT, Witnessed, of_sum, strip};
use crate::kernels::matmul::Params;
use crate::reference::matmul::{self, nn, nt, tn};
use crate::reference::tolerance::F16_PRODUCT;

/// Number of rows and of columns that are compared.
const SIDE: usize = 24;

/// Bindings: x, w, y, and if there are any the bias, the residual, and low and the matrices of adapters.
pub(super) fn product(seen: &Witnessed) -> Vec<Output> {
    let p: Params = seen.params();
    if !seen.has("EACH") {
        return vec![one(seen, p)];
    }
    // The products of several adapters write to the same tensor.
    let adapters = 0..p.adapters as usize;
    let outputs = adapters.map(|i| one(seen, of_adapter(p, i, seen.has("NN"))));
    let joined = outputs.reduce(|mut all, next| {
        all.written.extend(next.written);
        all.compared.extend(next.compared);
        all
    });
    joined.into_iter().collect()
}

/// The product of one adapter with EACH, where `p` has what all have in common.
fn of_adapter(p: Params, i: usize, nn: bool) -> Params {
    let ([first, end, first_rank, at], rank) = (p.parts[i], p.ranks[i]);
    let own = Params { n: rank, alpha: p.scales[i], x_at: p.x_at + first, ..p };
    match nn {
        true => Params { k: end - first, w_at: at, w_stride: rank, y_at: p.y_at + first_rank, ..own },
        false => Params { m: end - first, w_at: p.w_at + first_rank, y_at: at, y_stride: rank, ..own },
    }
}

/// What the adapters add to the output of a row and column, and the sum of the sizes of the terms, with
/// ADAPTERS.
fn adapted(seen: &Witnessed, p: &Params, row: usize, column: usize) -> (f64, f64) {
    if !seen.has("ADAPTERS") {
        return (0.0, 0.0);
    }
    let [low, matrices] = [2, 1].map(|back| &seen.bound[seen.bound.len() - back]);
    for i in 0..p.adapters as usize {
        let [first, end, first_rank, at] = p.parts[i].map(|size| size as usize);
        if !(first..end).contains(&column) {
            continue;
        }
        let (rank, stride) = (p.ranks[i] as usize, p.ranks[3] as usize);
        let place = |r: usize| match seen.has("NT") {
            true => at + (column - first) * rank + r,
            false => at + r * (end - first) + column,
        };
        let scale = f64::from(p.scales[i]);
        let terms = (0..rank).map(|r| scale * low.at(row * stride + first_rank + r) * matrices.at(place(r)));
        return terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
    }
    (0.0, 0.0)
}

/// The output of one product.
fn one(seen: &Witnessed, p: Params) -> Output {
    let [m, n, k] = [p.m, p.n, p.k].map(|size| size as usize);
    let [x_at, x_stride, w_at, w_stride] = [p.x_at, p.x_stride, p.w_at, p.w_stride].map(|size| size as usize);
    let (y_at, y_stride) = (p.y_at as usize, p.y_stride as usize);
    let (x, w, y) = (&seen.bound[0], &seen.bound[1], &seen.bound[2]);
    let rows = seen.pick(m, SIDE);
    let block = w.dtype.block();
    let columns: Vec<usize> = if block == 1 || seen.has("NT") {
        seen.pick(n, SIDE)
    } else {
        // Columns of one block, because blocks are unpacked as a whole.
        let first = seen.seed as usize % (n / block) * block;
        (first..first + SIDE.min(block)).collect()
    };
    let lying = |rows: &[usize], at: usize, stride: usize, of: &super::Bound| -> Vec<f64> {
        rows.iter().flat_map(|row| of.range(at + row * stride, k)).collect()
    };
    // For an operand whose rows are summed over: the picked columns, (k, picked).
    let standing = |picked: &[usize], at: usize, stride: usize, of: &super::Bound| -> Vec<f64> {
        let (first, end) = (picked[0], picked[picked.len() - 1] + 1);
        let row = |c: usize| -> Vec<f64> {
            match of.dtype.is_quantised() {
                true => of.range(at + c * stride + first, end - first),
                false => picked.iter().map(|i| of.at(at + c * stride + i)).collect(),
            }
        };
        (0..k).flat_map(row).collect()
    };
    type Form = fn(matmul::Params, &[f64], &[f64], Option<&[f64]>) -> Vec<f64>;
    let (form, x, w): (Form, Vec<f64>, Vec<f64>) = if seen.has("NT") {
        (
            |p, x, w, y| nt(p, x, w, None, y),
            lying(&rows, x_at, x_stride, x),
            lying(&columns, w_at, w_stride, w),
        )
    } else if seen.has("NN") {
        (nn, lying(&rows, x_at, x_stride, x), standing(&columns, w_at, w_stride, w))
    } else {
        (tn, standing(&rows, x_at, x_stride, x), standing(&columns, w_at, w_stride, w))
    };
    let place = |row: usize, column: usize| y_at + rows[row] * y_stride + columns[column];
    let mut extra: Vec<usize> = Vec::new();
    if seen.has("BIAS") {
        extra.push(3);
    }
    if seen.has("RESIDUAL") {
        extra.push(3 + extra.len());
    }
    let added = |row: usize, column: usize| -> Vec<f64> {
        let of = |&binding: &usize| match seen.has("BIAS") && binding == 3 {
            true => seen.bound[3].at(columns[column]),
            false => seen.bound[binding].at(place(row, column)),
        };
        let earlier = (p.accumulate == 1).then(|| y.at(place(row, column)));
        extra.iter().map(of).chain(earlier).collect()
    };
    let low_rank = |i: usize| adapted(seen, &p, rows[i / columns.len()], columns[i % columns.len()]);
    let count = columns.len();
    let terms: Vec<Vec<f64>> = (0..rows.len() * count).map(|i| added(i / count, i % count)).collect();
    let sum: Vec<f64> = terms.iter().map(|terms| terms.iter().sum()).collect();
    let sizes = |values: &[f64]| values.iter().map(|value| value.abs()).collect::<Vec<_>>();
    let params = matmul::Params { m: rows.len(), n: count, k, alpha: f64::from(p.alpha) };
    let expected = form(params, &x, &w, Some(&sum));
    let (x, w) = (sizes(&x), sizes(&w));
    let of_sizes =
        |x: &[f64], w: &[f64]| form(matmul::Params { alpha: params.alpha.abs(), ..params }, x, w, None);
    let mut share = of_sum(k);
    let mut lost = vec![0.0; expected.len()];
    if seen.has("HALF") {
        share += F16_PRODUCT;
        // Inputs below the smallest normal number of f16 may become 0.
        let least = 2f64.powi(-14);
        let [of_x, of_w] = [of_sizes(&x, &vec![least; w.len()]), of_sizes(&vec![least; x.len()], &w)];
        lost = of_x.iter().zip(&of_w).map(|(x, w)| x + w).collect();
    }
    let sizes = of_sizes(&x, &w);
    let mut output = Output::new(2, strip(y_at, y_stride, m, n));
    for (i, (expected, size)) in expected.into_iter().zip(sizes).enumerate() {
        let added: f64 = terms[i].iter().map(|term| term.abs()).sum();
        let (more, more_size) = low_rank(i);
        let slack = share * (size + more_size) + 8.0 * UNIT * added + lost[i];
        output.near(place(i / count, i % count), expected + more, slack);
    }
    output
}
