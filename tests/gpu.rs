//! Every check of `aweigh selftest` at full depth, on one adapter, with the kernels of both tiers. The
//! portable kernels run under WebGPU's default limits.
//!
//! `AWEIGH_GPU` names the adapter, by its index or a part of its name; without it the fastest one is taken.
//! To test on Chromium's SwiftShader: `VK_DRIVER_FILES=/usr/lib/chromium/vk_swiftshader_icd.json
//! AWEIGH_GPU=SwiftShader cargo test --test gpu`.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use aweigh::gpu::{AdapterSummary, Gpu, Options, Precision, Purpose, Recorder, Scalar, Tensor, Tier};
use aweigh::kernels::ema;
use aweigh::paranoid::{Paranoid, Witnessed};
use aweigh::reference;
use aweigh::rng::values;
use aweigh::selftest::{Depth, agree, checks};

mod common;
#[path = "gpu/dispatches.rs"]
mod dispatches;
#[path = "gpu/divided.rs"]
mod divided;
#[path = "gpu/finite.rs"]
mod finite;
#[path = "gpu/lanes.rs"]
mod lanes;

/// The device that a test runs on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Device {
    /// The portable kernels under WebGPU's default limits.
    Portable,
    /// The portable kernels with all features of the adapter; matrix products may round inputs to f16.
    Half,
    /// The software adapters' kernels, with the features they use, reading operands through textures.
    Software,
    /// The same kernels, reading storage buffers. Where a check runs all kernels of a product, it runs both
    /// kinds on [`Device::Software`] too.
    Storage,
}

