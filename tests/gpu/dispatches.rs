//! How many kernels a step consists of. Each costs the host and the GPU some microseconds, whatever its size.

use aweigh::data::packing::{Group, Packed};
use aweigh::gpu::{Gpu, Purpose, Recorder};
use aweigh::model::{Capacity, Decoder, LoraSpec, TargetModules, Training};
use aweigh::nn::{Arenas, Recompute};

use super::common::made_up;
use super::{Device, with_gpu};

/// Kernels of a forward and a backward pass.
fn step(gpu: &Gpu, decoder: &Decoder) -> u64 {
    let packed = Packed::new(&[Group { prompt: &[1, 2, 3], responses: vec![&[4, 5], &[6]] }]);
    let capacity = Capacity::covering([&packed].into_iter(), Some(Recompute::None));
    let mut ws = decoder.workspace(gpu, capacity).expect("a workspace");
    let gradients = Arenas::new(gpu, decoder.layout(), Purpose::Gradients, "gradients").expect("gradients");
    let mut rec = Recorder::new(gpu);
    ws.load(&mut rec, &packed).expect("fits");
    let before = gpu.dispatches();
    decoder.score(&mut rec, decoder.policy(), &ws).expect("a forward pass");
    decoder.backward(&mut rec, decoder.policy(), &gradients, &ws).expect("a backward pass");
    gpu.dispatches() - before
}

/// A block's share of a step.
fn of_a_block(kind: Device, training: &dyn Fn() -> Training<'static>) -> u64 {
    with_gpu(kind, |gpu| {
        let [two, three] = [2, 3].map(|layers| step(gpu, &made_up(gpu, 40, layers, training())));
        three - two
    })
}

#[test]
fn a_block_is_few_kernels() {
    let lora = |r: usize| {
        let spec = LoraSpec { r, target_modules: TargetModules::AllLinear, ..LoraSpec::default() };
        move || Training::Lora(spec.clone(), 1)
    };
    // Adapters on all seven matrices. On a GPU they are added by the kernels of the products.
    assert_eq!(of_a_block(Device::Portable, &lora(16)), 36);
    // More ranks than these kernels add: products of their own.
    assert_eq!(of_a_block(Device::Portable, &lora(64)), 47);
    // Software adapters, where a kernel's start costs little, have a product for each adapter.
    assert_eq!(of_a_block(Device::Software, &lora(8)), 54);
    assert_eq!(of_a_block(Device::Portable, &|| Training::Full), 26);
}
