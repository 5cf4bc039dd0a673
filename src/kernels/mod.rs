//! One file per kernel: its parameter block, its shape checks, and the functions that record it.
//!
//! A kernel has the name of its shader and of its reference. In shapes, `T` is tokens, `D` width, `H` query
//! heads, `G` kv heads, `R` rows that predict a response token, `V` vocabulary, `S` sequences, `N` groups of
//! sequences with one prompt. Tensors may be longer than their shape requires.

pub mod activation;
pub mod adamw;
pub mod adamw_8bit;
pub mod attention;
pub mod column_sum;
pub mod dropout;
pub mod ema;
pub mod fma_peak;
pub mod gather;
pub mod head_norm;
pub mod kv_write;
pub mod layer_norm;
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

use crate::gpu::{DType, Gpu, Recorder, Tensor, Tier};
use crate::{Error, Result};

/// A Rust parameter block as its shaders must see it: the shaders, its size, and each field's name, offset
/// and size in bytes.
#[derive(Debug, Clone)]
pub struct ParamBlock {
    /// The WGSL files whose `Params` this is.
    pub shaders: &'static [&'static str],
    /// Bytes of the whole block.
    pub size: usize,
    /// Name, offset and size of each field.
    pub fields: Vec<(&'static str, usize, usize)>,
}

/// Defines a kernel's parameter block together with the [`ParamBlock`] that `tests/shaders.rs` compares with
/// the WGSL.
macro_rules! params {
    ($name:ident for $shaders:expr; $($field:ident: $ty:ty),* $(,)?) => {
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),* }

        impl $name {
            pub(super) fn block() -> $crate::kernels::ParamBlock {
                $crate::kernels::ParamBlock {
                    shaders: &$shaders,
                    size: size_of::<Self>(),
                    fields: vec![$((
                        stringify!($field),
                        std::mem::offset_of!(Self, $field),
                        size_of::<$ty>(),
                    )),*],
                }
            }
        }
    };
}
use params;

/// Every parameter block, for the check against the shaders.
pub fn param_blocks() -> Vec<ParamBlock> {
    [
        activation::param_blocks(),
        adamw::param_blocks(),
        adamw_8bit::param_blocks(),
        attention::param_blocks(),
        column_sum::param_blocks(),
        dropout::param_blocks(),
        ema::param_blocks(),
        fma_peak::param_blocks(),
        gather::param_blocks(),
        head_norm::param_blocks(),
        kv_write::param_blocks(),
        layer_norm::param_blocks(),
        log_prob::param_blocks(),
        matmul::param_blocks(),
        preference::param_blocks(),
        rms_norm::param_blocks(),
        rope::param_blocks(),
        retain::param_blocks(),
        row_scale::param_blocks(),
        sample::param_blocks(),
        sequence_sum::param_blocks(),
        soft_cap::param_blocks(),
        sum_squares::param_blocks(),
        // The device records this one itself.
        vec![ParamBlock { shaders: &["sentinel"], size: 4, fields: vec![("number", 0, 4)] }],
    ]
    .concat()
}

/// A matrix in a tensor: row i starts at element `at + i * stride`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// The tensor that holds it.
    pub data: &'a Tensor,
    /// Its first element.
    pub at: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<'a> Mat<'a> {
    /// All of a tensor whose rows have `stride` elements.
    pub fn new(data: &'a Tensor, stride: usize) -> Self {
        Self { data, at: 0, stride }
    }

    /// The matrix that starts `elements` elements later: at another column or row.
    pub fn from(self, elements: usize) -> Self {
        Self { at: self.at + elements, ..self }
    }

    /// Elements that the tensor must have for `rows` rows of `columns`.
    fn extent(&self, rows: usize, columns: usize) -> usize {
        if rows == 0 { 0 } else { self.at + (rows - 1) * self.stride + columns }
    }

    fn starts_at_multiples_of(&self, n: usize) -> bool {
        self.at.is_multiple_of(n) && self.stride.is_multiple_of(n)
    }
}

