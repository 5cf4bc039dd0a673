//! A whole small model: log-probs, losses and every gradient of the engine against
//! [`crate::reference::decoder`].

use super::fixture::{below, values};
use super::{Check, Depth, Failure, Outcome, Tolerance, check};
use crate::Result;
use crate::data::packing::{Group, Packed};
use crate::gpu::{DType, Gpu, Precision, Purpose, Recorder};
use crate::loss::{Formula, Loss};
use crate::model::{
    Adapter, Capacity, Decoder, DecoderConfig, ExportDType, LoraSpec, Training, Weights, merged, serialize,
};
use crate::nn::{Arenas, Decay, Recompute};
use crate::reference::decoder::{self, Model, Shape, Tensors};
use crate::reference::{compare, preference, rope};

pub(super) fn checks() -> Vec<Check> {
    vec![check!("model_gradients", gradients)]
}

/// heads · head_dim is not the width, and none of width, ff and vocab is a multiple of another.
const SHAPE: Shape = Shape {
    layers: 2,
    width: 24,
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    ff: 40,
    vocab: 61,
    eps: EPS as f64,
    lora_scale: 2.0,
};
const EPS: f32 = 1e-5;
const RANK: usize = 4;
const THETA: f64 = 100.0;
/// More positions than any sequence below has tokens.
const POSITIONS: usize = 32;

/// For a whole model, where rounding errors add up over layers and tokens. PyTorch in f32 is within this
/// tolerance too.
const EXACT: Tolerance = Tolerance { abs: 2e-5, eps: 2e-4 };
/// The tolerance with [`Precision::F16`], as a share of the tensor's largest element: every input of every
/// product has a relative error of up to 2^-10, and products cancel. On
/// llvmpipe, which rounds to nearest, errors are below 2e-2 with either kind of kernel.
const ROUNDED: f64 = 5e-2;

/// PEFT's prefix for the name of every tensor of an adapter.
const PEFT: &str = "base_model.model.";

/// A model, the choice of its trained weights, and the loss.
struct Variant {
    biased: bool,
    tied: bool,
    /// Train an adapter on all projections instead of all weights.
    lora: bool,
    /// Type of the weights as stored; weights that are trained are f32 on the device.
    dtype: DType,
    formula: Formula,
    normed: bool,
}

const D2O: Formula = Formula::D2o { alpha: 0.6, beta: 0.9 };
const KTO: Formula = Formula::Kto { beta: 0.5, desirable_weight: 1.0, undesirable_weight: 2.0 };
/// The KL divergence that a KTO loss is given.
const KL: f64 = 0.25;
const SFT: Formula = Formula::Sft;
const UL: Formula = Formula::Ul;
const DPO: Formula = Formula::Dpo { beta: 0.5, label_smoothing: 0.1 };

#[rustfmt::skip]
const VARIANTS: [Variant; 9] = [
    Variant { biased: true, tied: false, lora: false, dtype: DType::F32, formula: D2O, normed: false },
    Variant { biased: true, tied: false, lora: true, dtype: DType::Bf16, formula: D2O, normed: true },
    Variant { biased: false, tied: true, lora: false, dtype: DType::F32, formula: DPO, normed: false },
    Variant { biased: false, tied: true, lora: true, dtype: DType::F16, formula: D2O, normed: false },
    Variant { biased: true, tied: true, lora: false, dtype: DType::F32, formula: D2O, normed: true },
    Variant { biased: false, tied: false, lora: false, dtype: DType::F32, formula: SFT, normed: false },
    Variant { biased: false, tied: true, lora: true, dtype: DType::Bf16, formula: UL, normed: false },
    Variant { biased: false, tied: false, lora: false, dtype: DType::F32, formula: UL, normed: false },
    Variant { biased: false, tied: true, lora: true, dtype: DType::F32, formula: KTO, normed: false },
];

async fn gradients(gpu: &Gpu, depth: Depth) -> Outcome {
    for variant in depth.of(&VARIANTS) {
        variant.check(gpu).await?;
    }
    Ok(())
}

/// A tensor's name and shape.
type Named = (String, Vec<usize>);

