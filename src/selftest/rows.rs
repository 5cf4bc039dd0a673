//! Kernels that move rows by index: embeddings and the sampler's cache.

use super::bench::{Output, below, bits, floats, spread, values, weights, words};
use super::{Check, Depth, Outcome, check, equal};
use crate::gpu::{DType, Gpu, Recorder};
use crate::kernels::{Mat, gather, kv_write};
use crate::reference;

pub(super) fn checks() -> Vec<Check> {
    vec![check!("gather_forward", forward), check!("gather_backward", backward), check!("kv_write", write)]
}

/// Rows read, width, rows of the table. Odd widths let packed rows begin in the middle of a word; few rows are read often.
const SHAPES: [(usize, usize, usize); 8] =
    [(9, 7, 4), (1, 1, 1), (70, 5, 3), (64, 64, 100), (3, 65, 2), (33, 16, 500), (5, 3, 5), (130, 12, 129)];

fn indices(rows: usize, table: usize) -> Vec<u32> {
    (0..rows as u32).map(|r| below(table as u32, 3, r)).collect()
}

async fn forward(gpu: &Gpu, depth: Depth) -> Outcome {
    for &(rows, width, table_rows) in depth.of(&SHAPES) {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for stride in [1, 4] {
                let index = indices(rows, table_rows);
                let (table, held) = weights(gpu, dtype, &values(1, table_rows * width, 1.0))?;
                // What lies between the strides must not be read as an index.
                let mut strided = vec![u32::MAX; rows * stride];
                index.iter().enumerate().for_each(|(r, &i)| strided[r * stride] = i);
                let out = Output::fresh(gpu, rows * width)?;
                let mut rec = Recorder::new(gpu);
                gather::forward(
                    &mut rec,
                    &words(gpu, &strided)?,
                    &table,
                    &out.tensor,
                    (rows, width, stride),
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
            &dtable.tensor,
            targets,
            width,
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
    for &(rows, width, _) in depth.of(&SHAPES) {
        let slots = 2 * rows + 3;
        // Distinct slots in a mixed order.
        let slot: Vec<u32> = (0..rows as u32).map(|r| 2 * (rows as u32 - 1 - r) + below(2, 4, r)).collect();
        let tokens: Vec<u32> = slot.iter().flat_map(|&slot| [u32::MAX, u32::MAX, slot, u32::MAX]).collect();
        let [k, v] = [1, 2].map(|seed| values(seed, rows * width, 1.0));
        let [old_k, old_v] = [3, 4].map(|seed| values(seed, slots * width, 1.0));
        let (cache_k, cache_v) = (Output::holding(gpu, &old_k)?, Output::holding(gpu, &old_v)?);
        // Keys and values as columns of one projection.
        let stride = 2 * width + 3;
        let beside: Vec<f64> =
            k.chunks(width).zip(v.chunks(width)).flat_map(|(k, v)| [k, v].concat()).collect();
        let projection = floats(gpu, &spread(&beside, 2 * width, (1, stride), f64::NAN))?;
        let k_mat = Mat { data: &projection, at: 1, stride };
        let mut rec = Recorder::new(gpu);
        let caches = [&cache_k.tensor, &cache_v.tensor];
        kv_write::forward(&mut rec, &words(gpu, &tokens)?, [k_mat, k_mat.from(width)], caches, rows, width)?;
        rec.submit();
        for (name, cache, old, x) in [("keys", cache_k, old_k, k), ("values", cache_v, old_v, v)] {
            let expected = reference::kv_write::forward(&old, &x, &slot, width);
            cache.expect(gpu, format!("{name}, rows={rows} width={width}"), &expected).await?;
        }
    }
    Ok(())
}
