//! A model as bytes, the form that the library takes. [`crate::files`] reads directories into this form.

use super::{Adapter, Decoder, DecoderConfig, FileBytes, Training, Weights};
use crate::data::{ChatTokenizer, TokenizerFiles};
use crate::error::{Error, Result, setting_to};
use crate::gpu::{Gpu, Memory, Quantize};
use crate::nn::Decay;

/// The files of a model in Hugging Face's layout.
#[derive(Clone)]
pub struct ModelBytes<'a> {
    /// The model's name or folder, for messages.
    pub name: &'a str,
    /// `config.json`
    pub config: &'a [u8],
    /// The safetensors files, or the GGUF file, each with its name.
    pub weights: Vec<(&'a str, FileBytes<'a>)>,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
    /// The type that the blocks' frozen matrices are quantised to; `None` keeps their own type.
    pub quantize: Option<Quantize>,
    /// Whether the blocks' frozen matrices stay in host memory.
    pub offload: bool,
    /// Whether the decoder gets a judge's head: [`Weights::judging`].
    pub judge: bool,
}

/// The files of a LoRA adapter in PEFT's layout.
#[derive(Debug, Clone, Copy)]
pub struct AdapterBytes<'a> {
    /// The adapter's folder, for messages.
    pub name: &'a str,
    /// `adapter_config.json`
    pub config: &'a [u8],
    /// `adapter_model.safetensors`
    pub weights: &'a [u8],
}

impl<'a> ModelBytes<'a> {
    /// The model's tensors.
    ///
    /// # Errors
    /// As [`Weights::parse`]; also for safetensors files that another program has quantised.
    pub fn weights(&self) -> Result<Weights<'a>> {
        let weights = Weights::parse(self.weights.iter().copied(), self.name)?;
        if let Some(kind) = weights.quantised_elsewhere() {
            let config: serde_json::Value = serde_json::from_slice(self.config).unwrap_or_default();
            let method = config["quantization_config"]["quant_method"].as_str();
            let found = match method {
                Some(method) => {
                    format!("weights quantised by {method} ({kind}; see quantization_config)")
                }
                None => format!("quantised weights ({kind})"),
            };
            let fix = format!(
                "give the model before quantisation (F32, BF16 or F16), with {} if memory is short, or a \
                 GGUF file of it",
                setting_to("quantize", "nf4")
            );
            return Err(Error::input(self.config_place(), "weights in F32, BF16 or F16", found, fix));
        }
        Ok(weights.quantized(self.quantize).offloaded(self.offload).judging(self.judge))
    }

    /// The model's tokenizer and chat template.
    ///
    /// # Errors
    /// As [`ChatTokenizer::from_bytes`].
    pub fn tokenizer(&self) -> Result<ChatTokenizer> {
        ChatTokenizer::from_bytes(&self.tokenizer)
    }

    /// The name of config.json in messages.
    pub(super) fn config_place(&self) -> String {
        self.tokenizer.place("config.json")
    }

    /// The model's configuration.
    ///
    /// # Errors
    /// As [`DecoderConfig::parse`].
    pub fn decoder_config(&self) -> Result<DecoderConfig> {
        DecoderConfig::parse(self.config, &self.config_place())
    }

    /// Whether config.json ties the head to the embedding although the weights have a head with other values.
    ///
    /// # Errors
    /// As [`ModelBytes::decoder_config`] and [`ModelBytes::weights`].
    pub fn is_untied(&self) -> Result<bool> {
        let config = self.decoder_config()?;
        Ok(config.tied && !self.weights()?.untied(config).tied)
    }

    /// The model's decoder in `memory`.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn decoder(&self, memory: &Memory, training: Training) -> Result<Decoder> {
        let config = self.config_place();
        Decoder::load(memory, (&config, self.config), &self.weights()?, training, Decay::Matrices)
    }

    /// The model's decoder with `adapter`, if one is given, for scoring and sampling.
    ///
    /// # Errors
    /// As [`Decoder::load`] and [`Adapter::parse`].
    pub fn decoder_with(&self, gpu: &Gpu, adapter: Option<AdapterBytes>) -> Result<Decoder> {
        match adapter {
            None => self.decoder(gpu, Training::None),
            Some(adapter) => self.decoder(gpu, Training::Adapter(&adapter.parse()?)),
        }
    }
}

impl<'a> AdapterBytes<'a> {
    /// The adapter.
    ///
    /// # Errors
    /// As [`Adapter::parse`].
    pub fn parse(&self) -> Result<Adapter<'a>> {
        let config = format!("{}/adapter_config.json", self.name);
        Adapter::parse((&config, self.config), (self.name, self.weights))
    }
}
