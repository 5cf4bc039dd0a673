//! Builds layers from weights: decides which tensors are trained, where they are stored and which matrices
//! are computed as one product, and adds adapters.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::DecoderConfig;
use super::adapter::{PEFT_SCORE, Training, tensor_name};
use super::config::NormKind;
use super::families::Projection;
use super::weights::{Elements, Stored, Weights};
use crate::Result;
use crate::gpu::{Blocks, DType, Memory, Purpose, Tensor};
use crate::kernels::matmul::AdapterPart;
use crate::kernels::rms_norm::Constants;
use crate::nn::{
    Attention, Block, Decay, HeadNorms, Layout, Linear, Lora, MAX_ARENA, Mlp, Norm, Param, Part, Piece,
    Streamed, Table, Weight,
};
use crate::rng;

/// Hugging Face's name of a classifier's head.
const SCORE: &str = "score.weight";

/// Builds layers from weights while loading.
pub(super) struct Loader<'a> {
    pub memory: &'a Memory,
    pub weights: &'a Weights<'a>,
    pub training: &'a Training<'a>,
    pub layout: Layout,
    /// Initial values of the trained parameters, in the layout's order.
    pub values: Vec<Vec<f32>>,
    pub adapters: u32,
    /// Device tensors that the blocks use in turn, by the matrix's place in its block, its type and its size.
    pub slots: HashMap<(usize, DType, usize), Tensor>,
    /// The current block's matrices in host memory.
    pub streamed: Vec<(Tensor, Vec<u8>)>,
    /// The block whose matrices are in the slots now.
    pub present: Arc<AtomicUsize>,
}

impl<'a> Loader<'a> {
    /// A loader that has built nothing yet.
    pub fn new(
        memory: &'a Memory,
        weights: &'a Weights<'a>,
        training: &'a Training<'a>,
        decay: Decay,
    ) -> Self {
        Self {
            memory,
            weights,
            training,
            layout: Layout::new(decay),
            values: Vec::new(),
            adapters: 0,
            slots: HashMap::new(),
            streamed: Vec::new(),
            present: Arc::new(AtomicUsize::new(Streamed::NONE)),
        }
    }

    /// A parameter from one tensor, in the layout of its file.
    pub fn param(&mut self, name: &str, shape: &[usize]) -> Result<Param> {
        self.params(&[Part::whole(name, shape)])
    }

    /// A parameter from several tensors, one after another.
    fn params(&mut self, parts: &[Part]) -> Result<Param> {
        let types: Vec<DType> = parts.iter().map(|part| self.weights.dtype(part)).collect::<Result<_>>()?;
        // On paper ([`Memory::on_paper`]) the elements are not needed.
        let stored = || parts.iter().filter(|_| !self.memory.is_paper()).map(|part| self.weights.part(part));
        if matches!(self.training, Training::Full) {
            let values = stored().map(|tensor| Ok(tensor?.to_f32())).collect::<Result<Vec<_>>>()?;
            self.values.extend(values);
            return Ok(self.layout.add(parts.to_vec()));
        }
        let (name, count) = (&parts[0].name, parts.iter().map(Part::count).sum());
        let dtype = common_type(parts, &types);
        let make = |memory| Tensor::new(memory, Purpose::Weights, name, count, dtype);
        let slot = match parts[0].quantizable && self.weights.offload {
            false => None,
            true => Some(match self.slots.entry((self.streamed.len(), dtype, count)) {
                Entry::Occupied(entry) => entry.get().clone(),
                Entry::Vacant(entry) => entry.insert(make(self.memory)?).clone(),
            }),
        };
        if self.memory.is_paper() {
            // There are no bytes to copy. The entry is still added, so that the next matrix gets the next
            // slot.
            self.streamed.extend(slot.iter().map(|slot| (slot.clone(), Vec::new())));
            return Ok(Param::Frozen(slot.map_or_else(|| make(self.memory), Ok)?));
        }
        let stored = stored().collect::<Result<Vec<_>>>()?;
        let bytes: Cow<[u8]> = match &stored[..] {
            [Stored { data: Elements::Plain(bytes), dtype: own, .. }] if *own == dtype => {
                Cow::Borrowed(bytes)
            }
            _ => Cow::Owned(joined(&stored, dtype)),
        };
        if let Some(slot) = slot {
            self.streamed.push((slot.clone(), bytes.into_owned()));
            return Ok(Param::Frozen(slot));
        }
        let tensor = Tensor::from_bytes(self.memory, Purpose::Weights, name, &bytes, (count, dtype))?;
        Ok(Param::Frozen(tensor))
    }

    /// Bytes that `parts` take on the device, as one parameter.
    fn size(&self, parts: &[Part]) -> Result<usize> {
        let count = parts.iter().map(Part::count).sum();
        if matches!(self.training, Training::Full) {
            return Ok(DType::F32.size(count));
        }
        let types: Vec<DType> = parts.iter().map(|part| self.weights.dtype(part)).collect::<Result<_>>()?;
        // Parts of different types get a tensor each.
        Ok(if types.iter().all(|dtype| *dtype == types[0]) { types[0].size(count) } else { usize::MAX })
    }

