//! A decoder from Hugging Face files: configuration, weights, adapters, and its passes over packed batches.

mod adapter;
mod bytes;
mod config;
mod decoder;
mod export;
mod families;
pub mod gguf;
mod load;
mod weights;
mod workspace;

pub use adapter::{Adapter, LoraSpec};
pub use bytes::{AdapterBytes, ModelBytes};
pub use config::{BlockConfig, DecoderConfig, NormKind, Rope, RopeScaling};
pub use decoder::{Decoder, Training};
pub use export::{ExportDType, Merge, Merged, merged, serialize, write_gguf};
pub use weights::Stored;
pub use weights::{ListedTensor, Weights};
pub(crate) use workspace::chunk_rows;
pub use workspace::{Batch, Capacity, Workspace};
