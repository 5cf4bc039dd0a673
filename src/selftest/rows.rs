//! Kernels that copy or add rows by index: embeddings and the sampler's cache.

use super::fixture::{Output, below, bits, floats, values, weights, words};
use super::{Check, Depth, Outcome, check, equal};
use crate::gpu::{DType, Gpu, Recorder};
use crate::kernels::gather::{self, Reading, Rows};
use crate::kernels::{Heads, kv_write};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("gather_forward", forward),
        check!("gather_scaled", scaled),
        check!("gather_quantised", quantised),
        check!("gather_backward", backward),
        check!("kv_write", write),
    ]
}

/// Rows read, width, rows of the table. With odd widths, packed rows begin in the middle of a word. The rows
/// of a small table are read several times.
const SHAPES: [(usize, usize, usize); 8] =
    [(9, 7, 4), (1, 1, 1), (70, 5, 3), (64, 64, 100), (3, 65, 2), (33, 16, 500), (5, 3, 5), (130, 12, 129)];

fn indices(rows: usize, table: usize) -> Vec<u32> {
    (0..rows as u32).map(|r| below(table as u32, 3, r)).collect()
}

/// Rows of quantised tables, bit for bit.
async fn quantised(gpu: &Gpu, depth: Depth) -> Outcome {
    for dtype in DType::QUANTISED {
        for &(rows, blocks, table_rows) in depth.of(&[(9, 1, 4), (70, 2, 3), (5, 3, 100)]) {
            let width = blocks * dtype.block();
            let (table, held) = weights(gpu, dtype, &vec![0.0; table_rows * width])?;
            let index = indices(rows, table_rows);
            let out = Output::fresh(gpu, rows * width)?;
            let mut rec = Recorder::new(gpu);
            let (reading, of) = (Reading::plain(rows, width, 1), Rows::whole(&table, width));
            gather::forward(&mut rec, &words(gpu, &index)?, of, &out.tensor, reading)?;
            rec.submit();
            let what = format!("{dtype:?} rows={rows} width={width} table={table_rows}");
            let expected: Vec<f32> =
                reference::gather::forward(&held, &index, width).iter().map(|&v| v as f32).collect();
            equal(format!("{what}, bits"), &bits(&out.read(gpu, &what).await?), &bits(&expected))?;
        }
    }
    Ok(())
}

async fn forward(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width, table_rows) in depth.of(&SHAPES) {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for stride in [1, 4] {
                let index = indices(rows, table_rows);
                let (table, held) = weights(gpu, dtype, &values(1, table_rows * width, 1.0))?;
                // The words between the strided indices must not be read as an index.
                let mut strided = vec![u32::MAX; rows * stride];
                index.iter().enumerate().for_each(|(r, &i)| strided[r * stride] = i);
                let out = Output::fresh(gpu, rows * width)?;
                let mut rec = Recorder::new(gpu);
                gather::forward(
                    &mut rec,
                    &words(gpu, &strided)?,
                    Rows::whole(&table, width),
                    &out.tensor,
                    Reading::plain(rows, width, stride),
                )?;
                rec.submit();
                let what = format!("{dtype:?} rows={rows} width={width} table={table_rows} stride={stride}");
                let expected: Vec<f32> =
                    reference::gather::forward(&held, &index, width).iter().map(|&v| v as f32).collect();
                equal(format!("{what}, bits"), &bits(&out.read(gpu, &what).await?), &bits(&expected))?;
            }
        }
    }
    Ok(())
}

