//! Matrix products in the three layouts that a linear layer's forward and backward need.

use super::{check, params};
use crate::Result;
use crate::gpu::{DType, Recorder, Tensor, Tier};
use crate::shader::kernel;

params!(Params for ["matmul", "matmul_tiled"]; m: u32, n: u32, k: u32, accumulate: u32, alpha: f32);

pub(super) fn layouts() -> Vec<super::Layout> {
    vec![Params::layout()]
}

/// Outputs `(m, n)`, summed over `k`.
#[derive(Debug, Clone, Copy)]
pub struct Dims {
    /// Rows of the output.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
}

/// How the operands lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// y(m,n) = x(m,k) · w(n,k)ᵀ: a linear layer's forward.
    Nt,
    /// y(m,n) = x(m,k) · w(k,n): its gradient for the input.
    Nn,
    /// y(m,n) = x(k,m)ᵀ · w(k,n): its gradient for the weight.
    Tn,
}

/// What is done with the product.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// Factor.
    pub alpha: f32,
    /// Add to y instead of overwriting it.
    pub accumulate: bool,
    /// `(n)`, added to each row; only with [`Form::Nt`].
    pub bias: Option<&'a Tensor>,
}

impl Epilogue<'_> {
    /// y = the product.
    pub const SET: Self = Self { alpha: 1.0, accumulate: false, bias: None };
    /// y += the product.
    pub const ADD: Self = Self { alpha: 1.0, accumulate: true, bias: None };
}

/// Records y = or += alpha · product (+ bias). x and y are f32; w may be f32, bf16 or f16, with equal results.
pub fn forward(
    rec: &mut Recorder,
    form: Form,
    x: &Tensor,
    w: &Tensor,
    y: &Tensor,
    dims: Dims,
    epilogue: Epilogue,
) -> Result<()> {
    let Dims { m, n, k } = dims;
    check("matmul", &[("x", x, m * k), ("w", w, n * k), ("y", y, m * n)])?;
    let (variant, groups) = variant(rec.gpu().tier(), form, w.dtype(), dims, epilogue.bias.is_some());
    let params = Params {
        m: m as u32,
        n: n as u32,
        k: k as u32,
        accumulate: epilogue.accumulate as u32,
        alpha: epilogue.alpha,
    };
    let shader = kernel(rec.gpu(), &variant);
    let operations = 2.0 * (m * n) as f64 * k as f64;
    match epilogue.bias {
        None => rec.dispatch(&shader, &params, &[x, w, y], groups, operations),
        Some(bias) => {
            check("matmul", &[("bias", bias, n)])?;
            rec.dispatch(&shader, &params, &[x, w, y, bias], groups, operations);
        }
    }
    Ok(())
}

/// The variant for a shape, and its workgroups.
fn variant(tier: Tier, form: Form, weights: DType, dims: Dims, bias: bool) -> (String, u64) {
    let Dims { m, n, k } = dims;
    let mut flags = match form {
        Form::Nt => "NT",
        Form::Nn => "NN",
        Form::Tn => "TN",
    }
    .to_string();
    match weights {
        DType::Bf16 => flags += " PACKED",
        DType::F16 => flags += " PACKED F16",
        DType::F32 | DType::U32 => {}
    }
    if bias {
        flags += " BIAS";
    }
    if tier == Tier::Portable {
        return (format!("matmul_tiled {flags}"), (m.div_ceil(64) * n.div_ceil(64)) as u64);
    }
    let contiguous = if form == Form::Tn { m } else { k };
    if contiguous.is_multiple_of(4) && n.is_multiple_of(4) {
        flags += " VEC4";
    }
    let rows = if m <= 8 { 4 } else { 16 };
    (format!("matmul ROWS={rows} {flags}"), (m.div_ceil(rows) * n.div_ceil(8)).div_ceil(8) as u64)
}
