//! The configuration of a decoder, the same for all model families.

use crate::kernels::activation::Function;
use crate::kernels::attention;
use crate::{Error, Result};

/// Contexts longer than this are refused; the rotary table has at most this many rows.
const MAX_CONTEXT: usize = 16_384;

/// The configuration of a decoder. There is one decoder for all model families: a family is a mapping from
/// Hugging Face's config.json to this.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Hugging Face's name of the architecture, as in `LlamaForCausalLM`.
    pub architecture: &'static str,
    /// Names of the tensors in the family's files.
    pub(super) names: &'static Names,
    /// Vocabulary size, V.
    pub vocab: usize,
    /// The number of classes if the head is a classifier's: two for a judge. `None` for a language model.
    pub classes: Option<usize>,
    /// Width of the residual stream, D.
    pub width: usize,
    /// The blocks, in order, with the settings in which they differ.
    pub blocks: Vec<BlockConfig>,
    /// Query heads, H.
    pub heads: usize,
    /// Key and value heads, G.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Inner width of the MLP, F.
    pub inner: usize,
    /// The kind of the norms.
    pub norm: NormKind,
    /// Epsilon of the norms.
    pub eps: f32,
    /// The kinds of rotary positions that blocks use.
    pub ropes: Vec<Rope>,
    /// The longest context the model was made for.
    pub max_positions: usize,
    /// Whether positions are a learned table that is added to the embedding.
    pub learned_positions: bool,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    pub o_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Whether each head's queries and keys are normed.
    pub head_norms: bool,
    /// Whether attention's and the MLP's outputs are normed.
    pub output_norms: bool,
    /// Whether attention and MLP run in parallel on the same input.
    pub parallel: bool,
    /// Whether a head's query, key and value lie side by side in the projection.
    pub interleaved: bool,
    /// The MLP's activation.
    pub activation: Function,
    /// Whether the MLP is gated.
    pub gated: bool,
    /// Factor on attention's scores.
    pub attention_scale: f32,
    /// The soft cap on attention's scores.
    pub attention_cap: Option<f32>,
    /// The soft cap on logits.
    pub logit_cap: Option<f32>,
    /// Factor on the embedding.
    pub embedding_scale: f32,
}

/// The settings in which blocks may differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockConfig {
    /// Length of the sliding window, in keys: a query sees only the last ones; `None` means all keys.
    pub window: Option<usize>,
    /// The index of the block's rotary positions in [`DecoderConfig::ropes`]; `None` means no rotary
    /// positions.
    pub rope: Option<usize>,
}

/// The number of classes of a judge's head: answers that are fine, and answers that are flagged.
pub const JUDGE_CLASSES: usize = 2;

/// The kind of the norms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// RMSNorm with the weights w + shift.
    Rms {
        /// 1 in Gemma, otherwise 0.
        shift: f32,
    },
    /// LayerNorm, with a bias.
    Layer,
}

/// A kind of rotary positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling of the frequencies for longer contexts.
    pub scaling: Option<RopeScaling>,
    /// The number of elements of a head that are rotated.
    pub dim: usize,
}

/// Scaling of rotary frequencies for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All frequencies are divided by this factor.
    Linear(f64),
    /// Llama 3's: frequencies with long wavelengths are divided by `factor`, those with short ones do not
    /// change.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Frequencies with wavelengths over `original_max / low_freq_factor` are divided by the whole
        /// factor.
        low_freq_factor: f64,
        /// Frequencies with wavelengths under `original_max / high_freq_factor` do not change.
        high_freq_factor: f64,
        /// The context length before scaling.
        original_max: f64,
    },
}

impl DecoderConfig {
    /// Columns of the logits: the vocabulary, or a judge's classes.
    pub fn logits(&self) -> usize {
        self.classes.unwrap_or(self.vocab)
    }

