//! Adapters with dropout in every kind of block: the gradients are those of the log-probs, by finite
//! differences.

use aweigh::data::packing::{Group, Packed};
use aweigh::gpu::{Gpu, Purpose, Recorder};
use aweigh::model::{Capacity, Decoder, LoraSpec, TargetModules, Training};
use aweigh::nn::{Arenas, Dropout, Pass, Recompute};
use aweigh::rng::values;

use super::common::load_on;
use super::{Device, with_gpu};

/// A parallel block with interleaved heads, transposed matrices with biases, norms of outputs, and norms of
/// heads.
const FAMILIES: [&str; 4] = ["gpt_neox", "gpt2", "gemma2", "qwen3"];

const PROMPT: [u32; 4] = [3, 14, 15, 9];
const ANSWERS: [&[u32]; 2] = [&[26, 5, 35], &[8, 9]];

/// A model of the family with a fresh adapter of `rank` on all linear layers.
fn decoder(gpu: &Gpu, family: &str, rank: usize) -> Decoder {
    let target_modules = TargetModules::AllLinear;
    let spec = LoraSpec {
        r: rank,
        lora_alpha: 2.0 * rank as f64,
        lora_dropout: 0.25,
        target_modules,
        ..LoraSpec::default()
    };
    load_on(gpu, &format!("families/{family}"), Training::Lora(spec, 1))
}

/// A decoder with the values of its adapter, and a batch.
struct Case<'g> {
    gpu: &'g Gpu,
    decoder: Decoder,
    /// By entry; B is not 0.
    values: Vec<Vec<f32>>,
    coefficients: Vec<f32>,
}

impl Case<'_> {
    fn pass(&self) -> Pass<'_> {
        Pass { dropout: Some(Dropout { step: 3, seed: 7 }), ..self.decoder.policy() }
    }

    fn set(&self, values: &[Vec<f32>]) {
        for (entry, values) in self.decoder.layout().entries().iter().zip(values) {
            self.decoder.policy().values.of(entry).write_f32(self.gpu, values);
        }
    }

    /// The sum of the answers' log-probs times their coefficients, and its gradient.
    fn run(&self, values: &[Vec<f32>], recompute: Recompute) -> (f64, Vec<Vec<f32>>) {
        self.set(values);
        let packed = Packed::new(&[Group { prompt: &PROMPT, responses: ANSWERS.into() }]);
        let capacity = Capacity::covering([&packed].into_iter(), Some(recompute));
        let mut ws = self.decoder.workspace(self.gpu, capacity).expect("a workspace");
        let layout = self.decoder.layout();
        let gradients = Arenas::new(self.gpu, layout, Purpose::Gradients, "gradients").expect("gradients");
        let mut rec = Recorder::new(self.gpu);
        ws.load(&mut rec, &packed).expect("fits");
        ws.coefficient.write_f32(self.gpu, &self.coefficients);
        self.decoder.score(&mut rec, self.pass(), &ws).expect("a forward pass");
        self.decoder.backward(&mut rec, self.pass(), &gradients, &ws).expect("a backward pass");
        rec.submit();
        let logps = pollster::block_on(ws.stats.slice(0, packed.predict.len()).read_f32(self.gpu));
        let terms = logps.expect("log-probs").into_iter().zip(&self.coefficients);
        let sum = terms.map(|(logp, c)| f64::from(logp) * f64::from(*c)).sum();
        (sum, pollster::block_on(gradients.read(self.gpu, layout)).expect("gradients"))
    }
}

fn check(kind: Device, family: &str, rank: usize) {
    with_gpu(kind, |gpu| {
        let decoder = decoder(gpu, family, rank);
        let start = pollster::block_on(decoder.policy().values.read(gpu, decoder.layout())).expect("values");
        let entries = decoder.layout().entries();
        let of = |(seed, (entry, start)): (u32, (&aweigh::nn::Entry, Vec<f32>))| match entry.name() {
            name if name.contains("lora_B") => {
                values(seed, entry.count()).into_iter().map(|v| 0.4 * v as f32).collect()
            }
            _ => start,
        };
        let values: Vec<Vec<f32>> = (1..).zip(entries.iter().zip(start)).map(of).collect();
        let names: Vec<String> = entries.iter().map(|entry| entry.name().to_owned()).collect();
        let case = Case { gpu, decoder, values, coefficients: vec![0.7, -1.0, 0.4, 1.3, -0.8] };
        let (_, gradient) = case.run(&case.values, Recompute::None);
        for recompute in [Recompute::Mlp, Recompute::Full] {
            assert!(case.run(&case.values, recompute).1 == gradient, "{family} {kind:?}: {recompute:?}");
        }
        // Along the gradients of all A, and of all B.
        for factor in ["lora_A", "lora_B"] {
            let along: Vec<Vec<f64>> = names
                .iter()
                .zip(&gradient)
                .map(|(name, g)| {
                    let own = name.contains(factor);
                    g.iter().map(|&g| if own { f64::from(g) } else { 0.0 }).collect()
                })
                .collect();
            let length = along.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
            let step = 4e-3;
            let moved = |sign: f64| -> Vec<Vec<f32>> {
                let one = |(values, along): (&Vec<f32>, &Vec<f64>)| {
                    let pairs = values.iter().zip(along);
                    pairs.map(|(v, g)| (f64::from(*v) + sign * step * g / length) as f32).collect()
                };
                case.values.iter().zip(&along).map(one).collect()
            };
            let [up, down] = [1.0, -1.0].map(|sign| case.run(&moved(sign), Recompute::None).0);
            let slope = (up - down) / (2.0 * step);
            assert!(
                (slope - length).abs() < 0.01 * length,
                "{family} {kind:?} {factor}: the slope is {slope}, the gradient's length {length}"
            );
        }
    });
}

#[test]
fn adapters_with_dropout_have_the_slopes_of_the_log_probs() {
    for family in FAMILIES {
        // Adapters that a product's kernel adds, and others.
        check(Device::Portable, family, 4);
        check(Device::Portable, family, 3);
    }
    check(Device::Software, "gemma2", 4);
}
