//! How a device is opened.

use std::sync::Arc;

use super::adapter::{Backend, Tier};
use super::fault::Faults;
use super::witness::Witness;
use crate::shader::Lanes;

/// The precision of the inputs of matrix products. Sums are f32 in either case.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "lower"))]
pub enum Precision {
    /// Inputs are multiplied as f32
    #[default]
    F32,
    /// Inputs are rounded to f16 if the GPU supports it: weights, activations and gradients keep 11 bits of
    /// precision, and values beyond f16's range (activations over 65,504, gradients over 255) become infinite
    F16,
}

/// Options for opening a device.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// An index from [`list_adapters`](super::list_adapters) or a part of an adapter's name; `None` takes the
    /// first adapter of the fastest kind.
    pub adapter: Option<String>,
    /// The only graphics API to use. `None` uses those that wgpu's variable `WGPU_BACKEND` lists, or all.
    pub backend: Option<Backend>,
    /// Ask for WebGPU's default limits and no features (except timestamps for `profile`), even if the adapter
    /// offers more.
    pub default_limits: bool,
    /// Target duration of a submit, in seconds; `None` is [`SUBMIT_SECONDS`].
    pub submit_seconds: Option<f64>,
    /// Overrides the tier that the adapter's kind suggests.
    pub tier: Option<Tier>,
    /// Whether products and attention of [`Tier::Software`] read their operands through textures; `None`
    /// measures on first use from which size on that is faster. The results are the same.
    pub texels: Option<bool>,
    /// Whether matrix products may round their inputs to f16. Only [`Tier::Portable`] has kernels that do.
    /// Without f16 on the adapter, or with `default_limits`, nothing is rounded.
    pub precision: Precision,
    /// Measure the time of every kernel, if the adapter has timestamps: see [`super::Gpu::kernel_times`].
    pub profile: bool,
    /// Keep submits short, and leave the GPU to other programs between them.
    pub background: bool,
    /// Faults to inject, for tests.
    pub faults: Faults,
    /// An observer of the device's dispatches.
    pub witness: Option<Arc<dyn Witness>>,
    /// The order of invocations, for tests. The results are the same.
    pub lanes: Lanes,
}

/// Target duration of a submit, in seconds. Windows resets a GPU after 2 s, and the display is drawn between
/// submits.
pub const SUBMIT_SECONDS: f64 = 0.2;

/// The same with [`Options::background`]: about one frame of a display.
pub(super) const BACKGROUND_SECONDS: f64 = 0.015;