    pub(super) fn check(&self, origin: &str) -> Result<()> {
        let fix = "give the config.json that belongs to the model";
        let sizes = [
            ("vocab_size", self.vocab),
            ("hidden_size", self.width),
            ("num_hidden_layers", self.blocks.len()),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("intermediate_size", self.inner),
            ("max_position_embeddings", self.max_positions),
        ];
        for (name, value) in sizes {
            // No real model comes near this limit. Products of sizes that are too large are refused when
            // tensors are made, by the binding limit.
            if value == 0 || value > 1 << 22 {
                return Err(Error::input(origin, format!("{name} from 1 to {}", 1 << 22), value, fix));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let found = format!("{} heads over {} kv heads", self.heads, self.kv_heads);
            let expected = "num_attention_heads a multiple of num_key_value_heads";
            return Err(Error::input(origin, expected, found, fix));
        }
        if !self.inner.is_multiple_of(4) {
            let fix = "use a model whose intermediate_size is a multiple of 4";
            return Err(Error::input(origin, "intermediate_size a multiple of 4", self.inner, fix));
        }
        if self.blocks.iter().any(|block| block.window == Some(0)) {
            return Err(Error::input(origin, "sliding_window from 1, or null", 0, fix));
        }
        let caps = [self.attention_cap, self.logit_cap].into_iter().flatten();
        if let Some(cap) = caps.into_iter().find(|cap| !cap.is_finite() || *cap <= 0.0) {
            return Err(Error::input(origin, "soft caps over 0, or null", cap, fix));
        }
        for rope in &self.ropes {
            if rope.dim == 0 || rope.dim > self.head_dim || !rope.dim.is_multiple_of(2) {
                let expected = format!("an even number of rotary elements up to head_dim, {}", self.head_dim);
                return Err(Error::input(origin, expected, rope.dim, fix));
            }
        }
        attention::supports(self.head_dim, self.attention_cap.is_some(), origin)
    }

    /// The number of blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// The number of the model's weights, without those of an adapter.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The longest context that is accepted: the model's own, up to 16,384 tokens.
    pub fn context(&self) -> usize {
        self.max_positions.min(MAX_CONTEXT)
    }

    /// Fails when `tokens` of a prompt and its answer exceed the context.
    pub fn check_context(&self, place: &str, tokens: usize) -> Result<()> {
        if tokens <= self.context() {
            return Ok(());
        }
        let expected = format!("at most {} tokens, the model's context", self.context());
        let fix = "shorten it, or lower max_prompt_length, max_completion_length or max_new_tokens";
        Err(Error::input(place, expected, format!("{tokens} tokens"), fix))
    }

    /// Fails for a token id that is not in the vocabulary: a tokenizer may have tokens that the embedding has
    /// no row for.
    pub fn check_ids(&self, place: &str, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab) else { return Ok(()) };
        let expected = format!("token ids below {}, the model's vocab_size", self.vocab);
        let fix = "remove that token from the text or the chat template, or use the tokenizer that belongs \
                   to the model";
        Err(Error::input(place, expected, format!("token {id}"), fix))
    }

    /// Width of the MLP's first projection: F, or 2 F if the MLP is gated.
    pub fn up(&self) -> usize {
        if self.gated { 2 * self.inner } else { self.inner }
    }
}

impl Rope {
    /// Inverse frequencies `(dim / 2)`, in f64, scaled if `scaling` is set.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let half = self.dim / 2;
        let plain = (0..half).map(|j| self.theta.powf(-(j as f64) / half as f64));
        plain.map(|frequency| self.scaling.map_or(frequency, |scaling| scaling.stretch(frequency))).collect()
    }

    /// Cosines and sines `(positions, dim / 2, 2)`. Hugging Face computes the angles in f32, and so does this
    /// function.
    pub fn table(&self, positions: usize) -> Vec<f32> {
        let frequencies: Vec<f32> = self.inverse_frequencies().iter().map(|&f| f as f32).collect();
        let angle = |p: usize, f: f32| f64::from(p as f32 * f);
        (0..positions)
            .flat_map(|p| {
                frequencies.iter().flat_map(move |&f| [angle(p, f).cos() as f32, angle(p, f).sin() as f32])
            })
            .collect()
    }
}

impl RopeScaling {
    fn stretch(self, frequency: f64) -> f64 {
        match self {
            Self::Linear(factor) => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                let smooth =
                    (original_max / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                if wavelength < original_max / high_freq_factor {
                    frequency
                } else if wavelength > original_max / low_freq_factor {
                    frequency / factor
                } else {
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// How a family names its tensors. Names of tensors in a block are relative to the block.
#[derive(Debug, PartialEq)]
pub(super) struct Names {
    pub embedding: &'static str,
    pub positions: Option<&'static str>,
    pub final_norm: &'static str,
    pub head: &'static str,
    /// The prefix of a block's number.
    pub blocks: &'static str,
    pub attention_norm: &'static str,
    pub after_attention: Option<&'static str>,
    pub mlp_norm: &'static str,
    pub after_mlp: Option<&'static str>,
    /// Queries, keys and values: three layers, or one for all of them.
    pub qkv: &'static [&'static str],
    pub o: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// Gate and up: two layers, or one.
    pub up: &'static [&'static str],
    pub down: &'static str,
    /// Whether files store the blocks' matrices as (inputs, outputs).
    pub transposed: bool,
}

impl Names {
    /// The full name of a block's module.
    pub fn of(&self, index: usize, module: &str) -> String {
        format!("{}.{index}.{module}", self.blocks)
    }

    /// Llama's names, which most families use.
    pub const LLAMA: Self = Self {
        embedding: "model.embed_tokens.weight",
        positions: None,
        final_norm: "model.norm",
        head: "lm_head",
        blocks: "model.layers",
        attention_norm: "input_layernorm",
        after_attention: None,
        mlp_norm: "post_attention_layernorm",
        after_mlp: None,
        qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        o: "self_attn.o_proj",
        q_norm: "self_attn.q_norm",
        k_norm: "self_attn.k_norm",
        up: &["mlp.gate_proj", "mlp.up_proj"],
        down: "mlp.down_proj",
        transposed: false,
    };
}