/// Gathers rows by the second word of each index entry, scaled, and adds them to earlier values; also the
/// gradient.
async fn scaled(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width, table_rows) in depth.of(&SHAPES) {
        let what = format!("rows={rows} width={width} table={table_rows}");
        let index = indices(rows, table_rows);
        let described: Vec<u32> = index.iter().flat_map(|&i| [u32::MAX, i, u32::MAX, u32::MAX]).collect();
        let (table, earlier) = (values(1, table_rows * width, 1.0), values(2, rows * width, 1.0));
        let out = Output::holding(gpu, &earlier)?;
        let (dout, earlier_dtable) = (values(3, rows * width, 1.0), values(4, table_rows * width, 1.0));
        let (list, targets) = gather::lists(index.iter().copied());
        let mut rec = Recorder::new(gpu);
        let reading = Reading { first: 1, scale: 3.0, accumulate: true, ..Reading::plain(rows, width, 4) };
        // The table is in two pieces. Each dispatch must leave the rows of the other piece alone.
        let half = table_rows / 2;
        let described = words(gpu, &described)?;
        for (first, count) in [(half, table_rows - half), (0, half)] {
            let data = floats(gpu, &table[first * width..(first + count) * width])?;
            gather::forward(&mut rec, &described, Rows { data: &data, first, count }, &out.tensor, reading)?;
        }
        let (list, dout_there) = (words(gpu, &list)?, floats(gpu, &dout)?);
        let (upper, lower) = earlier_dtable.split_at(half * width);
        let pieces = [Output::holding(gpu, upper)?, Output::holding(gpu, lower)?];
        for (piece, (first, count)) in pieces.iter().zip([(0, half), (half, table_rows - half)]) {
            let dtable = Rows { data: &piece.tensor, first, count };
            gather::backward(&mut rec, &list, &dout_there, dtable, targets, (width, 3.0))?;
        }
        rec.submit();
        let tripled = |x: &[f64]| -> Vec<f64> { x.iter().map(|v| 3.0 * v).collect() };
        let expected = reference::gather::forward(&tripled(&table), &index, width);
        out.expect(gpu, &what, &reference::add::forward(&earlier, &expected)).await?;
        let expected = reference::gather::backward(&tripled(&dout), &index, width, &earlier_dtable);
        let (upper, lower) = expected.split_at(half * width);
        pieces[0].expect(gpu, format!("first half of dtable, {what}"), upper).await?;
        pieces[1].expect(gpu, format!("second half of dtable, {what}"), lower).await?;
    }
    Ok(())
}

async fn backward(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width, table_rows) in depth.of(&SHAPES) {
        let index = indices(rows, table_rows);
        let (dout, earlier) = (values(1, rows * width, 1.0), values(2, table_rows * width, 1.0));
        let (list, targets) = gather::lists(index.iter().copied());
        let dtable = Output::holding(gpu, &earlier)?;
        let mut rec = Recorder::new(gpu);
        gather::backward(
            &mut rec,
            &words(gpu, &list)?,
            &floats(gpu, &dout)?,
            Rows::whole(&dtable.tensor, width),
            targets,
            (width, 1.0),
        )?;
        rec.submit();
        let expected = reference::gather::backward(&dout, &index, width, &earlier);
        dtable
            .expect(gpu, format!("dtable, rows={rows} width={width} table={table_rows}"), &expected)
            .await?;
    }
    Ok(())
}

async fn write(gpu: &Gpu, depth: Depth) -> Outcome {
    // Heads stored one after another, and heads between those of a fused projection.
    for (apart, &(rows, width, _)) in
        [1, 3].into_iter().flat_map(|n| depth.of(&SHAPES).iter().map(move |s| (n, s)))
    {
        let (heads, slots) = (3, 2 * rows + 3);
        // Distinct slots in a mixed order.
        let slot: Vec<u32> = (0..rows as u32).map(|r| 2 * (rows as u32 - 1 - r) + below(2, 4, r)).collect();
        let tokens: Vec<u32> = slot.iter().flat_map(|&slot| [u32::MAX, u32::MAX, slot, u32::MAX]).collect();
        let all = heads * width;
        let [k, v] = [1, 2].map(|seed| values(seed, rows * all, 1.0));
        let [old_k, old_v] = [3, 4].map(|seed| values(seed, slots * all, 1.0));
        let (cache_k, cache_v) = (Output::holding(gpu, &old_k)?, Output::holding(gpu, &old_v)?);
        // Keys and values as columns of one projection.
        let (k_at, v_at) = (1, if apart == 1 { 1 + all } else { 1 + width });
        let stride = 3 * all + 3;
        let mut projection = vec![f64::NAN; rows * stride];
        for (x, at) in [(&k, k_at), (&v, v_at)] {
            for (i, value) in x.iter().enumerate() {
                let (t, head, c) = (i / all, i % all / width, i % width);
                projection[t * stride + at + head * apart * width + c] = *value;
            }
        }
        let projection = floats(gpu, &projection)?;
        let of = |at| Heads { data: &projection, at, stride, head: apart * width };
        let mut rec = Recorder::new(gpu);
        let caches = [&cache_k.tensor, &cache_v.tensor];
        let tokens = words(gpu, &tokens)?;
        kv_write::forward(&mut rec, &tokens, [of(k_at), of(v_at)], caches, rows, (heads, width))?;
        rec.submit();
        for (name, cache, old, x) in [("keys", cache_k, old_k, k), ("values", cache_v, old_v, v)] {
            let expected = reference::kv_write::forward(&old, &x, &slot, all);
            cache.expect(gpu, format!("{name}, rows={rows} width={width} apart={apart}"), &expected).await?;
        }
    }
    Ok(())
}
