//! Low-rank adapters of a layer (Hu et al., "LoRA", 2106.09685). A GPU adds them to the outputs of the
//! layer's own product, and computes the gradients of all of them in one dispatch. Otherwise each one is a
//! product.

use super::{Candidate, Dims, Epilogue, Family, Form, Params, Product, TERMS};
use crate::Result;
use crate::gpu::kernel;
use crate::gpu::{Gpu, Recorder, Tensor, Tier};
use crate::kernels::Mat;

/// The most adapters of one dispatch: those of queries, keys and values.
const MOST: usize = 3;

/// The largest rank that a product's own kernel adds: three adapters of rank 16, whose A are one matrix. The
/// kernel reads the matrix again for each row, so more ranks are better a product of their own.
const MOST_RANK: usize = 48;

/// The side of a tile, in outputs, of the kernel that computes all adapters' gradients.
const TILE: usize = 64;

/// Low-rank products on parts of a layer's output.
#[derive(Clone, Copy)]
pub struct Adapters<'a> {
    /// `(rows, ranks)`: their inner activations, or the gradient of these.
    pub low: Mat<'a>,
    /// The tensor that has all of their matrices.
    pub matrices: &'a Tensor,
    /// The adapters, in the order of their columns.
    pub parts: &'a [AdapterPart],
}

/// A low-rank product on some columns of a layer's output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterPart {
    /// The first column.
    pub first: usize,
    /// The number of columns.
    pub columns: usize,
    /// The first of its ranks in `low`.
    pub first_rank: usize,
    /// Its rank.
    pub rank: usize,
    /// Where its matrix starts: `(columns, rank)`, or with [`Form::Nn`] `(rank, columns)`, for all columns of
    /// the output.
    pub at: usize,
    /// Factor on it.
    pub scale: f32,
}

impl AdapterPart {
    /// The adapter on those of its columns that are in the `count` columns from `first` on, which then are
    /// the whole layer; only with [`Form::Nt`].
    pub fn within(&self, first: usize, count: usize) -> Option<Self> {
        let start = self.first.max(first);
        let end = (self.first + self.columns).min(first + count);
        let at = self.at + start.saturating_sub(self.first) * self.rank;
        (start < end).then(|| Self { first: start - first, columns: end - start, at, ..*self })
    }
}