/// The projections of a block: name, inputs, outputs.
const PROJECTIONS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", SHAPE.width, SHAPE.heads * SHAPE.head_dim),
    ("self_attn.k_proj", SHAPE.width, SHAPE.kv_heads * SHAPE.head_dim),
    ("self_attn.v_proj", SHAPE.width, SHAPE.kv_heads * SHAPE.head_dim),
    ("self_attn.o_proj", SHAPE.heads * SHAPE.head_dim, SHAPE.width),
    ("mlp.gate_proj", SHAPE.width, SHAPE.ff),
    ("mlp.up_proj", SHAPE.width, SHAPE.ff),
    ("mlp.down_proj", SHAPE.ff, SHAPE.width),
];

/// All projections of all blocks.
fn projections() -> impl Iterator<Item = (String, usize, usize)> {
    (0..SHAPE.layers).flat_map(|layer| {
        PROJECTIONS.map(|(name, inputs, outputs)| (format!("model.layers.{layer}.{name}"), inputs, outputs))
    })
}

/// Groups of prompts and answers, among them a prompt of one token, an answer of one token, and answers that
/// repeat ids.
struct Text {
    prompts: Vec<Vec<u32>>,
    responses: Vec<Vec<Vec<u32>>>,
}

impl Text {
    fn new(formula: Formula) -> Self {
        let ids =
            |seed: u32, n: u32| (0..n).map(|i| below(SHAPE.vocab as u32, seed, i)).collect::<Vec<u32>>();
        let lengths: [&[u32]; 3] = match formula {
            Formula::D2o { .. } => [&[5, 1, 9, 4], &[3, 7], &[2, 6, 4]],
            Formula::Kto { .. } => [&[5, 0], &[0, 7], &[6, 0]],
            Formula::Sft | Formula::Ga | Formula::Ul | Formula::Npo { .. } | Formula::Simnpo { .. } => {
                [&[5], &[1], &[8]]
            }
            _ => [&[5, 9], &[1, 7], &[6, 6]],
        };
        let responses = lengths
            .iter()
            .zip(0..)
            .map(|(lengths, g)| lengths.iter().zip(0..).map(|(&n, i)| ids(40 + 10 * g + i, n)).collect());
        Self {
            prompts: [7, 1, 12].iter().zip(30..).map(|(&n, seed)| ids(seed, n)).collect(),
            responses: responses.collect(),
        }
    }

    fn groups(&self) -> Vec<Group<'_>> {
        let groups = self.prompts.iter().zip(&self.responses);
        groups.map(|(prompt, r)| Group { prompt, responses: r.iter().map(Vec::as_slice).collect() }).collect()
    }

    /// Generated reference log-probs: near those of a uniform distribution, so that no sigmoid is saturated.
    fn reference(&self) -> Vec<f64> {
        let lengths: Vec<usize> = self.responses.iter().flatten().map(Vec::len).collect();
        let noise = values(50, lengths.len(), 2.0);
        lengths.iter().zip(noise).map(|(&n, noise)| f64::from((noise - 5.0 * n as f64) as f32)).collect()
    }
}

impl Variant {
    fn loss(&self) -> Loss {
        Loss { formula: self.formula, length_normalize: self.normed, negative_floor: None }
    }

    fn name(&self) -> String {
        let Self { biased, tied, lora, dtype, formula, normed } = self;
        format!("{formula:?} biased={biased} tied={tied} lora={lora} {dtype:?} normalize={normed}")
    }

