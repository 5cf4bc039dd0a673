//! A model of a known shape with random weights: speed does not depend on the values of the weights.

use crate::Result;
use crate::gpu::Gpu;
use crate::model::{Decoder, DecoderConfig, Training, Weights, serialize};
use crate::nn::Decay;
use crate::rng;

/// The shapes that [`Synthetic::named`] makes, and their config.json.
pub const SHAPES: [(&str, &str); 1] = [(
    "smollm2-135m",
    r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": true}"#,
)];

/// Number of random weights that are repeated through a model: too many for any cache.
const DISTINCT: usize = 1 << 20;

/// A made-up model.
pub struct Synthetic {
    name: &'static str,
    config: &'static str,
    weights: Vec<u8>,
}

impl Synthetic {
    /// The model of a shape in [`SHAPES`], in f32; `None` for another name.
    ///
    /// # Errors
    /// Only errors of writing safetensors.
    pub fn named(name: &str) -> Result<Option<Self>> {
        let Some(&(name, config)) = SHAPES.iter().find(|(known, _)| *known == name) else { return Ok(None) };
        let shapes = DecoderConfig::parse(config.as_bytes(), name)?.tensors();
        let noise: Vec<f32> = rng::values(7, DISTINCT).into_iter().map(|v| 0.04 * v as f32).collect();
        let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = shapes
            .into_iter()
            .map(|(tensor, shape)| {
                let count = shape.iter().product();
                let data = match shape.len() {
                    1 => vec![1.0; count],
                    _ => noise.iter().copied().cycle().skip(tensor.len() * 977).take(count).collect(),
                };
                (tensor, shape, data)
            })
            .collect();
        let weights = serialize(tensors.iter().map(|(n, s, d)| (n.as_str(), s.as_slice(), d.as_slice())))?;
        Ok(Some(Self { name, config, weights }))
    }

    /// The model's configuration.
    ///
    /// # Errors
    /// None: the configurations are those of this file.
    pub fn config(&self) -> Result<DecoderConfig> {
        DecoderConfig::parse(self.config.as_bytes(), self.name)
    }

    /// The model's decoder on `gpu`.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn decoder(&self, gpu: &Gpu, training: Training) -> Result<Decoder> {
        let weights = Weights::parse([(self.name, self.weights.as_slice())], self.name)?;
        Decoder::load(gpu, (self.name, self.config.as_bytes()), &weights, training, Decay::Matrices)
    }
}
