//! Matrix products in the three layouts that a linear layer's forward and backward need.

mod adapters;
pub(super) mod operands;
mod texels;

use std::rc::Rc;

use bytemuck::Zeroable;

use super::{Mat, check, params, prefers_texels, storage_flags};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Copied, DType, Gpu, Precision, Recorder, Scalar, Tensor, Tier};
pub use adapters::{AdapterPart, Adapters};
use texels::Part;

params!(Params for ["matmul", "matmul_coop", "matmul_subgroup", "matmul_tiled", "matvec"];
    m: u32, n: u32, k: u32, accumulate: u32, alpha: f32,
    x_at: u32, x_stride: u32, w_at: u32, w_stride: u32, y_at: u32, y_stride: u32, w_scales: u32,
    w_supers: u32, x_pitch: u32, w_pitch: u32, adapters: u32,
    parts: [[u32; 4]; 3], ranks: [u32; 4], scales: [f32; 4]);

pub(super) fn param_blocks() -> Vec<super::ParamBlock> {
    vec![Params::block()]
}

/// Outputs `(m, n)`, summed over `k`.
#[derive(Debug, Clone, Copy)]
pub struct Dims {
    /// Rows of the output.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
}

/// The layout of the operands in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// y(m,n) = x(m,k) · w(n,k)ᵀ: a linear layer's forward.
    Nt,
    /// y(m,n) = x(m,k) · w(k,n): its gradient for the input.
    Nn,
    /// y(m,n) = x(k,m)ᵀ · w(k,n): its gradient for the weight.
    Tn,
}

/// The most terms that a kernel adds up sequentially in a sum of a layer's gradients. A longer sum, such as
/// one over the vocabulary in the head's backward pass, is split into parts. When many small terms are added
/// to a large sum, all of them are rounded in the same direction: the error of a sum of 49,152 terms was
/// 1.2e-4 of its terms' sizes.
pub const TERMS: usize = 4096;

/// What is done with the product: a factor on it, and the tensors that are added to it.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// Factor on the product.
    pub alpha: f32,
    /// Add to y instead of overwriting it.
    pub accumulate: bool,
    /// `(n)`, added to each row; only with [`Form::Nt`].
    pub bias: Option<&'a Tensor>,
    /// Added to y, with y's layout; only with [`Form::Nt`].
    pub residual: Option<&'a Tensor>,
    /// Added to y: low Bᵀ with [`Form::Nt`], low A with [`Form::Nn`].
    pub adapters: Option<Adapters<'a>>,
}

impl Epilogue<'_> {
    /// y = the product.
    pub const SET: Self = Self { alpha: 1.0, accumulate: false, bias: None, residual: None, adapters: None };
    /// y += the product.
    pub const ADD: Self = Self { accumulate: true, ..Self::SET };

    fn flags(&self) -> String {
        let flag = |name: &'static str, is: bool| if is { name } else { "" };
        let [bias, residual] =
            [flag(" BIAS", self.bias.is_some()), flag(" RESIDUAL", self.residual.is_some())];
        format!("{bias}{residual}{}", flag(" ADAPTERS", self.adapters.is_some()))
    }
}

/// A product to compute: y = or += alpha · x w in one of the layouts.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// The layout of the operands.
    pub form: Form,
    /// f32.
    pub x: Mat<'a>,
    /// f32, bf16, f16 or quantised; equal values give equal results. Quantised rows are whole blocks without
    /// gaps; [`Form::Tn`] does not support them.
    pub w: Mat<'a>,
    /// f32.
    pub y: Mat<'a>,
    /// The sizes.
    pub dims: Dims,
    /// What is done with the product.
    pub epilogue: Epilogue<'a>,
    /// Whether x has one row for each answer that is being decoded. There are few rows, and their number
    /// differs from pass to pass; a row's result must not depend on it, bit for bit.
    pub decoding: bool,
}

/// The variant's flags for this layout and weight type.
fn flags(form: Form, weights: DType) -> String {
    let form = match form {
        Form::Nt => "NT",
        Form::Nn => "NN",
        Form::Tn => "TN",
    };
    format!("{form}{}", storage_flags(weights))
}

