//! The number of submits that the device has run. A driver may drop a submit that takes too long without
//! telling anybody (wgpu issue 9545); its results would then be those of the work before. So each submit ends
//! with a dispatch that raises a number on the device, and whoever reads results reads that number too.

use std::sync::Arc;

use super::{DType, Gpu, Kernel, Memory, Purpose, Tensor, kernel};
use crate::Result;

/// A submit.
pub(super) struct Submitted {
    pub index: wgpu::SubmissionIndex,
    /// The number of submits so far that a sentinel's dispatch ends, with this one.
    pub submits: u32,
}

/// The number of submits that ran, on the device.
pub(super) struct Sentinel(Tensor);

impl Sentinel {
    /// No submit ran yet.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn new(memory: &Memory) -> Result<Self> {
        Ok(Self(Tensor::new(memory, Purpose::Staging, "submits", 1, DType::U32)?))
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
            let first = ran.wrapping_add(1);
            gpu.lose(format!("its driver did not run submit {first} of {submits}, and reported nothing"));
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
