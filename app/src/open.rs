//! Opens what the app needs: model files, the GPU, and the model on the GPU.

use std::path::Path;

use crate::args::{GpuArgs, WeightArgs};
use crate::messages::{Messages, Progress};
use crate::text::count;
use aweigh::data::ChatTokenizer;
use aweigh::error::Result;
use aweigh::files::{AdapterFiles, Model};
use aweigh::gpu::{Backend, DEFAULT_BINDING, Gpu, chosen_adapter};
use aweigh::model::{Decoder, ModelBytes};
use aweigh::run::OpenGpu;

/// Opens the model `name`. If `whole` is false, only for its tensors' shapes: of a model on the Hub that is
/// not in the cache, only the headers of safetensors weights are downloaded. Warns of tensors that no layer
/// reads.
///
/// # Errors
/// As [`Model::open`], and for a model that is not supported.
pub fn model(name: &str, whole: bool, messages: &dyn Messages) -> Result<Model> {
    model_with(name, whole, &mut messages.downloads(), messages)
}

/// As [`model`]; `progress` is told of downloads instead, as [`Messages::downloads`].
///
/// # Errors
/// As [`model`].
pub fn model_with(
    name: &str,
    whole: bool,
    progress: &mut Progress<'_>,
    messages: &dyn Messages,
) -> Result<Model> {
    let model = fetch(name, whole, progress)?;
    let bytes = model.bytes();
    let weights = bytes.weights()?;
    let unread = weights.unread(&bytes.decoder_config()?);
    if let Some(first) = unread.first() {
        messages.warn(&format_args!(
            "{}: ignored {} tensors that no layer of this configuration reads; the first is {first}",
            bytes.name,
            unread.len()
        ));
    }
    Ok(model)
}

/// As [`model_with`], without warnings.
///
/// # Errors
/// As [`Model::open`].
#[cfg(feature = "hub")]
pub fn fetch(name: &str, whole: bool, progress: &mut Progress<'_>) -> Result<Model> {
    use aweigh::files::hub::Download;
    let mut progress = |Download { file, done, total }: Download| progress(file, done, total);
    if whole { Model::fetch(name, &mut progress) } else { Model::describe(name, &mut progress) }
}

/// As [`model_with`], without warnings.
///
/// # Errors
/// As [`Model::open`].
#[cfg(not(feature = "hub"))]
pub fn fetch(name: &str, _: bool, _: &mut Progress<'_>) -> Result<Model> {
    Model::open(name)
}

/// Opens the adapter in the directory `path`, for `model`. Warns of unknown keys and of another base model.
///
/// # Errors
/// As [`AdapterFiles::open`], and for an adapter that is not supported.
pub fn adapter(path: &Path, flag: &str, model: &Model, messages: &dyn Messages) -> Result<AdapterFiles> {
    let files = AdapterFiles::open(path, flag)?;
    files.remarks(model)?.into_iter().for_each(|remark| messages.warn(&remark));
    Ok(files)
}

/// Opens the model's tokenizer. Warns of oddities in the tokenizer or the chat template.
///
/// # Errors
/// As [`ChatTokenizer::from_bytes`].
pub fn tokenizer(model: &Model, messages: &dyn Messages) -> Result<ChatTokenizer> {
    let tokenizer = model.bytes().tokenizer()?;
    tokenizer.remarks().iter().for_each(|remark| messages.warn(&remark));
    Ok(tokenizer)
}

/// Opens the GPU that the flags name.
///
/// # Errors
/// [`aweigh::error::Error::NoAdapter`].
pub async fn gpu(args: &GpuArgs) -> Result<OpenGpu> {
    OpenGpu::opened(&args.options(), !args.no_tuning).await
}

/// The largest binding, in bytes, of the adapter that the settings name; WebGPU's default limit if there is
/// none. It limits how many answers are decoded together, and the size of batches.
///
/// # Errors
/// [`aweigh::Error::NoAdapter`] if the settings name one that is not there.
pub async fn binding(adapter: Option<&str>, backend: Option<Backend>) -> Result<u64> {
    match chosen_adapter(adapter, backend).await {
        Ok(adapter) => Ok(adapter.max_binding.min(adapter.max_buffer)),
        Err(_) if adapter.is_none() && backend.is_none() => Ok(DEFAULT_BINDING),
        Err(error) => Err(error),
    }
}

/// The files of `model`, with weights stored as the flags say.
pub fn stored(model: &Model, weights: WeightArgs) -> ModelBytes<'_> {
    ModelBytes { quantize: weights.quantize, offload: weights.offload, ..model.bytes() }
}

/// The GPU, its API and why it was taken: `llvmpipe, Vulkan (software: no GPU was found)`.
pub fn gpu_text(gpu: &Gpu) -> String {
    let (summary, why) = (gpu.summary(), gpu.why().map(|why| format!(" ({why})")).unwrap_or_default());
    format!("{}, {}{why}", summary.name, summary.backend)
}

/// Notes the GPU and the model: `GPU llvmpipe, Vulkan (software: no GPU was found); model tiny with adapter
/// run/adapter, 1,234 parameters`.
pub fn announce(gpu: &Gpu, model: &str, adapter: Option<&str>, decoder: &Decoder, messages: &dyn Messages) {
    let adapter = adapter.map(|name| format!(" with adapter {name}")).unwrap_or_default();
    let parameters = count(decoder.config().parameters());
    messages.note(&format_args!("GPU {}; model {model}{adapter}, {parameters} parameters", gpu_text(gpu)));
}
