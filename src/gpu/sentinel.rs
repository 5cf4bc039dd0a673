//! The number of submits that the device has run. A submit that fails or is dropped may go unreported (on
//! Metal, wgpu does not look at the state of command buffers: its issue 9545), and results would then be
//! those of the work before. So each submit of kernels ends with a dispatch that raises a number on the
//! device, and whoever reads results reads that number too.
//!
//! The dispatch shows that its submit ran. It does not show that every other dispatch in it did: on some
//! drivers it may overtake them.

use std::sync::Arc;

use super::{Gpu, Kernel, Memory, Purpose, Tensor, kernel};
use crate::Result;

/// A submit.
pub(super) struct Submitted {
    pub index: wgpu::SubmissionIndex,
    /// The number of submits of kernels so far, with this one.
    pub submits: u32,
}

/// The number of submits that ran, on the device.
pub(super) struct Sentinel(Tensor);

impl Sentinel {
    /// The number before the first submit: not 0, which a readback that did not run has.
    pub const FIRST: u32 = 1;

    /// No submit ran yet.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn new(memory: &Memory) -> Result<Self> {
        Ok(Self(Tensor::from_u32(memory, Purpose::Staging, "submits", &[Self::FIRST])?))
    }

    /// The number, for a copy of it.
    pub fn ran(&self) -> &Tensor {
        &self.0
    }

    /// Fails, and from now on always, unless `ran`, the number as it was read, is that of the submits before.
    ///
    /// # Errors
    /// [`Error::DeviceLost`](crate::Error::DeviceLost).
    pub fn check(gpu: &Gpu, ran: u32, submits: u32) -> Result<()> {
        if ran != submits {
            let which = match ran {
                0 => "a readback".into(),
                _ => format!("submit {} of {}", ran.wrapping_add(1) - Self::FIRST, submits - Self::FIRST),
            };
            gpu.lose(format!("{which} did not run, and no error was reported"));
        }
        gpu.check("reading results back")
    }

    /// The kernel that raises the number, and its bind group. Its parameter block is the submit's number.
    pub fn dispatch(&self, gpu: &Gpu) -> (Arc<Kernel>, wgpu::BindGroup) {
        let kernel = kernel(gpu, "sentinel");
        let group = gpu.bind_groups().of(gpu, &kernel, (std::slice::from_ref(&self.0), &[None]), 4);
        (kernel, group)
    }
}
