//! Matrix products in the three layouts that a linear layer's forward and backward need.

use super::{check, params};
use crate::Result;
use crate::gpu::{DType, Gpu, Recorder, Tensor, Tier};
use crate::shader::kernel;

params!(Params for ["matmul", "matmul_subgroup", "matmul_tiled"]; m: u32, n: u32, k: u32, accumulate: u32, alpha: f32);

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

/// The definitions of a variant for this layout and these weights.
fn flags(form: Form, weights: DType, bias: bool) -> String {
    let form = match form {
        Form::Nt => "NT",
        Form::Nn => "NN",
        Form::Tn => "TN",
    };
    let packed = match weights {
        DType::Bf16 => " PACKED",
        DType::F16 => " PACKED F16",
        DType::F32 | DType::U32 => "",
    };
    format!("{form}{packed}{}", if bias { " BIAS" } else { "" })
}

/// Numbers of tokens that are told apart when kernels are measured: each stands for those up to it and over the one
/// before, the last also for all above.
pub const TOKEN_CLASSES: [usize; 4] = [1, 16, 128, 1024];

/// The class of a product: what is measured once and holds for all its members.
pub fn class(form: Form, weights: DType, dims: Dims, bias: bool) -> String {
    let Dims { m, n, k } = dims;
    let up_to = |tokens| TOKEN_CLASSES.into_iter().find(|&class| class >= tokens).unwrap_or(TOKEN_CLASSES[3]);
    // The sum of a weight's gradient runs over the tokens.
    let (m, k) = if form == Form::Tn { (m, up_to(k)) } else { (up_to(m), k) };
    format!("{} m={m} n={n} k={k}", flags(form, weights, bias))
}

/// One way to compute a product: a shader's variant, and the outputs of one of its workgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The variant, as `shaders/permutations` lists it.
    pub variant: String,
    rows: usize,
    columns: usize,
    workgroup: usize,
}

/// Every way to compute a product on `gpu`, the likeliest to be fast first. All give the same results, those of one layout
/// and tier the same bits.
pub fn candidates(gpu: &Gpu, form: Form, weights: DType, dims: Dims, bias: bool) -> Vec<Candidate> {
    let Dims { m, n, k } = dims;
    let flags = flags(form, weights, bias);
    let contiguous = if form == Form::Tn { m } else { k };
    let wide = contiguous.is_multiple_of(4) && n.is_multiple_of(4);
    let vec4 = if wide { " VEC4" } else { "" };
    if gpu.tier() == Tier::Portable {
        // Small tiles where large ones would leave most of the device idle.
        let edges = if m.div_ceil(128) * n.div_ceil(128) < 64 { [4, 8] } else { [8, 4] };
        let tiled = |edge: usize| {
            let variant = format!("matmul_tiled EDGE={edge} {flags}{vec4}");
            Candidate { variant, rows: 16 * edge, columns: 16 * edge, workgroup: 1 }
        };
        return edges.map(tiled).into();
    }
    let mut all = Vec::new();
    if let Some(lanes) = gpu.subgroup().filter(|&lanes| wide && (lanes == 4 || lanes == 8)) {
        // As many rows as there are, and no more: a decoding step has few.
        let most = [1, 2, 4].into_iter().find(|loads| loads * lanes >= m).unwrap_or(4);
        for loads in [4, 2, 1].into_iter().filter(|&loads| loads <= most) {
            let variant = format!("matmul_subgroup SG={lanes} LOADS={loads} {flags}");
            all.push(Candidate { variant, rows: loads * lanes, columns: 8 * lanes, workgroup: 1 });
        }
    }
    let shared = all.len();
    for rows in if m <= 8 { [4, 16] } else { [16, 4] } {
        let variant = format!("matmul ROWS={rows} {flags}{vec4}");
        all.push(Candidate { variant, rows, columns: 8, workgroup: 8 });
    }
    // A subgroup's columns are lost on few outputs, such as an adapter's rank.
    if n <= 16 {
        all.rotate_left(shared);
    }
    all
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
    let (gpu, bias) = (rec.gpu(), epilogue.bias.is_some());
    let candidates = candidates(gpu, form, w.dtype(), dims, bias);
    let tuned = gpu.tuned(|| class(form, w.dtype(), dims, bias));
    let by = tuned.and_then(|variant| candidates.iter().find(|c| c.variant == variant));
    forward_by(rec, by.unwrap_or(&candidates[0]), x, w, y, dims, epilogue)
}

/// As [`forward`], by a candidate for the same layout, weights and sizes.
pub fn forward_by(
    rec: &mut Recorder,
    by: &Candidate,
    x: &Tensor,
    w: &Tensor,
    y: &Tensor,
    dims: Dims,
    epilogue: Epilogue,
) -> Result<()> {
    let Dims { m, n, k } = dims;
    check("matmul", &[("x", x, m * k), ("w", w, n * k), ("y", y, m * n)])?;
    let params = Params {
        m: m as u32,
        n: n as u32,
        k: k as u32,
        accumulate: epilogue.accumulate as u32,
        alpha: epilogue.alpha,
    };
    let groups = (m.div_ceil(by.rows) * n.div_ceil(by.columns)).div_ceil(by.workgroup) as u64;
    let shader = kernel(rec.gpu(), &by.variant);
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
