//! The decoder: embedding, blocks, norm, head; its forward pass over a packed batch, log-probs, and its
//! backward pass.

mod head;

use super::adapter::{Adapter, Training, leaves, module_of};
use super::config::{JUDGE_CLASSES, NormKind, Rope};
use super::export::serialize;
use super::load::Loader;
use super::lora::LoraSpec;
use super::workspace::Workspace;
use super::{Capacity, DecoderConfig, Weights};
use crate::gpu::{DType, Gpu, Memory, Purpose, Recorder, Tensor};
use crate::kernels::gather::Reading;
use crate::kernels::{log_prob, sequence_sum};
use crate::model::TargetModules;
use crate::nn::{
    Arenas, Backward, Block, Decay, Forward, KvCache, Layout, Linear, Lora, Norm, Param, Pass, Piece, Ranks,
    Sizes, Table, Tables, Weight,
};
use crate::{Error, Result};

/// A decoder on a device.
pub struct Decoder {
    config: DecoderConfig,
    embedding: Table,
    /// `(max_positions, D)`, if positions are learned.
    positions: Option<Table>,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    ropes: Vec<Tensor>,
    layout: Layout,
    values: Arenas,
    lora: Option<LoraSpec>,
}

impl Decoder {
    /// Loads a decoder from config.json and its weights. In memory made by [`Memory::on_paper`], its tensors
    /// have sizes but no elements.
    ///
    /// # Errors
    /// An unsupported architecture, a missing tensor or one of the wrong shape, or anything that exceeds the
    /// GPU adapter's limits.
    pub fn load(
        memory: &Memory,
        config_json: (&str, &[u8]),
        weights: &Weights,
        training: Training,
        decay: Decay,
    ) -> Result<Self> {
        let config = DecoderConfig::parse(config_json.1, config_json.0)?;
        if config.classes.is_some() && !weights.judge {
            let found = format!("a judge, {}", config.classifier_architecture());
            let fix = "use it with `aweigh judge score`, or as a meter of `aweigh eval`";
            return Err(Error::input(config_json.0, "a language model", found, fix));
        }
        let config =
            DecoderConfig { classes: weights.judge.then_some(JUDGE_CLASSES), ..weights.untied(config) };
        let mut loader = Loader::new(memory, weights, &training, decay);
        let names = config.names;
        let embedding = loader.table(names.embedding, [config.vocab, config.width])?;
        let table = [config.max_positions, config.width];
        let positions = names.positions.map(|name| loader.table(name, table)).transpose()?;
        let blocks = (0..config.layers()).map(|i| loader.block(&config, i)).collect::<Result<Vec<_>>>()?;
        let norm = loader.norm(&config, names.final_norm)?;
        let head = if let Some(classes) = config.classes {
            loader.score(classes, config.width)?
        } else if config.tied {
            let (inputs, outputs) = (config.width, config.vocab);
            let weight = |piece: &Piece| {
                let Piece { rows, first, count } = piece.clone();
                Weight { matrix: rows, bias: None, first, outputs: count }
            };
            Linear { weights: embedding.pieces.iter().map(weight).collect(), lora: None, inputs, outputs }
        } else {
            loader.linear(&[(names.head.into(), config.vocab)], config.width, false, false, false)?
        };
        let Loader { layout, values: initial, adapters, .. } = loader;
        let lora = match training {
            Training::Lora(spec, _) => Some(LoraSpec { fan_in_fan_out: names.transposed, ..spec }),
            Training::Adapter(adapter) => {
                adapter.all_in(&layout)?;
                Some(adapter.spec.clone())
            }
            Training::None | Training::Full => None,
        };
        if let Some(spec) = lora.as_ref().filter(|_| adapters == 0) {
            let fix = "name layers of the model, such as q_proj or down_proj";
            let found = match &spec.target_modules {
                TargetModules::AllLinear => "all-linear, which matches none".into(),
                TargetModules::Names(names) => format!("{}, which matches none", names.join(", ")),
            };
            return Err(Error::input("target_modules", "at least one layer of the model", found, fix));
        }
        let values = arenas(memory, &layout, &initial)?;
        let table = |rope: &Rope| {
            Tensor::from_f32(memory, Purpose::Weights, "rope table", &rope.table(config.context()))
        };
        let ropes = config.ropes.iter().map(table).collect::<Result<_>>()?;
        Ok(Self { config, embedding, positions, blocks, norm, head, ropes, layout, values, lora })
    }

