//! Linear layers of any weight type, with optional LoRA adapters (Hu et al., 2106.09685; parameters as in
//! PEFT).

use super::{Backward, Forward, Param, Pass};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::dropout::{self, Mask};
use crate::kernels::matmul::{AdapterPart, Adapters, Dims, Epilogue, Form, Product};
use crate::kernels::{Mat, Out, column_sum};

/// `y = x Wᵀ (+ bias) (+ lora_alpha / r · dropout(x) Aᵀ Bᵀ)`: one layer, or several that read the same x
/// and whose outputs are concatenated in y.
#[derive(Clone)]
pub struct Linear {
    /// One matrix with the rows of all layers, or one for each layer if a joint one would exceed a binding.
    pub weights: Vec<Weight>,
    /// The adapters of the layers that have one.
    pub lora: Option<Lora>,
    /// Width of x.
    pub inputs: usize,
    /// Width of y.
    pub outputs: usize,
}

/// The weights for a range of columns of y.
#[derive(Clone)]
pub struct Weight {
    /// `(outputs, inputs)`
    pub matrix: Param,
    /// `(outputs)`
    pub bias: Option<Param>,
    /// The first column.
    pub first: usize,
    /// The number of columns.
    pub outputs: usize,
}

/// Low-rank adapters on one input.
#[derive(Clone)]
pub struct Lora {
    /// `(ranks, inputs)`: the adapters' A matrices, concatenated.
    pub a: Param,
    /// The adapters' B matrices, `(columns, rank)` each, concatenated.
    pub b: Param,
    /// The adapters, with the columns of y that they are added to and their places in `b`; the factor is
    /// lora_alpha / r.
    pub parts: Vec<AdapterPart>,
    /// Dropout probability of the adapters' inputs in training.
    pub dropout: f32,
    /// The number of the first one among all adapters of the model: its dropout stream. The others follow.
    pub first_stream: u32,
}

/// A layer's input, and the tensor for the inner activations of its adapters.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `(rows, inputs)`
    pub x: &'a Tensor,
    /// `(rows, ranks)`: the forward pass writes it, the backward pass reads it; empty without adapters.
    pub low: &'a Tensor,
}

impl Lora {
    /// The sum of the adapters' ranks: the width of their inner activations.
    pub fn ranks(&self) -> usize {
        self.parts.iter().map(|part| part.rank).sum()
    }

    /// The adapters with their inner activations (or the gradient of these), and the tensor of their B (or
    /// its gradient).
    fn adapters<'a>(&'a self, low: &'a Tensor, matrices: &'a Tensor) -> Adapters<'a> {
        Adapters { low: Mat::new(low, self.ranks()), matrices, parts: &self.parts }
    }

    /// All A, `(ranks, inputs)`, as the matrix of one adapter.
    fn joint_a(&self, inputs: usize) -> AdapterPart {
        AdapterPart { first: 0, columns: inputs, first_rank: 0, rank: self.ranks(), at: 0, scale: 1.0 }
    }

    /// The dropout mask of each adapter's input; `None` without dropout.
    fn masks(&self, pass: Pass) -> Option<Vec<Mask>> {
        let counters = pass.dropout.filter(|_| self.dropout > 0.0)?;
        let mask = |i| Mask {
            p: self.dropout,
            stream: self.first_stream + i as u32,
            step: counters.step,
            seed: counters.seed,
        };
        Some((0..self.parts.len()).map(mask).collect())
    }
}