    /// Groups matrices into products: all in one if they fit into one binding together, otherwise one each,
    /// and a matrix that is still too large in pieces of its rows.
    fn pieces(&self, parts: Vec<Part>) -> Result<Vec<Vec<Part>>> {
        let most = self.memory.max_binding().min(4 * MAX_ARENA as u64) as usize;
        if self.size(&parts)? <= most {
            return Ok(vec![parts]);
        }
        let mut pieces = Vec::new();
        for part in parts {
            let size = self.size(std::slice::from_ref(&part))?;
            let rows = part.shape[0];
            // A multiple of 64 rows. They are columns of the output, and whole blocks of columns start where
            // vectors start.
            let count = (rows * (most / 64) / size.div_ceil(64).max(1)) / 64 * 64;
            if size <= most || count == 0 {
                pieces.push(vec![part]);
            } else {
                let first = (0..rows).step_by(count);
                pieces.extend(first.map(|first| vec![part.rows(first, count.min(rows - first))]));
            }
        }
        Ok(pieces)
    }

    /// A table of rows that are read by index.
    pub fn table(&mut self, name: &str, [rows, width]: [usize; 2]) -> Result<Table> {
        let mut pieces = Vec::new();
        for parts in self.pieces(vec![Part::whole(name, &[rows, width])])? {
            let (first, count) = (parts[0].first_row, parts[0].shape[0]);
            pieces.push(Piece { rows: self.params(&parts)?, first, count });
        }
        Ok(Table { pieces, width })
    }

    /// One layer, or several on the same input: (module, outputs) of each. `transposed`: files store the
    /// matrices as (inputs, outputs). `in_block`: the layers belong to a block and are not the head.
    pub fn linear(
        &mut self,
        layers: &[(String, usize)],
        inputs: usize,
        bias: bool,
        transposed: bool,
        in_block: bool,
    ) -> Result<Linear> {
        let quantizable = in_block && !matches!(self.training, Training::Full);
        let matrix = |(module, n): &(String, usize)| {
            let whole = Part::whole(format!("{module}.weight"), &[*n, inputs]);
            Part { transposed, quantizable, ..whole }
        };
        let (mut weights, mut first) = (Vec::new(), 0);
        for parts in self.pieces(layers.iter().map(matrix).collect())? {
            let of_bias = |part: &Part| Part {
                name: part.name.replace(".weight", ".bias"),
                shape: vec![part.shape[0]],
                transposed: false,
                quantizable: false,
                ..*part
            };
            let biases: Vec<Part> = parts.iter().map(of_bias).collect();
            let bias = if bias { Some(self.params(&biases)?) } else { None };
            let outputs = parts.iter().map(|part| part.shape[0]).sum();
            weights.push(Weight { matrix: self.params(&parts)?, bias, first, outputs });
            first += outputs;
        }
        let lora = self.lora(layers, inputs)?;
        Ok(Linear { weights, lora, inputs, outputs: first })
    }

    /// A judge's head on the last hidden state of a text: trained whenever anything is trained, and 0 before
    /// training.
    pub fn score(&mut self, classes: usize, inputs: usize) -> Result<Linear> {
        let own = Part::whole(SCORE, &[classes, inputs]);
        let weights = self.weights;
        let (name, stored) = match self.training {
            Training::Lora(..) => (PEFT_SCORE, None),
            Training::Adapter(adapter) => (PEFT_SCORE, Some(&adapter.weights)),
            Training::Full => (SCORE, weights.has(SCORE).then_some(weights)),
            // Only a judge that was trained can give verdicts.
            Training::None => (SCORE, Some(weights)),
        };
        let part = Part { name: name.into(), ..own };
        let values = match stored.filter(|_| !self.memory.is_paper()) {
            Some(weights) => weights.get(name, &part.shape)?.to_f32(),
            None => vec![0.0; part.count()],
        };
        let matrix = if matches!(self.training, Training::None) {
            Param::Frozen(Tensor::from_f32(self.memory, Purpose::Weights, name, &values)?)
        } else {
            self.values.push(values);
            self.layout.add(vec![part])
        };
        let weight = Weight { matrix, bias: None, first: 0, outputs: classes };
        Ok(Linear { weights: vec![weight], lora: None, inputs, outputs: classes })
    }

