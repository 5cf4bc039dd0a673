//! A decoder from Hugging Face files: configuration, weights, adapters, and its passes over packed batches.

mod adapter;
mod bytes;
mod config;
mod decoder;
mod export;
mod families;
mod file_bytes;
pub mod gguf;
mod load;
mod lora;
mod safetensors_head;
mod target_modules;
mod weights;
mod workspace;

pub use adapter::{Adapter, Training};
pub use bytes::{AdapterBytes, ModelBytes};
pub use config::{BlockConfig, DecoderConfig, NormKind, Rope, RopeScaling};
pub use decoder::Decoder;
pub use export::{ExportDType, Merge, Merged, merged, serialize, write_gguf, write_gguf_adapter};
pub use file_bytes::{FileBytes, ReadBytes, Span};
pub use lora::{LoraSpec, Pattern};
pub use target_modules::TargetModules;
pub use weights::{ListedTensor, Stored, Weights};
pub(crate) use workspace::chunk_rows;
pub use workspace::{Batch, Capacity, Workspace};