/// A layer's output tensor, and an optional residual to add to the output.
#[derive(Clone, Copy)]
pub struct Out<'a> {
    /// The tensor that is written.
    pub y: &'a Tensor,
    /// Added to the result; it has y's shape.
    pub residual: Option<&'a Tensor>,
}

impl<'a> Out<'a> {
    /// The result alone.
    pub fn to(y: &'a Tensor) -> Self {
        Self { y, residual: None }
    }

    /// The result plus `residual`.
    pub fn plus(y: &'a Tensor, residual: &'a Tensor) -> Self {
        Self { y, residual: Some(residual) }
    }
}

/// Heads of tokens in a tensor: head h of token t starts at element `at + t * stride + h * head`.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// The tensor that holds them.
    pub data: &'a Tensor,
    /// The first element of the first head.
    pub at: usize,
    /// Elements from one token to the next.
    pub stride: usize,
    /// Elements from one head to the next.
    pub head: usize,
}

impl<'a> Heads<'a> {
    /// All of a tensor that has a row of `stride` elements for each token, with heads `head` elements apart.
    pub fn new(data: &'a Tensor, stride: usize, head: usize) -> Self {
        Self { data, at: 0, stride, head }
    }

    /// The heads that start `elements` elements later.
    pub fn from(self, elements: usize) -> Self {
        Self { at: self.at + elements, ..self }
    }

    /// Elements that the tensor must have for `tokens` tokens with `heads` heads of `head_dim` elements.
    fn extent(&self, tokens: usize, heads: usize, head_dim: usize) -> usize {
        let row = heads.saturating_sub(1) * self.head + head_dim;
        if tokens == 0 { 0 } else { self.at + (tokens - 1) * self.stride + row }
    }
}

/// Checks that each named tensor has at least the expected number of elements.
fn check(kernel: &'static str, tensors: &[(&'static str, &Tensor, usize)]) -> Result<()> {
    for &(tensor, given, expected) in tensors {
        if given.len() < expected {
            return Err(Error::Shape { kernel, tensor, expected, found: given.len() });
        }
    }
    Ok(())
}

/// The flags of a variant that reads weights of this type.
fn storage_flags(weights: DType) -> &'static str {
    match weights {
        DType::F32 | DType::U32 => "",
        DType::Bf16 => " PACKED",
        DType::F16 => " PACKED F16",
        DType::Q4 => " QUANT BITS=4 Q4",
        DType::Q8 => " QUANT BITS=8 Q8",
        DType::Q4K => " QUANT BITS=4 SUPER Q4K",
        DType::Q5K => " QUANT BITS=8 SUPER Q5K",
        DType::Q6K => " QUANT BITS=8 Q6K",
        DType::Nf4 => " QUANT BITS=4 NF4",
    }
}

/// Whether the kernels of software adapters should read their operands through textures, if each element of
/// an operand is for at least `uses` outputs: it is copied once, and read about as often. Products are timed
/// both ways the first time.
fn prefers_texels(gpu: &Gpu, uses: usize) -> bool {
    uses >= gpu.texels_from(|| matmul::operands::least_rows(gpu))
}

/// Workgroups of 64 for `count` invocations.
fn groups_of_64(count: usize) -> u64 {
    count.div_ceil(64) as u64
}

/// The most columns of a row that one invocation processes alone. llvmpipe silently ends all loops of an
/// invocation after 65,535 iterations in total (`LP_MAX_TGSI_LOOP_ITERATIONS`), and a sampler loops over its
/// row about a dozen times.
pub(crate) const SERIAL_COLUMNS: usize = 2048;

/// For the kernels that use `common/rows.wgsl`: the variant for this tier and width, and the number of
/// workgroups.
fn by_rows(recorder: &Recorder, shader: &str, rows: usize, columns: usize) -> (String, u64) {
    if recorder.gpu().tier() == Tier::Software && columns <= SERIAL_COLUMNS {
        (format!("{shader} SERIAL"), rows.div_ceil(8) as u64)
    } else {
        (shader.to_string(), rows as u64)
    }
}