    /// The same model with `adapter` instead of its own, if it has one. Frozen weights are shared, on the GPU
    /// too.
    ///
    /// # Errors
    /// An adapter for another model, or the GPU's memory does not suffice.
    ///
    /// # Panics
    /// If all weights of this decoder are trained: it has none to share.
    pub fn with_adapter(&self, memory: &Memory, adapter: &Adapter) -> Result<Self> {
        assert!(self.layout.entries().is_empty() || self.lora.is_some(), "no frozen weights to share");
        let training = Training::Adapter(adapter);
        let config = &self.config;
        let mut loader = Loader::new(memory, &adapter.weights, &training, Decay::Matrices);
        let (mut blocks, mut head) = (self.blocks.clone(), self.head.clone());
        for (index, block) in blocks.iter_mut().enumerate() {
            loader.adapt(config, index, block)?;
        }
        head.lora = match config.tied {
            true => None,
            false => loader.lora(&[(config.names.head.into(), config.vocab)], config.width)?,
        };
        let Loader { layout, values, .. } = loader;
        adapter.all_in(&layout)?;
        Ok(Self {
            config: config.clone(),
            embedding: self.embedding.clone(),
            positions: self.positions.clone(),
            blocks,
            norm: self.norm.clone(),
            head,
            ropes: self.ropes.clone(),
            values: arenas(memory, &layout, &values)?,
            layout,
            lora: Some(adapter.spec.clone()),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The longest context that the decoder accepts, in tokens.
    pub fn context(&self) -> usize {
        self.config.context()
    }

    /// The trained tensors.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The trained tensors' values: the policy.
    pub fn values(&self) -> &Arenas {
        &self.values
    }

    /// The description of the LoRA adapter, if the decoder has one.
    pub fn lora(&self) -> Option<&LoraSpec> {
        self.lora.as_ref()
    }

    /// safetensors bytes of the trained tensors in f32: an adapter's under PEFT's names, or all weights under
    /// Hugging Face's.
    pub async fn trained_safetensors(&self, gpu: &Gpu) -> Result<Vec<u8>> {
        self.safetensors_of(&self.values.read(gpu, &self.layout).await?)
    }

    /// The same bytes from values that were already read, one list for each entry of the layout.
    pub(crate) fn safetensors_of(&self, values: &[Vec<f32>]) -> Result<Vec<u8>> {
        let stored = self.layout.stored(values);
        serialize(stored.iter().map(|(name, shape, v)| (name.as_str(), shape.as_slice(), v.as_slice())))
    }

    /// adapter_config.json of the adapter, naming `base` as its base model; `None` without an adapter.
    pub fn adapter_config(&self, base: &str) -> Option<String> {
        let modules = self.layout.entries().iter().filter_map(|e| module_of(e.name()));
        let modules: Vec<String> = modules.map(str::to_string).collect();
        let judge = self.config.classes.is_some();
        Some(self.lora.as_ref()?.to_peft_json(base, &leaves(&modules, &self.config.linear_layers()), judge))
    }

    /// A pass of the policy, without dropout.
    pub fn policy(&self) -> Pass<'_> {
        Pass { values: &self.values, adapter: true, dropout: None, decoding: false, sparse: false }
    }

    /// A pass of the model with its adapter off.
    pub fn base(&self) -> Pass<'_> {
        Pass { values: &self.values, adapter: false, dropout: None, decoding: false, sparse: false }
    }

    /// Whether some of the blocks' frozen matrices are not quantised but could be.
    pub fn is_quantizable(&self) -> bool {
        let layers =
            self.blocks.iter().flat_map(|b| [&b.attention.qkv, &b.attention.o, &b.mlp.up, &b.mlp.down]);
        let plain = |param: &Param| matches!(param, Param::Frozen(tensor) if !tensor.dtype().is_quantised());
        layers
            .filter(|layer| layer.inputs.is_multiple_of(DType::Nf4.block()))
            .any(|layer| layer.weights.iter().any(|weight| plain(&weight.matrix)))
    }

    fn sizes(&self) -> Sizes {
        let c = &self.config;
        Sizes {
            tokens: 0,
            width: c.width,
            heads: c.heads,
            q_width: c.heads * c.head_dim,
            kv_width: c.kv_heads * c.head_dim,
            inner: c.inner,
            up: c.up(),
            norm_stats: if c.norm == NormKind::Layer { 2 } else { 1 },
            normed_heads: if c.head_norms { c.heads + c.kv_heads } else { 0 },
            output_norms: c.output_norms,
            parallel: c.parallel,
            ranks: self.ranks(),
            dropout: self.lora.as_ref().is_some_and(|l| l.lora_dropout > 0.0),
        }
    }

    /// The ranks of the adapters on each layer's input: the largest sum of any block.
    pub(crate) fn ranks(&self) -> Ranks {
        let of = |layer: &Linear| layer.lora.as_ref().map_or(0, Lora::ranks);
        let largest = |layer: fn(&Block) -> &Linear| {
            self.blocks.iter().map(|block| of(layer(block))).max().unwrap_or(0)
        };
        Ranks {
            qkv: largest(|block| &block.attention.qkv),
            o: largest(|block| &block.attention.o),
            up: largest(|block| &block.mlp.up),
            down: largest(|block| &block.mlp.down),
            head: of(&self.head),
        }
    }

    /// Allocates a workspace.
    pub fn workspace(&self, memory: &Memory, capacity: Capacity) -> Result<Workspace> {
        self.workspace_with(memory, self.ranks(), capacity)
    }

    /// Allocates a workspace in which this model also runs with adapters of up to these `ranks`.
    pub(crate) fn workspace_with(
        &self,
        memory: &Memory,
        ranks: Ranks,
        capacity: Capacity,
    ) -> Result<Workspace> {
        Workspace::new(memory, &self.config, Sizes { ranks, ..self.sizes() }, capacity)
    }

    /// A pass over the batch in `ws`, whose layers have `rows` rows.
    fn layers<'a>(&'a self, pass: Pass<'a>, ws: &'a Workspace, rows: usize) -> Forward<'a> {
        let (count, mean_keys) = (ws.batch.tokens, ws.batch.mean_keys);
        let tables = Tables { tokens: &ws.tokens, ranges: &ws.ranges, ropes: &self.ropes, count, mean_keys };
        Forward { pass, tables, scratch: &ws.scratch, rows }
    }

    /// Records the blocks on the batch in `ws`. Returns the tensor of the last block's output.
    pub(crate) fn hidden<'a>(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        ws: &'a Workspace,
        caches: Option<&[KvCache]>,
    ) -> Result<&'a Tensor> {
        let forward = self.layers(pass, ws, ws.batch.tokens);
        let stream = |i: usize| &ws.stream[i % ws.stream.len()];
        let ids = Reading::plain(forward.rows, self.config.width, 4);
        let scaled = Reading { scale: self.config.embedding_scale, ..ids };
        self.embedding.forward(rec, pass.values, &ws.tokens, stream(0), scaled)?;
        if let Some(positions) = &self.positions {
            let added = Reading { first: 1, accumulate: true, ..ids };
            positions.forward(rec, pass.values, &ws.tokens, stream(0), added)?;
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let cache = caches.map(|c| &c[i]);
            block.forward(rec, forward, &ws.saved[i], cache, stream(i), stream(i + 1))?;
        }
        Ok(stream(self.blocks.len()))
    }

    /// Records the blocks and the last norm on the batch in `ws`. Returns the hidden states `(R, D)` that
    /// predict the response tokens.
    ///
    /// # Errors
    /// As [`Decoder::score`].
    pub fn states<'a>(&self, rec: &mut Recorder, pass: Pass, ws: &'a Workspace) -> Result<&'a Tensor> {
        let hidden = self.hidden(rec, pass, ws, None)?;
        self.gather_hidden(rec, pass, ws, hidden, &ws.predict, (ws.batch.rows, 4))?;
        Ok(&ws.normed)
    }

    /// Records the forward pass and the log-probs of the batch in `ws`: its `stats` per response token and
    /// `sums` per sequence. In a workspace for training it also stores what [`Decoder::backward`] needs.
    pub fn score(&self, rec: &mut Recorder, pass: Pass, ws: &Workspace) -> Result<()> {
        self.states(rec, pass, ws)?;
        for chunk in self.chunks(ws) {
            self.head_logits(rec, pass, ws, chunk.first, chunk.rows)?;
            log_prob::forward(rec, &ws.logits, &ws.predict, &ws.stats, chunk)?;
            if ws.capacity.training.is_some() && self.head_is_frozen() {
                log_prob::backward(rec, &ws.predict, &ws.stats, None, &ws.logits, chunk)?;
                self.head_backward(rec, pass, pass.values, ws, chunk)?;
            }
        }
        sequence_sum::forward(rec, &ws.rows, &ws.stats, &ws.sums, ws.batch.sequences, ws.batch.rows)
    }

    /// Records the backward pass of the batch of the last [`Decoder::score`], from the workspace's
    /// `coefficient`. Gradients of trained parameters are added to `gradients`.
    pub fn backward(&self, rec: &mut Recorder, pass: Pass, gradients: &Arenas, ws: &Workspace) -> Result<()> {
        self.backward_head(rec, pass, gradients, ws)?;
        let backward = Backward { forward: self.layers(pass, ws, ws.batch.tokens), gradients };
        for (i, block) in self.blocks.iter().enumerate().rev() {
            let input = i > 0 || self.embedding.is_trained();
            block.backward(rec, backward, &ws.saved[i], &ws.stream[i], &ws.dstream, input)?;
        }
        let ids = (&ws.id_lists, ws.batch.distinct_ids);
        self.embedding.backward(rec, gradients, ids, &ws.dstream, self.config.embedding_scale)?;
        if let Some(positions) = &self.positions {
            let lists = (&ws.position_lists, ws.batch.distinct_positions);
            positions.backward(rec, gradients, lists, &ws.dstream, 1.0)?;
        }
        Ok(())
    }

    /// Fails when `tokens` of a prompt and its answer exceed the context.
    pub fn check_context(&self, place: &str, tokens: usize) -> Result<()> {
        self.config.check_context(place, tokens)
    }

    /// The caches of keys and values for `slots` tokens, one per block, filled with zeros.
    pub(crate) fn caches(&self, memory: &Memory, slots: usize) -> Result<Vec<KvCache>> {
        let count = slots * self.config.kv_heads * self.config.head_dim;
        let make = |label| Tensor::new(memory, Purpose::KvCache, label, count, DType::F32);
        (0..self.blocks.len()).map(|_| Ok(KvCache { k: make("keys")?, v: make("values")? })).collect()
    }
}

/// Arenas with the initial values of the layout's tensors.
fn arenas(memory: &Memory, layout: &Layout, initial: &[Vec<f32>]) -> Result<Arenas> {
    let values = Arenas::new(memory, layout, Purpose::Trainable, "parameters")?;
    for (entry, data) in layout.entries().iter().zip(initial) {
        values.of(entry).write_f32(memory, data);
    }
    Ok(values)
}
