//! The device: adapter choice, tensors, command recording and the memory ledger.
//!
//! Only this module names `wgpu`.

mod adapter;
mod blocks;
mod context;
mod fault;
mod kernel;
mod memory;
mod options;
mod pace;
mod pipelines;
mod poller;
mod processor;
mod profile;
mod recorder;
mod sentinel;
mod tensor;
mod texels;
mod tuning;
mod witness;

pub use adapter::{
    AdapterSummary, Backend, CooperativeMatrix, Scalar, Tier, chosen_adapter, list_adapters,
    subgroups_are_asked_for, why_first,
};
pub use blocks::{Blocks, Quantize};
pub use context::Gpu;
pub use fault::Faults;
pub(crate) use kernel::Compiled;
pub use kernel::Kernel;
pub use memory::{DEFAULT_BINDING, Ledger, Memory, Purpose, Usage, bytes};
pub use options::{Options, Precision, SUBMIT_SECONDS};
pub use pipelines::kernel;
pub use processor::instruction_sets;
pub use profile::KernelTime;
pub use recorder::{Binding, Recorder};
pub use tensor::{DType, Tensor};
pub use texels::{Copied, Slot};
pub use tuning::{Choice, Tuning};
pub use witness::{Seen, Witness};