impl<'a> Adapters<'a> {
    fn matrix(&self, part: &AdapterPart, stride: usize) -> Mat<'a> {
        Mat { data: self.matrices, at: part.at, stride }
    }

    /// The adapters one by one, each as a product that adds to that of `layer`.
    pub(super) fn products(&self, layer: &Product<'a>) -> impl Iterator<Item = Product<'a>> {
        let (adapters, layer) = (*self, *layer);
        let stride = move |part: &AdapterPart| if layer.form == Form::Nt { part.rank } else { part.columns };
        adapters.parts.iter().map(move |part| Product {
            x: adapters.low.from(part.first_rank),
            w: adapters.matrix(part, stride(part)),
            y: layer.y.from(part.first),
            dims: Dims { n: part.columns, k: part.rank, ..layer.dims },
            epilogue: Epilogue { alpha: part.scale, ..Epilogue::ADD },
            ..layer
        })
    }

    /// Whether the kernel of `by` can add the adapters itself.
    pub(super) fn fit(&self, layer: &Product, by: &Candidate) -> bool {
        let fits = |part: &AdapterPart| {
            let &AdapterPart { first, columns, first_rank, rank, at, .. } = part;
            let whole = first == 0 && columns == layer.dims.n;
            [first, columns, first_rank, rank, at].iter().all(|n| n.is_multiple_of(4))
                && rank <= MOST_RANK
                && (layer.form == Form::Nt || whole)
        };
        in_tiles(by)
            && self.parts.len() <= MOST
            && self.low.at == 0
            && self.low.stride.is_multiple_of(4)
            && self.parts.iter().all(fits)
    }

    /// The parameters with the adapters' sizes and places.
    pub(super) fn enter(&self, mut params: Params) -> Params {
        params.adapters = self.parts.len() as u32;
        params.ranks[3] = self.low.stride as u32;
        for (i, part) in self.parts.iter().enumerate() {
            let AdapterPart { first, columns, first_rank, rank, at, scale } = *part;
            params.parts[i] = [first, first + columns, first_rank, at].map(|n| n as u32);
            params.ranks[i] = rank as u32;
            params.scales[i] = scale;
        }
        params
    }

    /// Records low `(rows, ranks)` = scale · dy B for each adapter: the gradient of the inner activations,
    /// from that of the layer's output, `dy`.
    pub fn backward_low(&self, rec: &mut Recorder, dy: Mat<'a>, rows: usize) -> Result<()> {
        let of = |part: &AdapterPart| Product {
            form: Form::Nn,
            x: dy.from(part.first),
            w: self.matrix(part, part.rank),
            y: self.low.from(part.first_rank),
            dims: Dims { m: rows, n: part.rank, k: part.columns },
            epilogue: Epilogue { alpha: part.scale, ..Epilogue::SET },
            decoding: false,
        };
        self.record(rec, dy, &self.parts.iter().map(of).collect::<Vec<_>>())
    }

    /// Records B += scale · dyᵀ low for each adapter, where the matrices are gradients of B, `dy` is the
    /// gradient of the layer's output, and low the inner activations.
    pub fn backward_matrices(&self, rec: &mut Recorder, dy: Mat<'a>, rows: usize) -> Result<()> {
        let of = |part: &AdapterPart| Product {
            form: Form::Tn,
            x: dy.from(part.first),
            w: self.low.from(part.first_rank),
            y: self.matrix(part, part.rank),
            dims: Dims { m: part.columns, n: part.rank, k: rows },
            epilogue: Epilogue { alpha: part.scale, ..Epilogue::ADD },
            decoding: false,
        };
        self.record(rec, dy, &self.parts.iter().map(of).collect::<Vec<_>>())
    }

    /// Records the products of all adapters, in one dispatch if a kernel can do that.
    fn record(&self, rec: &mut Recorder, dy: Mat<'a>, products: &[Product<'a>]) -> Result<()> {
        if !together(rec.gpu(), products) {
            return products.iter().try_for_each(|product| product.record(rec));
        }
        products.iter().try_for_each(Product::check)?;
        let first = &products[0];
        let params = Params { x_at: dy.at as u32, ..first.params() };
        let (form, params) = match first.form {
            Form::Nn => ("NN", Params { y_at: self.low.at as u32, ..params }),
            _ => ("TN", Params { w_at: self.low.at as u32, ..params }),
        };
        let shader = kernel(rec.gpu(), &format!("matmul_tiled EDGE=4 {form} VEC4 EACH"));
        let groups = |&Product { dims: Dims { m, n, .. }, .. }: &Product| m.div_ceil(TILE) * n.div_ceil(TILE);
        let groups: usize = products.iter().map(groups).sum();
        let operations = products.iter().map(Product::operations).sum();
        let bindings = [first.x.data, first.w.data, first.y.data];
        rec.dispatch(&shader, &self.enter(params), &bindings, groups as u64, operations);
        Ok(())
    }
}

/// Whether the kernel has tiles of f32 and loads four neighbours at once: the one that knows adapters.
fn in_tiles(by: &Candidate) -> bool {
    by.family == Family::F32 && by.variant.starts_with("matmul_tiled") && by.variant.contains(" VEC4")
}

/// Whether one dispatch can compute these products of a layer's adapters.
fn together(gpu: &Gpu, products: &[Product]) -> bool {
    gpu.tier() == Tier::Portable
        && (2..=MOST).contains(&products.len())
        && products.iter().all(|product| product.dims.k <= TERMS && in_tiles(&product.candidates(gpu)[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_in_pieces_has_adapters_in_pieces() {
        let whole = AdapterPart { first: 4, columns: 60, first_rank: 8, rank: 3, at: 100, scale: 0.5 };
        let [first, second] = [whole.within(0, 32), whole.within(32, 40)].map(|part| part.expect("a part"));
        assert_eq!(first, AdapterPart { columns: 28, ..whole });
        assert_eq!(second, AdapterPart { first: 0, columns: 32, at: 100 + 28 * 3, ..whole });
        assert_eq!(whole.within(64, 8), None);
        assert_eq!(whole.within(0, 4), None);
        assert_eq!(whole.within(0, 80), Some(whole));
    }
}
