//! What a decoder is, whatever family it comes from.

use serde::Deserialize;

use crate::kernels::attention;
use crate::{Error, Result};

/// Contexts longer than this are refused; the rotary table has this many rows at most.
const MAX_CONTEXT: usize = 16_384;

/// The one decoder's configuration. A family is a mapping from Hugging Face's config.json to this.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Vocabulary size, V.
    pub vocab: usize,
    /// Width of the residual stream, D.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key and value heads, G.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Inner width of the MLP, F.
    pub inner: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// The longest context the model was made for.
    pub max_positions: usize,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
}

/// Llama 3's scaling of rotary frequencies: long wavelengths are divided by `factor`, short ones stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// Divides the low frequencies.
    pub factor: f64,
    /// Wavelengths over `original_max / low_freq_factor` are scaled whole.
    pub low_freq_factor: f64,
    /// Wavelengths under `original_max / high_freq_factor` stay.
    pub high_freq_factor: f64,
    /// The context length before scaling.
    pub original_max: f64,
}

/// The keys of config.json that a Llama has; transformers 5 moved the rotary ones into `rope_parameters`.
#[derive(Deserialize)]
pub(super) struct HfConfig {
    pub architectures: Option<Vec<String>>,
    pub model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    rope_parameters: Option<HfRope>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
}

#[derive(Deserialize, Clone)]
struct HfRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl HfConfig {
    pub(super) fn parse(json: &[u8], origin: &str) -> Result<Self> {
        serde_json::from_slice(json).map_err(|e| {
            let fix = "give the config.json that belongs to the model";
            Error::input(origin, "a Hugging Face model configuration", e, fix)
        })
    }

    /// The Llama family's mapping.
    pub(super) fn llama(self, origin: &str) -> Result<DecoderConfig> {
        let rope = self.rope_parameters.clone().or(self.rope_scaling.clone());
        let theta = self.rope_parameters.as_ref().and_then(|r| r.rope_theta).or(self.rope_theta);
        if let Some(act) = self.hidden_act.as_deref().filter(|&act| act != "silu") {
            let fix = "use a model with the silu activation";
            return Err(Error::input(origin, "hidden_act \"silu\"", format!("\"{act}\""), fix));
        }
        let config = DecoderConfig {
            vocab: self.vocab_size,
            width: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1)),
            inner: self.intermediate_size,
            eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: theta.unwrap_or(10_000.0),
            rope_scaling: rope.map_or(Ok(None), |r| r.scaling(origin))?,
            max_positions: self.max_position_embeddings.unwrap_or(2048),
            tied: self.tie_word_embeddings.unwrap_or(false),
            attention_bias: self.attention_bias.unwrap_or(false),
            mlp_bias: self.mlp_bias.unwrap_or(false),
        };
        config.check(origin)?;
        Ok(config)
    }
}

impl HfRope {
    fn scaling(self, origin: &str) -> Result<Option<RopeScaling>> {
        let kind = self.rope_type.or(self.old_type).unwrap_or_else(|| "default".into());
        let need = |value: Option<f64>, name: &str| {
            let fix = "give the config.json that belongs to the model";
            value.ok_or_else(|| Error::input(origin, format!("\"{name}\" in the rope settings"), "none", fix))
        };
        match kind.as_str() {
            "default" => Ok(None),
            "llama3" => Ok(Some(RopeScaling {
                factor: need(self.factor, "factor")?,
                low_freq_factor: need(self.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(self.high_freq_factor, "high_freq_factor")?,
                original_max: need(
                    self.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            })),
            other => {
                let fix = "use a model with one of these";
                Err(Error::input(origin, "rope type \"default\" or \"llama3\"", format!("\"{other}\""), fix))
            }
        }
    }
}

impl DecoderConfig {
    fn check(&self, origin: &str) -> Result<()> {
        let fix = "give the config.json that belongs to the model";
        let sizes = [
            ("vocab_size", self.vocab),
            ("hidden_size", self.width),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("intermediate_size", self.inner),
            ("max_position_embeddings", self.max_positions),
        ];
        for (name, value) in sizes {
            // No real model comes near; larger products are refused where tensors are made, by the binding limit.
            if value == 0 || value > 1 << 22 {
                return Err(Error::input(origin, format!("{name} from 1 to {}", 1 << 22), value, fix));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let found = format!("{} heads over {} kv heads", self.heads, self.kv_heads);
            return Err(Error::input(
                origin,
                "num_attention_heads a multiple of num_key_value_heads",
                found,
                fix,
            ));
        }
        if !self.inner.is_multiple_of(4) {
            let fix = "use a model with such a size";
            return Err(Error::input(origin, "intermediate_size a multiple of 4", self.inner, fix));
        }
        attention::supports(self.head_dim, origin)
    }

    /// How many weights the model has; an adapter's are not among them.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The longest context that is taken: the model's own, up to 16,384 tokens.
    pub fn context(&self) -> usize {
        self.max_positions.min(MAX_CONTEXT)
    }

    /// Rotary inverse frequencies `(head_dim / 2)`, in f64, with Llama 3's scaling where it applies.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|j| self.rope_theta.powf(-(j as f64) / half as f64));
        let Some(s) = self.rope_scaling else { return plain.collect() };
        plain
            .map(|frequency| {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                let smooth = (s.original_max / wavelength - s.low_freq_factor)
                    / (s.high_freq_factor - s.low_freq_factor);
                if wavelength < s.original_max / s.high_freq_factor {
                    frequency
                } else if wavelength > s.original_max / s.low_freq_factor {
                    frequency / s.factor
                } else {
                    (1.0 - smooth) * frequency / s.factor + smooth * frequency
                }
            })
            .collect()
    }

    /// Cosines and sines `(positions, head_dim / 2, 2)`. HF computes the angles in f32; so does this.
    pub fn rope_table(&self, positions: usize) -> Vec<f32> {
        let frequencies: Vec<f32> = self.inverse_frequencies().iter().map(|&f| f as f32).collect();
        let angle = |p: usize, f: f32| f64::from(p as f32 * f);
        (0..positions)
            .flat_map(|p| {
                frequencies.iter().flat_map(move |&f| [angle(p, f).cos() as f32, angle(p, f).sin() as f32])
            })
            .collect()
    }
}
