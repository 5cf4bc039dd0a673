//! Races: kernels with workgroup memory give the same bits when their invocations run in another order. A
//! software adapter always runs them in the same order, so that a missing barrier may go unnoticed on it.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use aweigh::Result;
use aweigh::gpu::{Gpu, Options, Seen, Tier, Witness};
use aweigh::selftest::{Depth, checks};
use aweigh::shader::{Lanes, Variant, source};

/// What the kernels with workgroup memory have written: each dispatch's variant, and a digest of the bytes.
#[derive(Debug, Default)]
struct Written(Mutex<Vec<(String, u64)>>);

impl Written {
    fn take(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Witness for Written {
    fn wants(&self, kernel: &str) -> bool {
        let text = source(&Variant::parse(kernel).expect("a variant")).expect("its source");
        text.contains("var<workgroup>")
    }

    fn watch(&self, gpu: &Gpu, seen: &Seen, run: &mut dyn FnMut()) -> Result<()> {
        run();
        let mut digest = DefaultHasher::new();
        for (tensor, _) in seen.bindings.iter().zip(seen.writes).filter(|(_, writes)| **writes) {
            pollster::block_on(tensor.read_bytes(gpu))?.hash(&mut digest);
        }
        let line = (seen.kernel.to_owned(), digest.finish());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ok(())
    }

    fn report(&self) -> String {
        String::new()
    }
}

fn device(lanes: Lanes) -> (Gpu, Arc<Written>) {
    let written = Arc::new(Written::default());
    let options = Options {
        adapter: std::env::var("AWEIGH_GPU").ok(),
        default_limits: true,
        tier: Some(Tier::Portable),
        witness: Some(written.clone()),
        lanes,
        ..Options::default()
    };
    (pollster::block_on(Gpu::open(&options)).unwrap_or_else(|error| panic!("{error}")), written)
}

/// Reversed only, and without the products of quantised weights, which differ in how they load them; with
/// `AWEIGH_CI_LONG=1` everything.
#[test]
fn another_order_of_invocations_gives_the_same_bits() {
    let long = std::env::var("AWEIGH_CI_LONG").is_ok_and(|set| set == "1");
    let mut orders = vec![Lanes::InOrder, Lanes::Reversed];
    orders.extend(long.then_some(Lanes::Strided));
    let devices: Vec<_> = orders.into_iter().map(|lanes| (lanes, device(lanes))).collect();
    let mut kernels = BTreeSet::new();
    for check in checks().iter().filter(|check| long || !check.name.ends_with("quantised")) {
        let mut expected = None;
        for (lanes, (gpu, written)) in &devices {
            if let Err(failure) = pollster::block_on(check.run(gpu, Depth::Quick)) {
                panic!("{}, {lanes:?}: {failure}", check.name);
            }
            let written = written.take();
            kernels.extend(written.iter().map(|(kernel, _)| kernel.clone()));
            assert_eq!(
                &written,
                expected.get_or_insert_with(|| written.clone()),
                "{}, {lanes:?}",
                check.name
            );
        }
    }
    let known = kernels.iter().map(|kernel| kernel.split(' ').next().unwrap_or_default());
    let shaders: BTreeSet<&str> = known.collect();
    eprintln!("{} variants of {shaders:?}", kernels.len());
    for shader in
        ["attention_tiled", "attention_dq_tiled", "attention_dkv_tiled", "matmul_tiled", "matvec", "rms_norm"]
    {
        assert!(shaders.contains(shader), "{shader} was not run");
    }
}