    fn config(&self) -> String {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": SHAPE.vocab,
            "hidden_size": SHAPE.width,
            "num_hidden_layers": SHAPE.layers,
            "num_attention_heads": SHAPE.heads,
            "num_key_value_heads": SHAPE.kv_heads,
            "head_dim": SHAPE.head_dim,
            "intermediate_size": SHAPE.ff,
            "rms_norm_eps": EPS,
            "rope_theta": THETA,
            "max_position_embeddings": POSITIONS,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.biased,
            "mlp_bias": self.biased,
        })
        .to_string()
    }

    /// The base model's tensors.
    fn tensors(&self) -> Vec<Named> {
        let (width, vocab) = (SHAPE.width, SHAPE.vocab);
        let mut all: Vec<Named> = vec![
            ("model.embed_tokens.weight".into(), vec![vocab, width]),
            ("model.norm.weight".into(), vec![width]),
        ];
        if !self.tied {
            all.push(("lm_head.weight".into(), vec![vocab, width]));
        }
        for layer in 0..SHAPE.layers {
            for norm in ["input", "post_attention"] {
                all.push((format!("model.layers.{layer}.{norm}_layernorm.weight"), vec![width]));
            }
        }
        for (name, inputs, outputs) in projections() {
            all.push((format!("{name}.weight"), vec![outputs, inputs]));
            if self.biased {
                all.push((format!("{name}.bias"), vec![outputs]));
            }
        }
        all
    }

    /// The bytes of the base model's file, with weights rounded to `dtype`.
    fn file(&self) -> Result<Vec<u8>> {
        let plain = file(&self.tensors(), 100, "")?;
        let weights = Weights::parse([("selftest", plain.as_slice())], "selftest")?;
        let config = DecoderConfig::parse(self.config().as_bytes(), "selftest")?;
        merged(&weights, &config, None, ExportDType::As(self.dtype))
    }

    async fn check(&self, gpu: &Gpu) -> Outcome {
        let (bytes, adapter_bytes) = (self.file()?, file(&adapters(), 200, PEFT)?);
        let weights = Weights::parse([("selftest", bytes.as_slice())], "selftest")?;
        let spec = LoraSpec {
            r: RANK,
            lora_alpha: SHAPE.lora_scale * RANK as f64,
            lora_dropout: 0.0,
            target_modules: crate::model::TargetModules::AllLinear,
            ..LoraSpec::default()
        };
        let json = spec.to_peft_json("selftest", &["all-linear".into()], false);
        let adapter = Adapter::parse(("selftest", json.as_bytes()), ("selftest", &adapter_bytes))?;
        let training = if self.lora { Training::Adapter(&adapter) } else { Training::Full };
        let config = self.config();
        let model = Decoder::load(gpu, ("selftest", config.as_bytes()), &weights, training, Decay::All)?;
        let mut tensors = in_double(&weights, &self.tensors(), "")?;
        if self.lora {
            tensors.extend(in_double(&adapter.weights, &adapters(), PEFT)?);
        }
        let text = Text::new(self.formula);
        let found = self.on_device(gpu, &model, &text, Recompute::None).await?;
        for recompute in [Recompute::Mlp, Recompute::Full] {
            if self.on_device(gpu, &model, &text, recompute).await? != found {
                return Err(Failure(format!("{}: results differ with recompute {recompute:?}", self.name())));
            }
        }
        self.compare(gpu.precision(), &found, &self.in_double(&tensors, &text))
    }

    /// The engine's results.
    async fn on_device(
        &self,
        gpu: &Gpu,
        model: &Decoder,
        text: &Text,
        recompute: Recompute,
    ) -> Result<Found> {
        let groups = text.groups();
        let packed = Packed::new(&groups);
        let arenas = Arenas::new(gpu, model.layout(), Purpose::Gradients, "selftest gradients")?;
        let mut ws = model.workspace(gpu, Capacity::covering([&packed].into_iter(), Some(recompute)))?;
        let mut rec = Recorder::new(gpu);
        ws.load(&mut rec, &packed)?;
        let reference: Vec<f32> = text.reference().iter().map(|&v| v as f32).collect();
        ws.reference.write_f32(gpu, &reference);
        model.score(&mut rec, model.policy(), &ws)?;
        ws.loss(&mut rec, self.loss(), groups.len(), groups.len(), KL)?;
        model.backward(&mut rec, model.policy(), &arenas, &ws)?;
        rec.submit();
        let logps = ws.stats.slice(0, packed.predict.len()).read_f32(gpu).await?;
        let outcome = ws.outcome.slice(0, 4 * groups.len()).read_f32(gpu).await?;
        let names = model
            .layout()
            .entries()
            .iter()
            .map(|e| e.name().strip_prefix(PEFT).unwrap_or(e.name()).to_owned());
        let gradients = names.zip(arenas.read(gpu, model.layout()).await?).collect();
        Ok(Found { logps, losses: outcome.chunks_exact(4).map(|o| o[0]).collect(), gradients })
    }

    /// The expected results, in f64.
    fn in_double(&self, weights: &Tensors, text: &Text) -> Expected {
        let groups = text.groups();
        let packed: Vec<(&[u32], &[&[u32]])> =
            groups.iter().map(|g| (g.prompt, g.responses.as_slice())).collect();
        let batch = decoder::pack(&packed);
        let table = rope::table(POSITIONS, &rope::inv_freq(SHAPE.head_dim, THETA));
        let model = Model { shape: SHAPE, weights, table: &table };
        let saved = decoder::forward(model, &batch);
        let (tokens, reference) = (decoder::token_logps(&batch, &saved), text.reference());
        let mut first = 0;
        let outcomes = groups.iter().map(|group| {
            let own = first..first + group.responses.len();
            first = own.end;
            let logps = &tokens[own.clone()];
            preference::forward(self.formula, logps, None, &reference[own], self.loss().terms(KL))
        });
        let outcomes: Vec<preference::Outcome> = outcomes.collect();
        let rows = preference::mean(&outcomes).1.concat();
        let gradients = decoder::backward(model, &batch, &saved, &rows);
        Expected {
            logps: saved.token.logp,
            losses: outcomes.iter().map(|outcome| outcome.loss).collect(),
            gradients,
        }
    }

    fn compare(&self, precision: Precision, found: &Found, expected: &Expected) -> Outcome {
        let near = |what: &str, found: &[f32], expected: &[f64]| {
            let Tolerance { abs, eps } = match precision {
                Precision::F32 => EXACT,
                Precision::F16 => {
                    let largest = expected.iter().fold(0.0, |most: f64, e| most.max(e.abs()));
                    Tolerance { abs: ROUNDED * largest, eps: 0.0 }
                }
            };
            compare::compare(found, expected, abs, eps)
                .map_err(|message| Failure(format!("{what}, {}: {message}", self.name())))
        };
        near("log-probs", &found.logps, &expected.logps)?;
        near("losses", &found.losses, &expected.losses)?;
        for (name, gradient) in &found.gradients {
            let expected = expected.gradients.get(name).map(Vec::as_slice).unwrap_or_default();
            near(&format!("gradient of {name}"), gradient, expected)?;
        }
        let trained = expected.gradients.keys().filter(|name| !self.lora || name.contains(".lora_")).count();
        if found.gradients.len() != trained {
            let message =
                format!("{}: found {} gradients, expected {trained}", self.name(), found.gradients.len());
            return Err(Failure(message));
        }
        Ok(())
    }
}

