//! References of the kernels: f64 versions as plain loops. Every shader is compared with its reference.
//!
//! One file per kernel, with the kernel's name, contains its `forward` and `backward` (or another fitting
//! verb). The code is simple, not fast. It shares no code with the shaders, so that a bug there cannot be
//! repeated here: the module imports only the standard library, itself, [`crate::rng`] and the formulas of
//! [`crate::loss`]. [`decoder`] combines the kernels into a whole small Llama with its gradient, [`linear`]
//! is one projection with bias and LoRA, and [`compare`] has the comparison that tests and the self-test use.
//!
//! Conventions, for all files:
//! - everything is row-major; shapes are written `(rows, columns)`;
//! - the name of a gradient is `d` and the tensor's name. Backward functions return new gradients. Where a
//!   shader accumulates, the function takes the earlier value and returns the sum;
//! - indices, positions and tokens are `u32`, as on the device;
//! - the caller is responsible for correct shapes: these functions are for tests and for inputs that the
//!   program made itself, and a slice of the wrong length may panic.
//!
//! Every backward is checked against central differences in its own file.

pub mod activation;
pub mod adamw;
pub mod adamw_8bit;
pub mod add;
pub mod attention;
pub mod blocks;
pub mod column_sum;
pub mod compare;
pub mod decoder;
pub mod dropout;
pub mod ema;
pub mod fma_peak;
pub mod gather;
pub mod head_norm;
pub mod kv_write;
pub mod layer_norm;
pub mod linear;
pub mod log_prob;
pub mod matmul;
pub mod preference;
pub mod retain;
pub mod rms_norm;
pub mod rope;
pub mod row_scale;
pub mod sample;
pub mod sequence_sum;
pub mod soft_cap;
pub mod sum_squares;
pub mod tolerance;

#[cfg(test)]
pub(crate) mod finite;