/// Classes of token counts for measuring kernels. Each covers the counts up to it and above the previous
/// class; the last one also covers all larger counts.
pub const TOKEN_CLASSES: [usize; 4] = [1, 16, 128, 1024];

/// The class of a product. One measurement applies to all products of a class.
pub fn class(form: Form, weights: DType, dims: Dims, precision: Precision) -> String {
    let Dims { m, n, k } = dims;
    let up_to = |tokens| TOKEN_CLASSES.into_iter().find(|&class| class >= tokens).unwrap_or(TOKEN_CLASSES[3]);
    // The sum of a weight's gradient runs over the tokens.
    let (m, k) = if form == Form::Tn { (m, up_to(k)) } else { (up_to(m), k) };
    let rounded = if precision == Precision::F16 { " precision=f16" } else { "" };
    format!("{} m={m} n={n} k={k}{rounded}", flags(form, weights))
}

/// A family of kernels. Kernels of the same layout, tier and family give bit-identical results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Products in f32, summed in the order of k.
    F32,
    /// Inputs rounded to f16, then as [`Family::F32`].
    F16,
    /// Cooperative matrices of f32, whose order of summation is unspecified.
    CooperativeF32,
    /// Cooperative matrices of inputs rounded to f16.
    CooperativeF16,
    /// For few rows: products in f32. Sixteen lanes share a sum, and each adds up a part of it.
    Decoding,
}

impl Family {
    /// Whether inputs are rounded to f16.
    pub fn rounds(self) -> bool {
        matches!(self, Self::F16 | Self::CooperativeF16)
    }
}

/// One way to compute a product: a shader's variant, and the outputs that one of its workgroups computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The variant, as `shaders/permutations` lists it, without the epilogue's flags.
    pub variant: String,
    /// Candidates of one family give bit-identical results.
    pub family: Family,
    rows: usize,
    columns: usize,
    workgroup: usize,
    texels: bool,
}

/// A part of a product whose operands fit into textures: those of x and w, and what is copied of y and of the
/// residual if they are read.
struct Block {
    x: Rc<Part>,
    w: Rc<Part>,
    y: Option<Copied>,
}

impl<'a> Product<'a> {
    /// y = the product of whole tensors, without gaps between their rows.
    pub fn plain(form: Form, x: &'a Tensor, w: &'a Tensor, y: &'a Tensor, dims: Dims) -> Self {
        let Dims { m, n, k } = dims;
        let (x_width, w_width) = match form {
            Form::Nt => (k, k),
            Form::Nn => (k, n),
            Form::Tn => (m, n),
        };
        let (x, w, y) = (Mat::new(x, x_width), Mat::new(w, w_width), Mat::new(y, n));
        Self { form, x, w, y, dims, epilogue: Epilogue::SET, decoding: false }
    }

    /// All candidates for the product on `gpu`, grouped by family, the likely fastest first. The family of
    /// the first one does not depend on the number of rows, so a row's result does not depend on it either,
    /// bit for bit.
    pub fn candidates(&self, gpu: &Gpu) -> Vec<Candidate> {
        let &Self { form, x, w, y, dims: Dims { m, n, k }, decoding, .. } = self;
        let flags = flags(form, w.data.dtype());
        let contiguous = if form == Form::Tn { m } else { k };
        let fours = [x, w, y].iter().all(|operand| operand.starts_at_multiples_of(4));
        let wide = fours && contiguous.is_multiple_of(4) && n.is_multiple_of(4);
        let vec4 = if wide { " VEC4" } else { "" };
        let quads = k.is_multiple_of(4) && [x, w].iter().all(|operand| operand.starts_at_multiples_of(4));
        if gpu.tier() == Tier::Portable && form == Form::Nt && decoding && quads {
            let least = [1, 4, 16].into_iter().find(|&rows| rows >= m).unwrap_or(16);
            return [1, 4, 16]
                .into_iter()
                .filter(|&rows| rows <= least)
                .rev()
                .map(|rows| Candidate {
                    variant: format!("matvec ROWS={rows} {flags} VEC4"),
                    family: Family::Decoding,
                    rows,
                    columns: 8,
                    workgroup: 1,
                    texels: false,
                })
                .collect();
        }
        if gpu.tier() == Tier::Portable {
            return Self::portable(gpu, self.dims, &format!("{flags}{vec4}"));
        }
        let storage = self.software(gpu, wide, "");
        // The copies are texels, and starts have to be multiples of them.
        if !wide || w.data.dtype().is_quantised() || self.blocks().is_none() {
            return storage;
        }
        let texels = self.software(gpu, wide, " TEXELS");
        match prefers_texels(gpu, m.min(n)) {
            true => [texels, storage].concat(),
            false => [storage, texels].concat(),
        }
    }

