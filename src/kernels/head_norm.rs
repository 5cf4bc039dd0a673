//! RMSNorm of each head of the queries and keys (Qwen 3, 2505.09388; Gemma 3, 2503.19786).

use super::rms_norm::Constants;
use super::{Mat, by_rows, check, column_sum, params};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Recorder, Tensor};

params!(Params for ["head_norm", "head_norm_backward"];
    tokens: u32, heads: u32, kv_heads: u32, width: u32, at: u32, stride: u32, eps: f32, shift: f32);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// Sizes of a layer's queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Tokens, T.
    pub tokens: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key heads, G.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Shape {
    fn rows(&self) -> usize {
        self.tokens * (self.heads + self.kv_heads)
    }

    fn params(&self, x: Mat, Constants { eps, shift }: Constants) -> Params {
        Params {
            tokens: self.tokens as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            width: self.head_dim as u32,
            at: x.at as u32,
            stride: x.stride as u32,
            eps,
            shift,
        }
    }

    fn check(&self, weights: [&Tensor; 2], x: Mat, raw: &Tensor, rstd: &Tensor) -> Result<()> {
        let width = (self.heads + self.kv_heads) * self.head_dim;
        check(
            "head_norm",
            &[("q weight", weights[0], self.head_dim), ("k weight", weights[1], self.head_dim)],
        )?;
        check("head_norm", &[("x", x.data, x.extent(self.tokens, width))])?;
        check("head_norm", &[("raw", raw, self.rows() * self.head_dim), ("rstd", rstd, self.rows())])
    }
}

/// Normalises x `(T, H + G, head_dim)` in place: the queries with the first of `weights` `(head_dim)`, the
/// keys with the second. Keeps the old x in raw `(T, H + G, head_dim)` and writes rstd `(T, H + G)`.
pub fn forward(
    rec: &mut Recorder,
    weights: [&Tensor; 2],
    x: Mat,
    (raw, rstd): (&Tensor, &Tensor),
    shape: Shape,
    constants: Constants,
) -> Result<()> {
    shape.check(weights, x, raw, rstd)?;
    let (variant, groups) = by_rows(rec, "head_norm", shape.rows(), shape.head_dim);
    let shader = kernel(rec.gpu(), &variant);
    let bindings = [weights[0], weights[1], x.data, raw, rstd];
    let operations = 5.0 * (shape.rows() * shape.head_dim) as f64;
    rec.dispatch(&shader, &shape.params(x, constants), &bindings, groups, operations);
    Ok(())
}

/// Turns dx `(T, H + G, head_dim)`, in place, from the gradient of the norm's output into that of its input.
/// The gradients of trained weights are added to `dweights`.
pub fn backward(
    rec: &mut Recorder,
    weights: [&Tensor; 2],
    (raw, rstd): (&Tensor, &Tensor),
    dx: Mat,
    dweights: [Option<&Tensor>; 2],
    shape: Shape,
    constants: Constants,
) -> Result<()> {
    shape.check(weights, dx, raw, rstd)?;
    let Shape { tokens, heads, kv_heads, head_dim } = shape;
    let all = heads + kv_heads;
    for (dw, own) in dweights.into_iter().zip([0..heads, heads..all]) {
        let Some(dw) = dw else { continue };
        for head in own {
            let raw = Mat::new(raw, all * head_dim).from(head * head_dim);
            let rstd = Mat::new(rstd, all).from(head);
            column_sum::scaled(rec, dx.from(head * head_dim), raw, rstd, dw, (tokens, head_dim))?;
        }
    }
    let (variant, groups) = by_rows(rec, "head_norm_backward", shape.rows(), head_dim);
    let shader = kernel(rec.gpu(), &variant);
    let bindings = [weights[0], weights[1], raw, rstd, dx.data];
    let operations = 8.0 * (shape.rows() * head_dim) as f64;
    rec.dispatch(&shader, &shape.params(dx, constants), &bindings, groups, operations);
    Ok(())
}