/// Runs `test` with the one device of this kind. A device has one parameter buffer, so recorders take turns.
fn with_gpu<T>(kind: Device, test: impl FnOnce(&Gpu) -> T) -> T {
    static PORTABLE: OnceLock<Result<Mutex<Gpu>, String>> = OnceLock::new();
    static HALF: OnceLock<Result<Mutex<Gpu>, String>> = OnceLock::new();
    static SOFTWARE: OnceLock<Result<Mutex<Gpu>, String>> = OnceLock::new();
    static STORAGE: OnceLock<Result<Mutex<Gpu>, String>> = OnceLock::new();
    let (cell, tier, precision) = match kind {
        Device::Portable => (&PORTABLE, Tier::Portable, Precision::F32),
        Device::Half => (&HALF, Tier::Portable, Precision::F16),
        Device::Software => (&SOFTWARE, Tier::Software, Precision::F32),
        Device::Storage => (&STORAGE, Tier::Software, Precision::F32),
    };
    let device = cell.get_or_init(|| {
        let adapter = std::env::var("AWEIGH_GPU").ok();
        let default_limits = kind == Device::Portable;
        let (tier, texels) = (Some(tier), Some(kind == Device::Software));
        let witness = Some(Paranoid::with(|reading| pollster::block_on(reading), Box::new(judge)) as _);
        let options =
            Options { adapter, default_limits, tier, texels, precision, witness, ..Options::default() };
        let opened = pollster::block_on(Gpu::open(&options));
        if let (Device::Half, Ok(gpu)) = (kind, &opened) {
            say_what_is_left_out(gpu.summary());
        }
        opened.map(Mutex::new).map_err(|error| error.to_string())
    });
    match device {
        Ok(gpu) => test(&gpu.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(message) => panic!("{message}"),
    }
}

/// Tests `--paranoid` on the dispatches of the checks: the result that it expects equals the dispatch's
/// result, and it notices a wrong element.
fn judge(seen: &Witnessed) -> Result<(), String> {
    seen.check()?;
    static KNOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let places = seen.compared();
    let first = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(seen.kernel().into());
    if first && places.is_empty() {
        return Err("nothing is compared".into());
    }
    for place in places.iter().step_by((places.len() / 8).max(1)) {
        let mut spoilt = seen.clone();
        spoilt.spoil(*place);
        if spoilt.check().is_ok() {
            return Err(format!("binding {}, element {}, spoilt: not noticed", place.0, place.1));
        }
    }
    Ok(())
}

fn say_what_is_left_out(adapter: &AdapterSummary) {
    if !adapter.shader_f16 {
        eprintln!("{} has no f16: its products round nothing, in f32 tiles", adapter.name);
    }
    for inputs in [Scalar::F16, Scalar::F32] {
        if adapter.cooperative_side(inputs).is_none() {
            eprintln!(
                "{}: no cooperative matrices of {inputs:?}: their kernels are not tested",
                adapter.name
            );
        }
    }
}

fn run(kind: Device, name: &str) {
    let check = checks().into_iter().find(|check| check.name == name).expect("a check of this name");
    with_gpu(kind, |gpu| {
        if let Err(failure) = pollster::block_on(check.run(gpu, Depth::Full)) {
            panic!("{} ({}, {kind:?} kernels): {failure}", gpu.summary().name, gpu.summary().driver);
        }
    });
}

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        mod portable {
            $(#[test] fn $name() { super::run(super::Device::Portable, stringify!($name)); })*
        }

        mod software {
            $(#[test] fn $name() { super::run(super::Device::Software, stringify!($name)); })*
        }
    };
}

tests! {
    matmul_nt, matmul_nn, matmul_tn, matmul_packed_is_exact, matmul_quantised, matmul_rows_alone,
    matmul_long_sums, adapters_forward, adapters_backward, adapters_long,
    attention_forward, attention_backward, attention_over_a_cache, attention_windows, attention_capped,
    rms_norm_forward, rms_norm_backward, rms_norm_many_rows, layer_norm, head_norm, column_sum,
    ema, activation, soft_cap, dropout, dropout_many_groups, rope, fma_peak,
    gather_forward, gather_scaled, gather_quantised, gather_backward, kv_write,
    log_prob, retain, row_scale, sequence_sum, preference_table, preference_groups, preference_likely_tokens,
    sum_squares, clip_scale, adamw, adamw_8bit,
    sample_draws, sample_frequencies, sample_row_order, sample_own_settings, sample_finishes,
    sample_survives_bad_logits,
    model_gradients,
}

/// Checks with matrix products, on the device that may round their inputs to f16. All other kernels are the
/// same as on the other devices.
mod half {
    use std::collections::BTreeSet;

    use aweigh::gpu::{Purpose, Scalar, Tensor};
    use aweigh::kernels::matmul::{Dims, Family, Form, Product};
    use aweigh::rng::values;

    macro_rules! tests {
        ($($name:ident),* $(,)?) => {
            $(#[test] fn $name() { super::run(super::Device::Half, stringify!($name)); })*
        };
    }

    tests! {
        matmul_nt, matmul_nn, matmul_tn, matmul_packed_is_exact, matmul_quantised, matmul_rows_alone,
        adapters_forward, adapters_backward, adapters_long, model_gradients,
    }

    /// Every feature that the adapter has is in use, so the checks above have run its kernels. The exception
    /// is subgroups of a size that no kernel supports.
    #[test]
    fn features_give_kernels() {
        super::with_gpu(super::Device::Half, |gpu| {
            let one = values(1, 1).iter().map(|&v| v as f32).collect::<Vec<_>>();
            let one = Tensor::from_f32(gpu, Purpose::Staging, "one", &one).expect("a small tensor");
            let product = Product::plain(Form::Nt, &one, &one, &one, Dims { m: 1, n: 1, k: 1 });
            let families: BTreeSet<Family> = product.candidates(gpu).iter().map(|by| by.family).collect();
            eprintln!("{}: products by {families:?}", gpu.summary().name);
            assert!(families.contains(&Family::F32));
            assert_eq!(families.contains(&Family::F16), gpu.summary().shader_f16);
            for (inputs, family) in
                [(Scalar::F16, Family::CooperativeF16), (Scalar::F32, Family::CooperativeF32)]
            {
                assert!(gpu.summary().cooperative_side(inputs).is_some() || !families.contains(&family));
            }
        });
    }
}

/// Checks of kernels that read operands through textures or from storage buffers, on the device that does the
/// latter.
mod storage {
    macro_rules! tests {
        ($($name:ident),* $(,)?) => {
            $(#[test] fn $name() { super::run(super::Device::Storage, stringify!($name)); })*
        };
    }

    tests! {
        attention_forward, attention_backward, attention_over_a_cache, attention_windows, attention_capped,
        model_gradients,
    }

    /// The two devices differ in what they prefer, and both have both kinds of kernels.
    #[test]
    fn the_devices_prefer_different_kernels() {
        use super::{Device, Tensor, with_gpu};
        use aweigh::gpu::{DType, Purpose};
        use aweigh::kernels::matmul::{Dims, Form, Product};
        for device in [Device::Software, Device::Storage] {
            with_gpu(device, |gpu| {
                let tensor = Tensor::new(gpu, Purpose::Staging, "x", 32 * 32, DType::F32).expect("memory");
                let dims = Dims { m: 32, n: 32, k: 32 };
                let all = Product::plain(Form::Nt, &tensor, &tensor, &tensor, dims).candidates(gpu);
                let texels: Vec<bool> = all.iter().map(|by| by.variant.contains(" TEXELS")).collect();
                assert_eq!(texels[0], device == Device::Software, "{all:?}");
                assert_eq!(texels.iter().filter(|texels| **texels).count(), all.len() / 2, "{all:?}");
            });
        }
    }
}

#[test]
fn every_check_is_a_test_here() {
    let here: BTreeSet<&str> = NAMES.iter().copied().collect();
    let all: BTreeSet<&str> = checks().iter().map(|check| check.name).collect();
    assert_eq!(here, all);
}

/// The comparison that all checks use notices one wrong element of a real kernel's output.
#[test]
fn a_spoilt_output_fails() {
    let count = 1000;
    let (a, b) = (values(1, count), values(2, count));
    let expected = reference::ema::forward(&a, &b, 0.5);
    let mut found = with_gpu(Device::Portable, |gpu| {
        let upload = |data: &[f64]| {
            let data: Vec<f32> = data.iter().map(|&v| v as f32).collect();
            Tensor::from_f32(gpu, Purpose::Staging, "spoilt", &data).expect("a small tensor")
        };
        let out = upload(&a);
        let mut rec = Recorder::new(gpu);
        ema::update(&mut rec, &upload(&b), &out, count, 0.5).expect("shapes agree");
        rec.submit();
        pollster::block_on(out.read_f32(gpu)).expect("readable")
    });
    assert_eq!(agree("mean", &found, &expected), Ok(()));
    for (index, spoilt) in [(0, 1e-4), (637, -1e-4), (999, f32::NAN)] {
        let right = found[index];
        found[index] += spoilt;
        let failure = agree("mean", &found, &expected).expect_err("one element is off");
        assert!(failure.0.contains(&format!("mean: index {index}: expected")), "{failure}");
        found[index] = right;
    }
}

/// A wrong result that `--paranoid` finds is the error of the next readback, and of no later one.
#[test]
fn a_wrong_result_is_an_error() {
    let spoil = |seen: &Witnessed| {
        let mut spoilt = seen.clone();
        spoilt.spoil((1, 7));
        spoilt.check()
    };
    let witness = Some(Paranoid::with(|reading| pollster::block_on(reading), Box::new(spoil)) as _);
    let adapter = std::env::var("AWEIGH_GPU").ok();
    let gpu =
        pollster::block_on(Gpu::open(&Options { adapter, witness, ..Options::default() })).expect("a GPU");
    let upload =
        |data: &[f32]| Tensor::from_f32(&gpu, Purpose::Staging, "spoilt", data).expect("a small tensor");
    let (value, average) = (upload(&[1.0; 12]), upload(&[2.0; 12]));
    let mut rec = Recorder::new(&gpu);
    ema::update(&mut rec, &value, &average, 12, 0.5).expect("shapes agree");
    rec.submit();
    let error = pollster::block_on(average.read_f32(&gpu)).expect_err("it is wrong");
    assert_eq!(error.exit_code(), 1);
    let text = error.to_string();
    assert!(text.contains("ema: binding 1, element 7: expected 1.5e0 within "), "{text}");
    assert!(text.contains("found 1.875e0; 1 of 12 compared") && text.contains("aweigh selftest"), "{text}");
    assert_eq!(pollster::block_on(average.read_f32(&gpu)).expect("readable"), [1.5; 12]);
}
