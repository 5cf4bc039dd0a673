//! Whether a software adapter's kernels should read their operands from storage buffers or through textures.

use std::time::Instant;

use super::{Dims, Form, Product};
use crate::Result;
use crate::gpu::{DType, Gpu, Purpose, Recorder, Tensor};

/// The share of the time that textures must take to be preferred: less than one, so that chance does not
/// decide.
const CLEARLY: f64 = 0.93;

/// From how many rows on products take clearly less time on this adapter if they read their operands through
/// textures than from storage buffers: products of some sizes are timed both ways, which takes about a
/// second. `usize::MAX` if they never do, `None` if it could not be measured.
pub(in crate::kernels) fn least_rows(gpu: &Gpu) -> Option<usize> {
    // A browser cannot wait here, and its adapters are seldom a processor.
    if cfg!(target_arch = "wasm32") {
        return None;
    }
    let pays = |rows| -> Result<bool> {
        let [storage, texels] = seconds(gpu, Dims { m: rows, n: 1024, k: 1024 })?;
        log::info!("{rows} rows: {storage:.4} s from storage buffers, {texels:.4} s through textures");
        Ok(texels < CLEARLY * storage)
    };
    let measured = || -> Result<usize> {
        let (mut from, smaller, larger) = (64, [16, 4, 1], [128, 256]);
        if pays(from)? {
            for rows in smaller {
                if !pays(rows)? {
                    break;
                }
                from = rows;
            }
            return Ok(from);
        }
        for rows in larger {
            if pays(rows)? {
                return Ok(rows);
            }
        }
        Ok(usize::MAX)
    };
    match measured() {
        Ok(rows) => Some(rows),
        Err(error) => {
            log::warn!("measuring how products read their operands: {error}");
            None
        }
    }
}

/// The seconds that products take which read their operands from storage buffers, and through textures.
fn seconds(gpu: &Gpu, dims: Dims) -> Result<[f64; 2]> {
    let memory = gpu.apart();
    let make = |label, count| Tensor::new(&memory, Purpose::Staging, label, count, DType::F32);
    let (x, y) = (make("x", dims.m * dims.k)?, make("y", dims.m * dims.n)?);
    // Together the weights of small products, 4 MiB each, are larger than a processor's caches, as those of a
    // model are: copying weights that are in a cache costs much less.
    let products = (768 / dims.m).clamp(4, 12);
    let weights = (0..products).map(|_| make("w", dims.n * dims.k)).collect::<Result<Vec<_>>>()?;
    let mut seconds = [f64::INFINITY; 2];
    // The first turn compiles the kernels.
    for turn in 0..3 {
        for (least, flag) in seconds.iter_mut().zip(["", " TEXELS"]) {
            let started = Instant::now();
            let mut rec = Recorder::new(gpu);
            for w in &weights {
                let product = Product::plain(Form::Nt, &x, w, &y, dims);
                product.record_by(&mut rec, &product.software(gpu, true, flag)[0])?;
            }
            rec.submit();
            pollster::block_on(gpu.finished())?;
            if turn > 0 {
                *least = least.min(started.elapsed().as_secs_f64());
            }
        }
    }
    Ok(seconds)
}
