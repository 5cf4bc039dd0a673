//! Rows gathered from a table: token embeddings, and the hidden states that predict response tokens.

use std::collections::BTreeMap;

use super::{check, groups_of_64, params, storage_flags};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["gather"]; rows: u32, width: u32, stride: u32, first: u32, accumulate: u32, scale: f32,
    row0: u32, count: u32, w_scales: u32, w_supers: u32);
params!(BackwardParams for ["gather_backward"]; targets: u32, width: u32, scale: f32, row0: u32, count: u32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block(), BackwardParams::block()]
}

/// Which words of an index are read, and what is done with the rows.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// The first word of the index that is read.
    pub first: usize,
    /// Words of the index from one row to the next.
    pub stride: usize,
    /// Factor on the table's rows.
    pub scale: f32,
    /// Add to `out` instead of overwriting it.
    pub accumulate: bool,
}

impl Reading {
    /// `rows` rows of `width`, unscaled, overwriting `out`, from every `stride`-th word of the index.
    pub fn plain(rows: usize, width: usize, stride: usize) -> Self {
        Self { rows, width, first: 0, stride, scale: 1.0, accumulate: false }
    }
}

/// A table, or a piece of one.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// `(count, width)`
    pub data: &'a Tensor,
    /// Index of its first row in the whole table.
    pub first: usize,
    /// Number of rows.
    pub count: usize,
}

impl<'a> Rows<'a> {
    /// A whole table of rows of `width`.
    pub fn whole(data: &'a Tensor, width: usize) -> Self {
        Self { data, first: 0, count: data.len() / width }
    }
}

/// `out[r, :] = scale · table[index[first + r · stride], :]`: out `(rows, width)`, table `(N, width)` of any
/// type. Rows of out whose table row is outside the given piece are not changed.
pub fn forward(
    rec: &mut Recorder,
    index: &Tensor,
    table: Rows,
    out: &Tensor,
    reading: Reading,
) -> Result<()> {
    let Reading { rows, width, first, stride, scale, accumulate } = reading;
    let read = rows.saturating_sub(1) * stride + rows.min(1) * (first + 1);
    check(
        "gather",
        &[("index", index, read), ("table", table.data, table.count * width), ("out", out, rows * width)],
    )?;
    let shader = kernel(rec.gpu(), &format!("gather{}", storage_flags(table.data.dtype())));
    let [w_scales, w_supers] = table.data.dtype().scale_words(table.data.len());
    let params = Params {
        rows: rows as u32,
        width: width as u32,
        stride: stride as u32,
        first: first as u32,
        accumulate: accumulate as u32,
        scale,
        row0: table.first as u32,
        count: table.count as u32,
        w_scales,
        w_supers,
    };
    rec.dispatch(
        &shader,
        &params,
        &[index, table.data, out],
        groups_of_64(rows * width),
        (rows * width) as f64,
    );
    Ok(())
}

/// Lists, for each target row of the table, the rows that read it, in the layout of the backward kernel:
/// targets, starts and rows, concatenated. Returns the list and the number of distinct targets.
pub fn lists(index: impl Iterator<Item = u32>) -> (Vec<u32>, usize) {
    let mut readers: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (row, target) in index.enumerate() {
        readers.entry(target).or_default().push(row as u32);
    }
    let mut list: Vec<u32> = readers.keys().copied().collect();
    let mut start = 0;
    list.push(0);
    for rows in readers.values() {
        start += rows.len() as u32;
        list.push(start);
    }
    list.extend(readers.values().flatten());
    (list, readers.len())
}

/// `dtable[target, :] += scale · Σ dout[r, :]` over the rows r that read it: dout `(R, width)`, dtable `(N,
/// width)`, `list` from [`lists`].
pub fn backward(
    rec: &mut Recorder,
    list: &Tensor,
    dout: &Tensor,
    dtable: Rows,
    targets: usize,
    (width, scale): (usize, f32),
) -> Result<()> {
    check(
        "gather_backward",
        &[("lists", list, 2 * targets + 1), ("dtable", dtable.data, dtable.count * width)],
    )?;
    let shader = kernel(rec.gpu(), "gather_backward");
    let params = BackwardParams {
        targets: targets as u32,
        width: width as u32,
        scale,
        row0: dtable.first as u32,
        count: dtable.count as u32,
    };
    let bindings = [list, dout, dtable.data];
    rec.dispatch(&shader, &params, &bindings, groups_of_64(targets * width), (dout.len()) as f64);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn lists_group_rows_by_target() {
        assert_eq!(super::lists([7, 3, 7].into_iter()), (vec![3, 7, 0, 1, 3, 1, 0, 2], 2));
    }
}
