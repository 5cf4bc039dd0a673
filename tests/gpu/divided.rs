//! A dispatch that would take a GPU much longer than a submit may is recorded as several.

use std::collections::BTreeSet;

use aweigh::gpu::{Gpu, Options, Tier};
use aweigh::selftest::{Check, Depth, checks};

/// A device whose submits should take `seconds`.
fn device(submit_seconds: Option<f64>) -> Gpu {
    let adapter = std::env::var("AWEIGH_GPU").ok();
    let tier = Some(Tier::Portable);
    let options = Options { adapter, default_limits: true, submit_seconds, tier, ..Options::default() };
    pollster::block_on(Gpu::open(&options)).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a check. Returns how many dispatches it had.
fn run(gpu: &Gpu, check: &Check) -> u64 {
    let before = gpu.dispatches();
    if let Err(failure) = pollster::block_on(check.run(gpu, Depth::Quick)) {
        panic!("{}: {failure}", check.name);
    }
    gpu.dispatches() - before
}

/// Every kernel gives the right results when each of its workgroups is a dispatch of its own. Left out are
/// quantised weights, whose products differ only in how they load them, and checks of very many workgroups.
#[test]
fn a_long_dispatch_is_divided() {
    let (patient, impatient) = (device(None), device(Some(1e-9)));
    let many = ["adapters_forward", "dropout_many_groups", "preference_groups", "sample_frequencies"];
    let left_out = |name: &str| name.ends_with("quantised") || many.contains(&name);
    let mut divided = BTreeSet::new();
    for check in checks().iter().filter(|check| !left_out(check.name)) {
        let [whole, parts] = [&patient, &impatient].map(|gpu| run(gpu, check));
        eprintln!("{}: {whole} dispatches, {parts} in parts", check.name);
        if parts > whole {
            divided.insert(check.name);
        }
    }
    let expected = ["matmul_nt", "adapters_backward", "attention_forward", "attention_backward"];
    let missing: Vec<_> = expected.into_iter().filter(|name| !divided.contains(name)).collect();
    assert!(missing.is_empty() && divided.len() > 20, "not divided: {missing:?}; divided: {divided:?}");
}
