//! Layers from weights: which are trained and where they lie, what is computed as one product, adapters.

use std::borrow::Cow;

use super::DecoderConfig;
use super::adapter::tensor_name;
use super::decoder::Training;
use super::families;
use super::weights::{Stored, Weights};
use crate::Result;
use crate::gpu::{Gpu, Purpose, Tensor};
use crate::nn::{Attention, Block, Layout, Linear, Lora, LoraPart, MAX_ARENA, Mlp, Param, Weight};
use crate::reference::rng;

/// Makes layers from weights while loading.
pub(super) struct Loader<'a> {
    pub gpu: &'a Gpu,
    pub weights: &'a Weights<'a>,
    pub training: &'a Training<'a>,
    pub layout: Layout,
    /// What the arenas will hold, in the layout's order.
    pub values: Vec<Vec<f32>>,
    pub adapters: u32,
}

impl Loader<'_> {
    pub fn param(&mut self, name: &str, shape: &[usize]) -> Result<Param> {
        self.params(&[(name.into(), shape.into())])
    }

    /// Tensors behind each other as one parameter.
    fn params(&mut self, tensors: &[(String, Vec<usize>)]) -> Result<Param> {
        let stored = tensors.iter().map(|(name, shape)| self.weights.get(name, shape));
        let stored: Vec<Stored> = stored.collect::<Result<_>>()?;
        if matches!(self.training, Training::Full) {
            self.values.extend(stored.iter().map(|tensor| tensor.to_f32()));
            return Ok(self.layout.add(tensors.to_vec()));
        }
        let (name, dtype) = (&tensors[0].0, stored[0].dtype);
        // Matrices stay as stored; vectors are small, and the kernels that take them read f32.
        let matrices = tensors.iter().all(|(_, shape)| shape.len() > 1);
        let tensor = if matrices && stored.iter().all(|tensor| tensor.dtype == dtype) {
            let parts: Vec<&[u8]> = stored.iter().map(|tensor| tensor.bytes).collect();
            let bytes = if let [one] = parts[..] { Cow::Borrowed(one) } else { Cow::Owned(parts.concat()) };
            Tensor::from_bytes(self.gpu, Purpose::Weights, name, &bytes, dtype)?
        } else {
            let values: Vec<f32> = stored.iter().flat_map(|tensor| tensor.to_f32()).collect();
            Tensor::from_f32(self.gpu, Purpose::Weights, name, &values)?
        };
        Ok(Param::Frozen(tensor))
    }

    /// One layer, or several on the same input: (module, outputs) of each.
    pub fn linear(&mut self, layers: &[(String, usize)], inputs: usize, bias: bool) -> Result<Linear> {
        let outputs = layers.iter().map(|(_, outputs)| outputs).sum::<usize>();
        // As one product, unless the weights together are too large to be bound.
        let most = (self.gpu.limits().max_storage_buffer_binding_size as usize / 4).min(MAX_ARENA);
        let pieces: Vec<&[(String, usize)]> =
            if outputs * inputs <= most { vec![layers] } else { layers.chunks(1).collect() };
        let (mut weights, mut first) = (Vec::new(), 0);
        for piece in pieces {
            let named = |suffix: &str, shape: &dyn Fn(usize) -> Vec<usize>| -> Vec<(String, Vec<usize>)> {
                piece.iter().map(|(module, n)| (format!("{module}.{suffix}"), shape(*n))).collect()
            };
            let matrix = self.params(&named("weight", &|n| vec![n, inputs]))?;
            let bias = if bias { Some(self.params(&named("bias", &|n| vec![n]))?) } else { None };
            let outputs = piece.iter().map(|(_, outputs)| outputs).sum();
            weights.push(Weight { matrix, bias, first, outputs });
            first += outputs;
        }
        let lora = self.lora(layers, inputs)?;
        Ok(Linear { weights, lora, inputs, outputs })
    }

    fn lora(&mut self, layers: &[(String, usize)], inputs: usize) -> Result<Option<Lora>> {
        let (spec, seed, stored) = match self.training {
            Training::Lora(spec, seed) => (spec, *seed, None),
            Training::Adapter(adapter) => (&adapter.spec, 0, Some(&adapter.weights)),
            Training::None | Training::Full => return Ok(None),
        };
        let rank = spec.r;
        let (mut inner, mut chosen, mut values, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (module, outputs) in layers {
            if spec.target_modules.selects(module) {
                let (stream, shapes) = (self.adapters, [[rank, inputs], [*outputs, rank]]);
                self.adapters += 1;
                let names = ['A', 'B'].map(|factor| tensor_name(module, factor));
                let [a, b] = match stored {
                    Some(weights) => [
                        weights.get(&names[0], &shapes[0])?.to_f32(),
                        weights.get(&names[1], &shapes[1])?.to_f32(),
                    ],
                    None => [kaiming(rank * inputs, inputs, stream, seed), vec![0.0; outputs * rank]],
                };
                let [a_name, b_name] = names;
                inner.push((a_name, shapes[0].to_vec()));
                self.values.push(a);
                values.push(b);
                chosen.push((b_name, first, *outputs, stream));
            }
            first += outputs;
        }
        if chosen.is_empty() {
            return Ok(None);
        }
        let a = self.layout.add(inner);
        self.values.extend(values);
        let part = |(name, first, outputs, stream)| LoraPart {
            b: self.layout.add(vec![(name, vec![outputs, rank])]),
            first,
            outputs,
            stream,
        };
        let parts = chosen.into_iter().map(part).collect();
        let scale = (spec.lora_alpha / rank as f64) as f32;
        Ok(Some(Lora { a, parts, rank, scale, dropout: spec.lora_dropout as f32 }))
    }

    pub fn block(&mut self, config: &DecoderConfig, index: usize) -> Result<Block> {
        let name = |part: &str| families::layer(index, part);
        let (width, bias) = (config.width, config.attention_bias);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Ok(Block {
            attention_norm: self.param(&name("input_layernorm.weight"), &[width])?,
            attention: Attention {
                qkv: self.linear(
                    &[
                        (name("self_attn.q_proj"), q_width),
                        (name("self_attn.k_proj"), kv_width),
                        (name("self_attn.v_proj"), kv_width),
                    ],
                    width,
                    bias,
                )?,
                o: self.linear(&[(name("self_attn.o_proj"), width)], q_width, bias)?,
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
            },
            mlp_norm: self.param(&name("post_attention_layernorm.weight"), &[width])?,
            mlp: Mlp {
                gate_up: self.linear(
                    &[(name("mlp.gate_proj"), config.inner), (name("mlp.up_proj"), config.inner)],
                    width,
                    config.mlp_bias,
                )?,
                down: self.linear(&[(name("mlp.down_proj"), width)], config.inner, config.mlp_bias)?,
            },
            width,
            eps: config.eps,
        })
    }
}

/// `count` draws from U(−1/√inputs, 1/√inputs): Kaiming's uniform with a = √5, as `torch.nn.Linear` and PEFT.
fn kaiming(count: usize, inputs: usize, stream: u32, seed: u32) -> Vec<f32> {
    let bound = 1.0 / (inputs as f32).sqrt();
    // The tag keeps these counters apart from dropout's.
    let draw = |i| rng::uniform(rng::pcg4d([i, stream, 0x10aa, seed])[0]);
    (0..count as u32).map(|i| (2.0 * draw(i) - 1.0) * bound).collect()
}
