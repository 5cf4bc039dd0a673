//! Layers from weights: which are trained and where they lie, what is computed as one product, adapters.

use std::borrow::Cow;

use super::DecoderConfig;
use super::adapter::tensor_name;
use super::config::NormKind;
use super::decoder::Training;
use super::families::Projection;
use super::weights::{Stored, Weights};
use crate::Result;
use crate::gpu::{Gpu, Purpose, Tensor};
use crate::kernels::rms_norm::Constants;
use crate::nn::{
    Attention, Block, HeadNorms, Layout, Linear, Lora, LoraPart, MAX_ARENA, Mlp, Named, Norm, Param, Weight,
};
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
    /// A tensor, as it lies in a file.
    pub fn param(&mut self, name: &str, shape: &[usize]) -> Result<Param> {
        self.params(&[(name.into(), shape.into(), false)])
    }

    fn stored(&self, (name, shape, transposed): &Named) -> Result<Stored<'_>> {
        match shape[..] {
            [rows, columns] if *transposed => {
                Ok(self.weights.get(name, &[columns, rows])?.transposed(columns, rows))
            }
            _ => self.weights.get(name, shape),
        }
    }

    /// Tensors behind each other as one parameter.
    fn params(&mut self, tensors: &[Named]) -> Result<Param> {
        let stored = tensors.iter().map(|named| self.stored(named));
        let stored: Vec<Stored> = stored.collect::<Result<_>>()?;
        if matches!(self.training, Training::Full) {
            let values: Vec<Vec<f32>> = stored.iter().map(Stored::to_f32).collect();
            self.values.extend(values);
            return Ok(self.layout.add(tensors.to_vec()));
        }
        let (name, dtype) = (&tensors[0].0, stored[0].dtype);
        // Matrices stay as stored; vectors are small, and the kernels that take them read f32.
        let matrices = tensors.iter().all(|(_, shape, _)| shape.len() > 1);
        let tensor = if matrices && stored.iter().all(|tensor| tensor.dtype == dtype) {
            let parts: Vec<&[u8]> = stored.iter().map(|tensor| &*tensor.bytes).collect();
            let bytes = if let [one] = parts[..] { Cow::Borrowed(one) } else { Cow::Owned(parts.concat()) };
            Tensor::from_bytes(self.gpu, Purpose::Weights, name, &bytes, dtype)?
        } else {
            let values: Vec<f32> = stored.iter().flat_map(|tensor| tensor.to_f32()).collect();
            Tensor::from_f32(self.gpu, Purpose::Weights, name, &values)?
        };
        Ok(Param::Frozen(tensor))
    }

    /// One layer, or several on the same input: (module, outputs) of each. `transposed` says how files hold the matrices.
    pub fn linear(
        &mut self,
        layers: &[(String, usize)],
        inputs: usize,
        bias: bool,
        transposed: bool,
    ) -> Result<Linear> {
        let outputs = layers.iter().map(|(_, outputs)| outputs).sum::<usize>();
        // As one product, unless the weights together are too large to be bound.
        let most = (self.gpu.limits().max_storage_buffer_binding_size as usize / 4).min(MAX_ARENA);
        let pieces: Vec<&[(String, usize)]> =
            if outputs * inputs <= most { vec![layers] } else { layers.chunks(1).collect() };
        let (mut weights, mut first) = (Vec::new(), 0);
        for piece in pieces {
            let named = |suffix: &str, transposed, shape: &dyn Fn(usize) -> Vec<usize>| -> Vec<Named> {
                let one =
                    |(module, n): &(String, usize)| (format!("{module}.{suffix}"), shape(*n), transposed);
                piece.iter().map(one).collect()
            };
            let matrix = self.params(&named("weight", transposed, &|n| vec![n, inputs]))?;
            let bias = if bias { Some(self.params(&named("bias", false, &|n| vec![n]))?) } else { None };
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
                inner.push((a_name, shapes[0].to_vec(), false));
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
            b: self.layout.add(vec![(name, vec![outputs, rank], false)]),
            first,
            outputs,
            stream,
        };
        let parts = chosen.into_iter().map(part).collect();
        let scale = (spec.lora_alpha / rank as f64) as f32;
        Ok(Some(Lora { a, parts, rank, scale, dropout: spec.lora_dropout as f32 }))
    }

    /// A norm over the width.
    pub fn norm(&mut self, config: &DecoderConfig, module: &str) -> Result<Norm> {
        let width = config.width;
        let weight = self.param(&format!("{module}.weight"), &[width])?;
        let (bias, shift) = match config.norm {
            NormKind::Rms { shift } => (None, shift),
            NormKind::Layer => (Some(self.param(&format!("{module}.bias"), &[width])?), 0.0),
        };
        Ok(Norm { weight, bias, width, constants: Constants { eps: config.eps, shift } })
    }

    pub fn block(&mut self, config: &DecoderConfig, index: usize) -> Result<Block> {
        let names = config.names;
        let norm = |loader: &mut Self, module: &str| loader.norm(config, &names.of(index, module));
        let optional = |loader: &mut Self, module: Option<&str>| module.map(|m| norm(loader, m)).transpose();
        let attention_norm = norm(self, names.attention_norm)?;
        let attention = self.attention(config, index)?;
        let after_attention = optional(self, names.after_attention)?;
        let mlp_norm = norm(self, names.mlp_norm)?;
        let mlp = Mlp {
            up: self.layers(config, index, names.up)?,
            down: self.layers(config, index, &[names.down])?,
            function: config.activation,
            gated: config.gated,
        };
        let after_mlp = optional(self, names.after_mlp)?;
        let parallel = config.parallel;
        Ok(Block { attention_norm, attention, after_attention, mlp_norm, mlp, after_mlp, parallel })
    }

    /// The linear layers `modules` of a block, which read the same input.
    fn layers(&mut self, config: &DecoderConfig, index: usize, modules: &[&str]) -> Result<Linear> {
        let all = config.projections();
        let own: Vec<&Projection> = all.iter().filter(|layer| modules.contains(&layer.module)).collect();
        let named: Vec<_> = own.iter().map(|p| (config.names.of(index, p.module), p.outputs)).collect();
        self.linear(&named, own[0].inputs, own[0].bias, config.names.transposed)
    }

    fn attention(&mut self, config: &DecoderConfig, index: usize) -> Result<Attention> {
        let (names, own) = (config.names, config.blocks[index]);
        let qkv = self.layers(config, index, names.qkv)?;
        let shift = if let NormKind::Rms { shift } = config.norm { shift } else { 0.0 };
        let norms = match config.head_norms {
            false => None,
            true => {
                let mut norm = |module| {
                    let name = format!("{}.weight", names.of(index, module));
                    self.param(&name, &[config.head_dim])
                };
                let constants = Constants { eps: config.eps, shift };
                Some(HeadNorms { q: norm(names.q_norm)?, k: norm(names.k_norm)?, constants })
            }
        };
        Ok(Attention {
            qkv,
            o: self.layers(config, index, &[names.o])?,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            interleaved: config.interleaved,
            norms,
            rope: own.rope.map(|kind| (kind, config.ropes[kind].dim)),
            scale: config.attention_scale,
            window: own.window,
            cap: config.attention_cap,
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