/// Log-probs of all response tokens, losses of all groups, gradients by name.
#[derive(PartialEq)]
struct Found {
    logps: Vec<f32>,
    losses: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
}

struct Expected {
    logps: Vec<f64>,
    losses: Vec<f64>,
    gradients: Tensors,
}

/// An adapter's tensors for all projections. B is not zero: otherwise the gradient of A would be zero.
fn adapters() -> Vec<Named> {
    let both = |(name, inputs, outputs): (String, usize, usize)| {
        [
            (format!("{name}.lora_A.weight"), vec![RANK, inputs]),
            (format!("{name}.lora_B.weight"), vec![outputs, RANK]),
        ]
    };
    projections().flat_map(both).collect()
}

/// A safetensors file of f32 values: norms' weights around 1, other tensors around 0.
fn file(tensors: &[Named], seed: u32, prefix: &str) -> Result<Vec<u8>> {
    let fill = |(seed, (name, shape)): (u32, &Named)| {
        let shift = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let data = values(seed, shape.iter().product(), 0.5);
        let data: Vec<f32> = data.iter().map(|v| (shift + v) as f32).collect();
        (format!("{prefix}{name}"), shape.clone(), data)
    };
    let filled: Vec<(String, Vec<usize>, Vec<f32>)> = (seed..).zip(tensors).map(fill).collect();
    serialize(filled.iter().map(|(name, shape, data)| (name.as_str(), shape.as_slice(), data.as_slice())))
}

/// The values of a file's tensors, in f64 for the reference.
fn in_double(weights: &Weights, tensors: &[Named], prefix: &str) -> Result<Tensors> {
    let one = |(name, shape): &Named| {
        let stored = weights.get(&format!("{prefix}{name}"), shape)?.to_f32();
        Ok((name.clone(), stored.into_iter().map(f64::from).collect()))
    };
    tensors.iter().map(one).collect()
}
