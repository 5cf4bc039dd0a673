//! `out = a + b`.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::shader::kernel;

params!(Params for ["add"]; vectors: u32);

pub(super) fn layouts() -> Vec<super::Layout> {
    vec![Params::layout()]
}

/// `out = a + b`, all `(count)`. The three must be different buffers.
pub fn forward(rec: &mut Recorder, a: &Tensor, b: &Tensor, out: &Tensor, count: usize) -> Result<()> {
    check("add", &[("a", a, count), ("b", b, count), ("out", out, count)])?;
    let vectors = count.div_ceil(4);
    let shader = kernel(rec.gpu(), "add");
    let params = Params { vectors: vectors as u32 };
    rec.dispatch(&shader, &params, &[a, b, out], groups_of_64(vectors), count as f64);
    Ok(())
}