    /// The candidates of the software tier that read their operands in one way: `texels` is its flag. `wide`
    /// is whether four neighbours can be loaded at once.
    fn software(&self, gpu: &Gpu, wide: bool, texels: &str) -> Vec<Candidate> {
        let &Self { form, w, dims: Dims { m, n, k }, .. } = self;
        let flags = flags(form, w.data.dtype()) + texels;
        let candidate = |variant, rows, columns, workgroup| Candidate {
            variant,
            family: Family::F32,
            rows,
            columns,
            workgroup,
            texels: !texels.is_empty(),
        };
        let mut all = Vec::new();
        // A load reads four f32, or eight packed weights.
        let row = if form == Form::Nt { k } else { n };
        let whole =
            wide && (w.data.dtype() == DType::F32 || row.is_multiple_of(8) && w.starts_at_multiples_of(8));
        if let Some(lanes) = gpu.subgroup().filter(|&lanes| whole && (lanes == 4 || lanes == 8)) {
            // A size is a number of rows, in units of half a subgroup. Sizes larger than needed to cover all
            // rows are dropped, because a decoding step has few rows. With size 8, NT uses only half of each
            // load of packed weights. Size 3 pays off only if it covers all rows.
            let mut sizes = match (form, w.data.dtype()) {
                (Form::Nt, DType::F32) => vec![8, 4, 3, 2],
                (Form::Nt, _) => vec![4, 8, 3, 2],
                _ => vec![8, 4, 2],
            };
            let enough = sizes.iter().copied().filter(|size| size * lanes / 2 >= m).min().unwrap_or(8);
            sizes.retain(|&size| size <= enough && (size != 3 || size == enough));
            for size in sizes {
                let rows = size * lanes / 2;
                let steps = match (form, size) {
                    (Form::Nt, 8) => " STEPS=1",
                    (Form::Nt, _) => " STEPS=2",
                    _ => "",
                };
                let variant = format!("matmul_subgroup SG={lanes} ROWS={rows}{steps} {flags}");
                all.push(candidate(variant, rows, 8 * lanes, 1));
            }
        }
        let shared = all.len();
        let vec4 = if wide { " VEC4" } else { "" };
        for rows in [[1, 4], [4, 16], [16, 4]][usize::from(m > 2) + usize::from(m > 8)] {
            all.push(candidate(format!("matmul ROWS={rows} {flags}{vec4}"), rows, 8, 8));
        }
        // Subgroup kernels compute many rows and columns: that is wasted work if there are few outputs, such
        // as an adapter's rank, or a single row.
        if n <= 16 || m == 1 {
            all.rotate_left(shared);
        }
        all
    }

    /// The product in parts whose operands fit into textures; `None` if that cannot be. No sum is divided.
    fn blocks(&self) -> Option<Vec<Block>> {
        let &Self { form, x, w, y, dims: Dims { m, n, k }, epilogue, .. } = self;
        let reads_y = epilogue.accumulate || epilogue.residual.is_some();
        // Rows of y are copied with what is between them.
        let most = if reads_y { Copied::MOST as usize / 4 / y.stride.max(1) / 64 * 64 } else { m };
        if most == 0 && m > 0 {
            return None;
        }
        let rows: Vec<_> = texels::parts(x, form == Form::Tn, m, k, most)?.into_iter().map(Rc::new).collect();
        let mut all = Vec::new();
        for w in texels::parts(w, form != Form::Nt, n, k, n)?.into_iter().map(Rc::new) {
            for x in &rows {
                let start = y.at + x.outputs.start * y.stride + w.outputs.start;
                let extent = (x.outputs.len() - 1) * y.stride + w.outputs.len();
                let y = if reads_y { Some(Copied::run(4 * start as u64, 4 * extent as u64)?) } else { None };
                all.push(Block { x: x.clone(), w: w.clone(), y });
            }
        }
        Some(all)
    }

