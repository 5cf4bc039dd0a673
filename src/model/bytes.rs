//! A model as bytes: what the library takes. [`crate::files`] brings directories into this form.

use super::{Adapter, Decoder, DecoderConfig, Training, Weights};
use crate::Result;
use crate::data::{ChatTokenizer, TokenizerFiles};
use crate::gpu::{Gpu, Memory, Quantize};
use crate::nn::Decay;

/// The files of a model in Hugging Face's layout.
#[derive(Clone)]
pub struct ModelBytes<'a> {
    /// Its name or folder, for messages.
    pub name: &'a str,
    /// `config.json`
    pub config: &'a [u8],
    /// The safetensors files, each with its name.
    pub weights: Vec<(&'a str, &'a [u8])>,
    /// The tokenizer's files.
    pub tokenizer: TokenizerFiles,
    /// What blocks' frozen matrices are kept in, where it is not their own type.
    pub quantize: Option<Quantize>,
    /// Whether blocks' frozen matrices stay in host memory.
    pub offload: bool,
    /// Whether its decoder gets a judge's head: [`Weights::judging`].
    pub judge: bool,
}

/// The files of a LoRA adapter in PEFT's layout.
#[derive(Debug, Clone, Copy)]
pub struct AdapterBytes<'a> {
    /// Its folder, for messages.
    pub name: &'a str,
    /// `adapter_config.json`
    pub config: &'a [u8],
    /// `adapter_model.safetensors`
    pub weights: &'a [u8],
}

impl<'a> ModelBytes<'a> {
    /// Its tensors.
    ///
    /// # Errors
    /// As [`Weights::parse`].
    pub fn weights(&self) -> Result<Weights<'a>> {
        Ok(Weights::parse(self.weights.iter().copied(), self.name)?
            .quantized(self.quantize)
            .offloaded(self.offload)
            .judging(self.judge))
    }

    /// Its tokenizer and chat template.
    ///
    /// # Errors
    /// As [`ChatTokenizer::from_bytes`].
    pub fn tokenizer(&self) -> Result<ChatTokenizer> {
        ChatTokenizer::from_bytes(&self.tokenizer)
    }

    /// Its configuration.
    ///
    /// # Errors
    /// As [`DecoderConfig::parse`].
    pub fn decoder_config(&self) -> Result<DecoderConfig> {
        DecoderConfig::parse(self.config, &format!("{}/config.json", self.name))
    }

    /// Its decoder in `memory`.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn decoder(&self, memory: &Memory, training: Training) -> Result<Decoder> {
        let config = format!("{}/config.json", self.name);
        Decoder::load(memory, (&config, self.config), &self.weights()?, training, Decay::Matrices)
    }

    /// Its decoder with `adapter`, where one is given, for scoring and sampling.
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