impl Linear {
    /// Records out `(rows, outputs)` = the layer's output.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        forward: Forward,
        Input { x, low }: Input,
        Out { y, residual }: Out,
    ) -> Result<()> {
        let Forward { pass, rows, .. } = forward;
        self.project_down(rec, forward, Input { x, low })?;
        let lora = self.lora.as_ref().filter(|_| pass.adapter);
        let b = lora.map(|lora| lora.b.in_arenas(pass.values));
        for part in &self.weights {
            let weight = part.matrix.in_arenas(pass.values);
            let bias = part.bias.as_ref().map(|b| b.in_arenas(pass.values));
            let own: Vec<AdapterPart> = lora
                .iter()
                .flat_map(|lora| &lora.parts)
                .filter_map(|adapter| adapter.within(part.first, part.outputs))
                .collect();
            let of = |(lora, b)| Adapters { parts: &own, ..Lora::adapters(lora, low, b) };
            let adapters = lora.zip(b.as_ref()).filter(|_| !own.is_empty()).map(of);
            Product {
                form: Form::Nt,
                x: Mat::new(x, self.inputs),
                w: Mat::new(&weight, self.inputs),
                y: Mat::new(y, self.outputs).from(part.first),
                dims: Dims { m: rows, n: part.outputs, k: self.inputs },
                epilogue: Epilogue { bias: bias.as_ref(), residual, adapters, ..Epilogue::SET },
                decoding: pass.decoding,
            }
            .record(rec)?;
        }
        Ok(())
    }

    /// Records low `(rows, ranks)` = dropout(x) Aᵀ, if there are adapters and they are on.
    pub fn project_down(&self, rec: &mut Recorder, forward: Forward, Input { x, low }: Input) -> Result<()> {
        let Forward { pass, scratch, rows, .. } = forward;
        let Some(lora) = self.lora.as_ref().filter(|_| pass.adapter) else { return Ok(()) };
        let a = lora.a.in_arenas(pass.values);
        let down = |rec: &mut Recorder, input: &Tensor, first: usize, ranks: usize| {
            Product {
                form: Form::Nt,
                x: Mat::new(input, self.inputs),
                w: Mat::new(&a, self.inputs).from(first * self.inputs),
                y: Mat::new(low, lora.ranks()).from(first),
                dims: Dims { m: rows, n: ranks, k: self.inputs },
                epilogue: Epilogue::SET,
                decoding: pass.decoding,
            }
            .record(rec)
        };
        let Some(masks) = lora.masks(pass) else { return down(rec, x, 0, lora.ranks()) };
        for (part, mask) in lora.parts.iter().zip(masks) {
            dropout::forward(rec, mask, x, &scratch.dropped, rows * self.inputs)?;
            down(rec, &scratch.dropped, part.first_rank, part.rank)?;
        }
        Ok(())
    }

    /// Records the first part of the backward pass, which does not read x: dx = the gradient of x, if it is
    /// given. For the adapters, the gradients of B are added to `gradients`, and those of the inner
    /// activations go to scratch.dlow. [`Linear::backward_weights`] must follow before another layer's
    /// backward pass.
    pub fn backward_input(
        &self,
        rec: &mut Recorder,
        backward: Backward,
        low: &Tensor,
        dy: &Tensor,
        dx: Option<&Tensor>,
    ) -> Result<()> {
        let Backward { forward: Forward { pass, scratch, rows, .. }, gradients } = backward;
        let lora = self.lora.as_ref().filter(|_| pass.adapter);
        if let Some(lora) = lora {
            let (dy, b) = (Mat::new(dy, self.outputs), lora.b.in_arenas(pass.values));
            if let Some(db) = lora.b.gradient(gradients) {
                lora.adapters(low, &db).backward_matrices(rec, dy, rows)?;
            }
            lora.adapters(&scratch.dlow, &b).backward_low(rec, dy, rows)?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let a = lora.map(|lora| lora.a.in_arenas(pass.values));
        let masks = lora.and_then(|lora| lora.masks(pass));
        // Without dropout, the input is the same for all adapters, and their A are one matrix.
        let joint = lora.map(|lora| [lora.joint_a(self.inputs)]);
        let joint = match (lora, &a, &joint) {
            (Some(lora), Some(a), Some(parts)) if masks.is_none() => {
                Some(Adapters { parts, ..lora.adapters(&scratch.dlow, a) })
            }
            _ => None,
        };
        for (i, part) in self.weights.iter().enumerate() {
            let weight = part.matrix.in_arenas(pass.values);
            let adapters = joint.filter(|_| i + 1 == self.weights.len());
            let epilogue = Epilogue { accumulate: i > 0, adapters, ..Epilogue::SET };
            Product {
                form: Form::Nn,
                x: Mat::new(dy, self.outputs).from(part.first),
                w: Mat::new(&weight, self.inputs),
                y: Mat::new(dx, self.inputs),
                dims: Dims { m: rows, n: self.inputs, k: part.outputs },
                epilogue,
                decoding: false,
            }
            .record(rec)?;
        }
        let (Some(lora), Some(a), Some(masks)) = (lora, a, masks) else { return Ok(()) };
        for (part, mask) in lora.parts.iter().zip(masks) {
            let dropped = &scratch.dropped;
            Product {
                form: Form::Nn,
                x: Mat::new(&scratch.dlow, lora.ranks()).from(part.first_rank),
                w: Mat::new(&a, self.inputs).from(part.first_rank * self.inputs),
                y: Mat::new(dropped, self.inputs),
                dims: Dims { m: rows, n: self.inputs, k: part.rank },
                epilogue: Epilogue::SET,
                decoding: false,
            }
            .record(rec)?;
            dropout::backward(rec, mask, dropped, dx, rows * self.inputs)?;
        }
        Ok(())
    }

    /// Records the second part of the backward pass: the gradients of the weights, biases and A are added to
    /// `gradients`.
    pub fn backward_weights(
        &self,
        rec: &mut Recorder,
        Backward { forward, gradients }: Backward,
        x: &Tensor,
        dy: &Tensor,
    ) -> Result<()> {
        let Forward { pass, scratch, rows, .. } = forward;
        for part in &self.weights {
            let dy = Mat::new(dy, self.outputs).from(part.first);
            if let Some(dw) = part.matrix.gradient(gradients) {
                Product {
                    form: Form::Tn,
                    x: dy,
                    w: Mat::new(x, self.inputs),
                    y: Mat::new(&dw, self.inputs),
                    dims: Dims { m: part.outputs, n: self.inputs, k: rows },
                    epilogue: Epilogue::ADD,
                    decoding: false,
                }
                .record(rec)?;
            }
            if let Some(db) = part.bias.as_ref().and_then(|b| b.gradient(gradients)) {
                column_sum::plain(rec, dy, &db, rows, part.outputs)?;
            }
        }
        let Some(lora) = self.lora.as_ref().filter(|_| pass.adapter) else { return Ok(()) };
        let Some(da) = lora.a.gradient(gradients) else { return Ok(()) };
        let down = |rec: &mut Recorder, first: usize, ranks: usize, input: &Tensor| {
            Product {
                form: Form::Tn,
                x: Mat::new(&scratch.dlow, lora.ranks()).from(first),
                w: Mat::new(input, self.inputs),
                y: Mat::new(&da, self.inputs).from(first * self.inputs),
                dims: Dims { m: ranks, n: self.inputs, k: rows },
                epilogue: Epilogue::ADD,
                decoding: false,
            }
            .record(rec)
        };
        let Some(masks) = lora.masks(pass) else { return down(rec, 0, lora.ranks(), x) };
        for (part, mask) in lora.parts.iter().zip(masks) {
            dropout::forward(rec, mask, x, &scratch.dropped, rows * self.inputs)?;
            down(rec, part.first_rank, part.rank, &scratch.dropped)?;
        }
        Ok(())
    }
}