    /// The candidates of the portable tier for these sizes and flags.
    fn portable(gpu: &Gpu, Dims { m, n, .. }: Dims, flags: &str) -> Vec<Candidate> {
        // Small tiles if large ones would leave most of the device idle.
        let small = m.div_ceil(128) * n.div_ceil(128) < 64;
        let square = |variant: String, family, side| Candidate {
            variant,
            family,
            rows: side,
            columns: side,
            workgroup: 1,
            texels: false,
        };
        let tiled = |half: &str, family| {
            let edges = if small { [4, 8] } else { [8, 4] };
            edges.map(|edge| square(format!("matmul_tiled EDGE={edge}{half} {flags}"), family, 16 * edge))
        };
        let cooperative = |inputs, family| {
            let half = if inputs == Scalar::F16 { " HALF" } else { "" };
            let (side, lanes, edges): (_, _, &[usize]) = match gpu.cooperative(inputs) {
                Some((16, lanes @ (32 | 64))) => (16, lanes, if small { &[2, 4] } else { &[4, 2] }),
                Some((8, lanes @ (8 | 32))) => (8, lanes, &[4]),
                _ => (0, 0, &[]),
            };
            edges.iter().map(move |&edge| {
                let variant = format!("matmul_coop MAT{side}{half} EDGE={edge} SG={lanes} {flags}");
                square(variant, family, 2 * edge * side)
            })
        };
        if gpu.precision() == Precision::F32 {
            return tiled("", Family::F32).into();
        }
        let mut all: Vec<_> = cooperative(Scalar::F16, Family::CooperativeF16).collect();
        if gpu.shader_f16() {
            all.extend(tiled(" HALF", Family::F16));
        }
        all.extend(tiled("", Family::F32));
        all.extend(cooperative(Scalar::F32, Family::CooperativeF32));
        all
    }

    /// Splits the product into products of at most [`TERMS`] terms; [`Form::Nt`] is not split. The first one
    /// applies the epilogue, the others add to its result.
    fn parts(self) -> impl Iterator<Item = Self> {
        let Self { form, x, w, dims, epilogue, .. } = self;
        let adapters = epilogue.adapters;
        let most = if form == Form::Nt { dims.k } else { TERMS };
        (0..dims.k.max(1)).step_by(most.max(1)).map(move |first| {
            let (x, w) = match form {
                Form::Nt => (x, w),
                Form::Nn => (x.from(first), w.from(first * w.stride)),
                Form::Tn => (x.from(first * x.stride), w.from(first * w.stride)),
            };
            let epilogue = match first {
                0 => epilogue,
                _ => Epilogue { alpha: epilogue.alpha, ..Epilogue::ADD },
            };
            // Adapters are added last.
            let adapters = adapters.filter(|_| first + most >= dims.k);
            let epilogue = Epilogue { adapters, ..epilogue };
            Self { x, w, dims: Dims { k: most.min(dims.k - first), ..dims }, epilogue, ..self }
        })
    }

    /// Records the product with the candidate that was measured to be the fastest, or the likely fastest if
    /// there is no measurement.
    pub fn record(&self, rec: &mut Recorder) -> Result<()> {
        self.parts().try_for_each(|part| part.record_part(rec))
    }

    fn record_part(&self, rec: &mut Recorder) -> Result<()> {
        let gpu = rec.gpu();
        let candidates = self.candidates(gpu);
        let tuned = gpu.tuned(|| class(self.form, self.w.data.dtype(), self.dims, gpu.precision()));
        // Measurements change no results: they choose within the family.
        let by = tuned.and_then(|variant| {
            candidates.iter().find(|c| c.variant == variant && c.family == candidates[0].family)
        });
        self.record_by(rec, by.unwrap_or(&candidates[0]))
    }

