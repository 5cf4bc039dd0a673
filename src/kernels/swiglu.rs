//! The gated activation of Llama's MLP (Shazeer, 2002.05202): `act = silu(gate) * up`.

use super::{check, groups_of_64, params};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::shader::kernel;

params!(Params for ["swiglu", "swiglu_backward"]; vectors: u32);

pub(super) fn layouts() -> Vec<super::Layout> {
    vec![Params::layout()]
}

/// `act = silu(gate) * up`, all `(count)`.
pub fn forward(rec: &mut Recorder, gate: &Tensor, up: &Tensor, act: &Tensor, count: usize) -> Result<()> {
    check("swiglu", &[("gate", gate, count), ("up", up, count), ("act", act, count)])?;
    let vectors = count.div_ceil(4);
    let shader = kernel(rec.gpu(), "swiglu");
    let params = Params { vectors: vectors as u32 };
    rec.dispatch(&shader, &params, &[gate, up, act], groups_of_64(vectors), 8.0 * count as f64);
    Ok(())
}

/// `dgate =` and `dup =` from `dact`, all `(count)`. All five must be different buffers.
pub fn backward(
    rec: &mut Recorder,
    gate: &Tensor,
    up: &Tensor,
    dact: &Tensor,
    dgate: &Tensor,
    dup: &Tensor,
    count: usize,
) -> Result<()> {
    check("swiglu_backward", &[("gate", gate, count), ("up", up, count), ("dact", dact, count)])?;
    check("swiglu_backward", &[("dgate", dgate, count), ("dup", dup, count)])?;
    let vectors = count.div_ceil(4);
    let shader = kernel(rec.gpu(), "swiglu_backward");
    let params = Params { vectors: vectors as u32 };
    let bindings = [gate, up, dact, dgate, dup];
    rec.dispatch(&shader, &params, &bindings, groups_of_64(vectors), 12.0 * count as f64);
    Ok(())
}
