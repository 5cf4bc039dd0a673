//! Errors for files that a model's or an adapter's directory lacks, with what to do instead.

use std::path::Path;

use super::disk::{exists, is_dir, is_file};
use crate::error::{Error, Result};

pub(super) fn need_folder(directory: &Path, place: &str, expected: &str) -> Result<()> {
    if is_dir(directory) {
        return Ok(());
    }
    let found = if exists(directory) { "a file" } else { "nothing" };
    let found = format!("{found} at {}", directory.display());
    let fix = match directory.components().count() {
        1 if expected.contains("model") && !exists(directory) => {
            "check the path; a model on the Hugging Face Hub is named owner/name, as in \
             HuggingFaceTB/SmolLM2-135M-Instruct"
        }
        _ => "check the path; relative paths start at the current folder",
    };
    Err(Error::input(place, expected, found, fix))
}

pub(super) fn need_file(directory: &Path, place: &str, file: &str) -> Result<std::path::PathBuf> {
    let path = directory.join(file);
    if is_file(&path) {
        return Ok(path);
    }
    let place = format!("{place} {}", directory.display());
    let has = |other: &str| exists(&directory.join(other));
    let instead = [
        (
            file.starts_with("adapter_") && has("adapters.safetensors"),
            "adapters.safetensors, MLX's format",
            "convert the adapter to PEFT's format",
        ),
        (
            file.starts_with("adapter_") && has("adapter_model.bin"),
            "adapter_model.bin, a pickle",
            "save it again as safetensors: a pickle can hold programs, and is not opened",
        ),
        (file.starts_with("adapter_") && has("adapter"), "a run's folder", "give the adapter/ folder in it"),
        (
            file == "config.json" && has("adapter_config.json"),
            "an adapter",
            "give it as an adapter, with its base model",
        ),
        (file == "config.json" && has("model"), "a run's folder", "give the model/ folder in it"),
        (
            file == "model.safetensors" && (has("pytorch_model.bin") || has("pytorch_model.bin.index.json")),
            "pytorch_model.bin, a pickle",
            "save the model again as safetensors: a pickle can hold programs, and is not opened",
        ),
    ];
    if let Some((_, found, fix)) = instead.into_iter().find(|(there, ..)| *there) {
        return Err(Error::input(place, format!("{file} in it"), found, fix));
    }
    let fix = if file.starts_with("adapter_") {
        "give the folder with both files of a LoRA adapter, such as a run's adapter/"
    } else {
        "download the whole model, in Hugging Face's layout with safetensors weights"
    };
    Err(Error::input(place, format!("{file} in it"), "no such file", fix))
}
