//! A square f32 matmul by Burn on wgpu, tuned by its autotuner.
//!
//! `burn_matmul [--size 1024] [--runs 10] [--warmup 2]`

use std::process::ExitCode;

use aweigh_peers::{Flags, Result, clock, context, finish, matmul_error, matrix, version};
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Value, json};

fn main() -> ExitCode {
    finish(run())
}

fn run() -> Result<Value> {
    let flags = Flags::parse(&["size", "runs", "warmup"])?;
    let n: usize = flags.number("size", 1024)?;
    let (device, setup) = context(Device::wgpu_options().init_with_setup(), "no device")?;
    let adapter = setup.adapter.get_info();

    let (left, right) = (matrix(n * n, 1), matrix(n * n, 2));
    let a = Tensor::<2>::from_data(TensorData::new(left.clone(), [n, n]), &device);
    let b = Tensor::<2>::from_data(TensorData::new(right.clone(), [n, n]), &device);
    context(device.sync(), "upload")?;
    let mut product = None;
    // The first run includes tuning, which compiles and times every candidate kernel.
    let times = clock(flags.number("warmup", 2)?, flags.number("runs", 10)?, || {
        product = Some(a.clone().matmul(b.clone()));
        context(device.sync(), "matmul")
    })?;

    let product = product.ok_or("nothing was run")?;
    let product = context(product.into_data().try_to_vec::<f32>(), "result")?;
    Ok(json!({
        "peer": "burn",
        "version": version("burn"),
        "adapter": format!("{} ({} {})", adapter.name, adapter.driver, adapter.driver_info),
        "backend": adapter.backend.to_string(),
        "compiler": if cfg!(feature = "burn-spirv") { "SPIR-V" } else { "WGSL" },
        "what": "matmul",
        "precision": "f32",
        "size": n,
        "first_seconds": times.first,
        "seconds": times.seconds,
        "error": matmul_error(&left, &right, &product, n),
    }))
}