    /// Checks the sizes of the tensors.
    fn check(&self) -> Result<()> {
        let &Self { form, x, w, y, dims: Dims { m, n, k }, epilogue, .. } = self;
        let (x_rows, w_rows) = match form {
            Form::Nt => ((m, k), (n, k)),
            Form::Nn => ((m, k), (k, n)),
            Form::Tn => ((k, m), (k, n)),
        };
        let y_extent = y.extent(m, n);
        let extents =
            [("x", x.data, x.extent(x_rows.0, x_rows.1)), ("w", w.data, w.extent(w_rows.0, w_rows.1))];
        check("matmul", &extents)?;
        check("matmul", &[("y", y.data, y_extent)])?;
        if let Some(bias) = epilogue.bias {
            check("matmul", &[("bias", bias, n)])?;
        }
        if let Some(residual) = epilogue.residual {
            check("matmul", &[("residual", residual, y_extent)])?;
        }
        epilogue.adapters.iter().flat_map(|all| all.products(self)).try_for_each(|product| product.check())
    }

    /// Its parameters, without adapters.
    fn params(&self) -> Params {
        let &Self { x, w, y, dims: Dims { m, n, k }, epilogue, .. } = self;
        let [w_scales, w_supers] = w.data.dtype().scale_words(w.data.len());
        Params {
            m: m as u32,
            n: n as u32,
            k: k as u32,
            accumulate: epilogue.accumulate as u32,
            alpha: epilogue.alpha,
            x_at: x.at as u32,
            x_stride: x.stride as u32,
            w_at: w.at as u32,
            w_stride: w.stride as u32,
            y_at: y.at as u32,
            y_stride: y.stride as u32,
            w_scales,
            w_supers,
            ..Params::zeroed()
        }
    }

    /// Its multiplications and additions.
    fn operations(&self) -> f64 {
        let Dims { m, n, k } = self.dims;
        2.0 * (m * n) as f64 * k as f64
    }

    /// Records the whole product with one of its candidates.
    pub fn record_by(&self, rec: &mut Recorder, by: &Candidate) -> Result<()> {
        let &Self { form, x, w, y, dims: Dims { m, n, k }, epilogue, .. } = self;
        self.check()?;
        if let Some(adapters) = epilogue.adapters.filter(|adapters| !adapters.fit(self, by)) {
            let alone = Self { epilogue: Epilogue { adapters: None, ..epilogue }, ..*self };
            alone.record_by(rec, by)?;
            return adapters.products(self).try_for_each(|product| product.record(rec));
        }
        let mut bindings = vec![x.data, w.data, y.data];
        bindings.extend(epilogue.bias);
        bindings.extend(epilogue.residual);
        let mut params = self.params();
        if let Some(adapters) = &epilogue.adapters {
            bindings.extend([adapters.low.data, adapters.matrices]);
            params = adapters.enter(params);
        }
        let shader = kernel(rec.gpu(), &format!("{}{}", by.variant, epilogue.flags()));
        let groups =
            |m: usize, n: usize| (m.div_ceil(by.rows) * n.div_ceil(by.columns)).div_ceil(by.workgroup) as u64;
        if !by.texels {
            rec.dispatch(&shader, &params, &bindings, groups(m, n), self.operations());
            return Ok(());
        }
        let blocks = self.blocks().expect("a candidate that reads textures has operands that fit into them");
        for block in blocks {
            let (rows, columns) = (&block.x.outputs, &block.w.outputs);
            let (m, n) = (rows.len(), columns.len());
            let x_first = if form == Form::Tn { rows.start } else { rows.start * x.stride };
            let w_first = if form == Form::Nt { columns.start * w.stride } else { columns.start };
            let bias = epilogue.bias.map(|bias| bias.slice(columns.start, n));
            let mut bindings = bindings.clone();
            if let Some(bias) = &bias {
                bindings[3] = bias;
            }
            let params = Params {
                m: m as u32,
                n: n as u32,
                x_at: (x.at + x_first) as u32,
                w_at: (w.at + w_first) as u32,
                y_at: (y.at + rows.start * y.stride + columns.start) as u32,
                x_pitch: block.x.pitch as u32,
                w_pitch: block.w.pitch as u32,
                ..params
            };
            let mut copies = vec![Some(block.x.copied), Some(block.w.copied)];
            copies.extend(epilogue.residual.map(|_| block.y));
            copies.push(block.y.filter(|_| epilogue.accumulate));
            bindings.push(y.data);
            let operations = Self { dims: Dims { m, n, k }, ..*self }.operations();
            rec.dispatch_with(&shader, &params, (&bindings, &copies), groups(m, n), operations);
        }
        Ok(())
    }
}
