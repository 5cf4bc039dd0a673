//! Rows selected by index, and sums over runs of rows.

use super::{Output, UNIT, Witnessed, of_sum};
use crate::kernels::{gather, kv_write, sequence_sum};
use crate::reference;

/// Bindings: index, table, out.
pub(super) fn gather(seen: &Witnessed) -> Vec<Output> {
    let p: gather::Params = seen.params();
    let [rows, width, stride, first, row0, count] =
        [p.rows, p.width, p.stride, p.first, p.row0, p.count].map(|size| size as usize);
    let source = |row: usize| (seen.bound[0].word(first + row * stride) as usize).checked_sub(row0);
    let in_piece = |row: usize| source(row).filter(|&source| source < count);
    let own: Vec<(usize, usize)> = (0..rows).filter_map(|row| Some((row, in_piece(row)?))).collect();
    let mut output = Output::new(2, own.iter().map(|(row, _)| row * width..(row + 1) * width).collect());
    for (row, source) in seen.pick_rows(own.len(), width).into_iter().map(|i| own[i]) {
        let table = seen.bound[1].range(source * width, width);
        let mut values = reference::gather::forward(&table, &[0], width);
        let before = seen.bound[2].range(row * width, width);
        for (value, before) in values.iter_mut().zip(&before) {
            *value *= f64::from(p.scale);
            *value += if p.accumulate == 1 { *before } else { 0.0 };
        }
        let earlier = |i: usize| if p.accumulate == 1 { before[i].abs() } else { 0.0 };
        output.row(row * width, &values, |i| 4.0 * UNIT * earlier(i));
    }
    vec![output]
}

/// Bindings: lists, dout, dtable.
pub(super) fn gather_backward(seen: &Witnessed) -> Vec<Output> {
    let p: gather::BackwardParams = seen.params();
    let [targets, width, row0, count] = [p.targets, p.width, p.row0, p.count].map(|size| size as usize);
    let lists = &seen.bound[0];
    let in_piece = |u: usize| {
        let target = (lists.word(u) as usize).checked_sub(row0);
        target.filter(|&target| target < count)
    };
    let own: Vec<(usize, usize)> = (0..targets).filter_map(|u| Some((u, in_piece(u)?))).collect();
    let written = own.iter().map(|(_, target)| target * width..(target + 1) * width);
    let mut output = Output::new(2, written.collect());
    for (u, target) in seen.pick_rows(own.len(), width).into_iter().map(|i| own[i]) {
        let [start, end] = [u, u + 1].map(|u| lists.word(targets + u) as usize);
        let readers = (start..end).map(|i| lists.word(2 * targets + 1 + i) as usize);
        let dout: Vec<f64> = readers.flat_map(|row| seen.bound[1].range(row * width, width)).collect();
        let scaled: Vec<f64> = dout.iter().map(|d| d * f64::from(p.scale)).collect();
        let before = seen.bound[2].range(target * width, width);
        let index = vec![0; end - start];
        let sum = reference::gather::backward(&scaled, &index, width, &before);
        let sizes = |values: &[f64]| values.iter().map(|value| value.abs()).collect::<Vec<_>>();
        let size = reference::gather::backward(&sizes(&scaled), &index, width, &sizes(&before));
        let share = of_sum(end - start);
        output.row(target * width, &sum, |i| share * size[i]);
    }
    vec![output]
}

/// Bindings: tokens, x, and the caches of keys and values.
pub(super) fn kv_write(seen: &Witnessed) -> Vec<Output> {
    let p: kv_write::Params = seen.params();
    let [tokens, width, stride, head_dim, head_stride] =
        [p.tokens, p.width, p.stride, p.head_dim, p.head_stride].map(|size| size as usize);
    let slot = |t: usize| seen.bound[0].four(t)[2] as usize;
    let cache = |binding: usize, at: u32| {
        let written = (0..tokens).map(|t| slot(t) * width..(slot(t) + 1) * width).collect();
        let mut output = Output::new(binding, written);
        for t in seen.pick_rows(tokens, width) {
            let head =
                |head: usize| seen.bound[1].range(t * stride + head * head_stride + at as usize, head_dim);
            let x: Vec<f64> = (0..width / head_dim).flat_map(head).collect();
            let row = reference::kv_write::forward(&vec![0.0; width], &x, &[0], width);
            // The values are copied, so the bits must be equal.
            row.iter().enumerate().for_each(|(i, x)| output.word(slot(t) * width + i, (*x as f32).to_bits()));
        }
        output
    };
    vec![cache(2, p.k_at), cache(3, p.v_at)]
}

/// Bindings: spans, stats, sums.
pub(super) fn sequence_sum(seen: &Witnessed) -> Vec<Output> {
    let p: sequence_sum::Params = seen.params();
    let (sequences, total) = (p.sequences as usize, p.total as usize);
    let spans: Vec<[u32; 2]> =
        (0..sequences).map(|s| [2 * s, 2 * s + 1].map(|i| seen.bound[0].word(i))).collect();
    let mut output = Output::first(2, 2 * sequences);
    for (which, from) in [0, 2 * total].into_iter().enumerate() {
        let x = seen.bound[1].range(from, total);
        let sizes: Vec<f64> = x.iter().map(|x| x.abs()).collect();
        let [sums, sizes] = [x, sizes].map(|x| reference::sequence_sum::forward(&x, &spans));
        let share = of_sum(total);
        output.row(which * sequences, &sums, |s| share * sizes[s]);
    }
    vec![output]
}