    pub fn lora(&mut self, layers: &[(String, usize)], inputs: usize) -> Result<Option<Lora>> {
        let (spec, seed, stored) = match self.training {
            Training::Lora(spec, seed) => (spec, *seed, None),
            Training::Adapter(adapter) => (&adapter.spec, 0, Some(&adapter.weights)),
            Training::None | Training::Full => return Ok(None),
        };
        let (mut inner, mut outer, mut values, mut parts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut first, mut first_rank, mut at) = (0, 0, 0);
        let first_stream = self.adapters;
        for (module, outputs) in layers {
            if spec.target_modules.selects(module) {
                let (rank, scale) = (spec.rank(module), spec.scale(module) as f32);
                let (stream, shapes) = (self.adapters, [[rank, inputs], [*outputs, rank]]);
                self.adapters += 1;
                let names = ['A', 'B'].map(|factor| tensor_name(module, factor));
                let [a, b] = match stored {
                    _ if self.memory.is_paper() => [Vec::new(), Vec::new()],
                    Some(weights) => [
                        weights.get(&names[0], &shapes[0])?.to_f32(),
                        weights.get(&names[1], &shapes[1])?.to_f32(),
                    ],
                    None => [kaiming(rank * inputs, inputs, stream, seed), vec![0.0; outputs * rank]],
                };
                let [a_name, b_name] = names;
                inner.push(Part::whole(a_name, &shapes[0]));
                self.values.push(a);
                values.push(b);
                outer.push(Part::whole(b_name, &shapes[1]));
                parts.push(AdapterPart { first, columns: *outputs, first_rank, rank, at, scale });
                first_rank += rank;
                at += outputs * rank;
            }
            first += outputs;
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let a = self.layout.add(inner);
        self.values.extend(values);
        let b = self.layout.add(outer);
        Ok(Some(Lora { a, b, parts, dropout: spec.lora_dropout as f32, first_stream }))
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
        let matrices = std::mem::take(&mut self.streamed);
        let streamed = (!matrices.is_empty()).then(|| Streamed {
            index,
            matrices: matrices.into(),
            present: self.present.clone(),
        });
        Ok(Block { attention_norm, attention, after_attention, mlp_norm, mlp, after_mlp, parallel, streamed })
    }

    /// Replaces the adapters of a block with those of `self.training`.
    pub fn adapt(&mut self, config: &DecoderConfig, index: usize, block: &mut Block) -> Result<()> {
        let names = config.names;
        for (layer, modules) in [
            (&mut block.attention.qkv, names.qkv),
            (&mut block.attention.o, &[names.o][..]),
            (&mut block.mlp.up, names.up),
            (&mut block.mlp.down, &[names.down][..]),
        ] {
            layer.lora = self.lora(&named(config, index, modules), layer.inputs)?;
        }
        Ok(())
    }

    /// The linear layers `modules` of a block, which read the same input.
    fn layers(&mut self, config: &DecoderConfig, index: usize, modules: &[&str]) -> Result<Linear> {
        let all = config.projections();
        let own: Vec<&Projection> = all.iter().filter(|layer| modules.contains(&layer.module)).collect();
        let (inputs, bias) = (own[0].inputs, own[0].bias);
        self.linear(&named(config, index, modules), inputs, bias, config.names.transposed, true)
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

/// The names and numbers of outputs of a block's linear layers `modules`.
fn named(config: &DecoderConfig, index: usize, modules: &[&str]) -> Vec<(String, usize)> {
    let all = config.projections();
    let own = all.iter().filter(|layer| modules.contains(&layer.module));
    own.map(|p| (config.names.of(index, p.module), p.outputs)).collect()
}

/// The type of `parts` as one tensor. Matrices stay as stored if all have the same type. Anything else
/// becomes f32: vectors are small, and the kernels that take them read f32.
fn common_type(parts: &[Part], types: &[DType]) -> DType {
    let dtype = types[0];
    let same = types.iter().all(|own| *own == dtype);
    if same && parts.iter().all(|part| part.shape.len() > 1) { dtype } else { DType::F32 }
}

/// The bytes of all tensors joined into one of `dtype`.
fn joined(stored: &[Stored], dtype: DType) -> Vec<u8> {
    if stored.iter().all(|tensor| tensor.dtype == dtype) {
        let blocks: Vec<&Blocks> = stored.iter().filter_map(Stored::blocks).collect();
        if blocks.len() == stored.len() {
            return Blocks::join(blocks).bytes();
        }
        return stored.iter().flat_map(Stored::plain).copied().collect();
    }
    stored.iter().flat_map(|tensor| tensor.to_f32()).flat_map(f32::to_le_bytes).collect()
}

/// `count` samples from U(−1/√inputs, 1/√inputs): Kaiming's uniform with a = √5, as in `torch.nn.Linear` and
/// PEFT.
fn kaiming(count: usize, inputs: usize, stream: u32, seed: u32) -> Vec<f32> {
    let bound = 1.0 / (inputs as f32).sqrt();
    // The constant 0x10aa keeps these counters apart from those of dropout.
    let draw = |i| rng::uniform(rng::pcg4d([i, stream, 0x10aa, seed])[0]);
    (0..count as u32).map(|i| (2.0 * draw(i) - 1.0) * bound).collect()
}
