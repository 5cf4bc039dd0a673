//! Whether a software adapter's kernels should read their operands from storage buffers or through textures.

use web_time::Instant;

use super::{Dims, Form, Product};
use crate::Result;
use crate::gpu::{DType, Gpu, Purpose, Recorder, Tensor};

/// The share of the time that textures must take to be preferred: less than one, so that chance does not
/// decide.
const CLEARLY: f64 = 0.9;

/// From how many rows on products take clearly less time on this adapter if they read their operands through
/// textures than from storage buffers: products of some sizes are timed both ways, which takes about a
/// second. `usize::MAX` if they never do, `None` if it could not be measured.
pub(in crate::kernels) fn least_rows(gpu: &Gpu) -> Option<usize> {
    // A browser cannot wait here, and its adapters are seldom a processor.
    if cfg!(target_arch = "wasm32") {
        return None;
    }
    let pays = |rows| -> Result<bool> {
        let share = share_of_time(gpu, Dims { m: rows, n: 1024, k: 1024 })?;
        log::info!("products of {rows} rows: textures take {share:.2} of storage buffers' time");
        Ok(share < CLEARLY)
    };
    // From the size of training batches down: a driver on which textures gain a little for few rows alone
    // would lose with them where the time goes.
    let measured = || -> Result<usize> {
        let mut from = usize::MAX;
        for rows in [256, 64, 16, 4, 1] {
            if !pays(rows)? {
                break;
            }
            from = rows;
        }
        Ok(from)
    };
    match measured() {
        Ok(rows) => Some(rows),
        Err(error) => {
            log::warn!("measuring how products read their operands: {error}");
            None
        }
    }
}

/// The time of products that read their operands through textures, as a share of the time of those that read
/// from storage buffers: the median of pairs that ran one after the other, so that other work slows both.
fn share_of_time(gpu: &Gpu, dims: Dims) -> Result<f64> {
    let memory = gpu.apart();
    let make = |label, count| Tensor::new(&memory, Purpose::Staging, label, count, DType::F32);
    let (x, y) = (make("x", dims.m * dims.k)?, make("y", dims.m * dims.n)?);
    // Together the weights of small products, 4 MiB each, are larger than a processor's caches, as those of a
    // model are: copying weights that are in a cache costs much less.
    let products = (768 / dims.m).clamp(4, 12);
    let weights = (0..products).map(|_| make("w", dims.n * dims.k)).collect::<Result<Vec<_>>>()?;
    let mut shares = Vec::new();
    // The first turn compiles the kernels.
    for turn in 0..6 {
        let mut seconds = [0.0; 2];
        for (seconds, flag) in seconds.iter_mut().zip(["", " TEXELS"]) {
            let started = Instant::now();
            let mut rec = Recorder::new(gpu);
            for w in &weights {
                let product = Product::plain(Form::Nt, &x, w, &y, dims);
                product.record_by(&mut rec, &product.software(gpu, true, flag)[0])?;
            }
            rec.submit();
            pollster::block_on(gpu.finished())?;
            *seconds = started.elapsed().as_secs_f64();
        }
        if turn > 0 {
            shares.push(seconds[1] / seconds[0]);
        }
    }
    shares.sort_by(f64::total_cmp);
    Ok(shares[shares.len() / 2])
}
