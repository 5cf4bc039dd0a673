//! Linear layers of any weight type, with optional LoRA adapters (Hu et al., 2106.09685; parameters as in
//! PEFT).

use super::{Backward, Forward, Param, Pass};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::dropout::{self, Mask};
use crate::kernels::matmul::{Dims, Epilogue, Form, Product};
use crate::kernels::{Mat, Out, column_sum};

/// `y = x Wᵀ (+ bias) (+ lora_alpha / r · dropout(x) Aᵀ Bᵀ)`: one layer, or several that read the same x
/// and whose outputs are concatenated in y.
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
pub struct Lora {
    /// `(ranks, inputs)`: the adapters' A matrices, concatenated.
    pub a: Param,
    /// One part for each adapter.
    pub parts: Vec<LoraPart>,
    /// Dropout probability of the adapters' inputs in training.
    pub dropout: f32,
}

/// One adapter's B matrix, its rows of A, and the columns of y that its output is added to.
pub struct LoraPart {
    /// `(outputs, rank)`
    pub b: Param,
    /// The first column of y.
    pub first: usize,
    /// The number of columns.
    pub outputs: usize,
    /// Index of the adapter's first row of A.
    pub first_rank: usize,
    /// Rank, r.
    pub rank: usize,
    /// lora_alpha / r.
    pub scale: f32,
    /// The layer's number among all adapters: the dropout stream.
    pub stream: u32,
}

impl Lora {
    /// The total width of the adapters' inner activations.
    fn width(&self) -> usize {
        self.parts.iter().map(|part| part.rank).sum()
    }

    /// The dropout mask of each adapter's input; `None` without dropout.
    fn masks(&self, pass: Pass) -> Option<Vec<Mask>> {
        let counters = pass.dropout.filter(|_| self.dropout > 0.0)?;
        let mask = |part: &LoraPart| Mask {
            p: self.dropout,
            stream: part.stream,
            step: counters.step,
            seed: counters.seed,
        };
        Some(self.parts.iter().map(mask).collect())
    }
}

impl Linear {
    /// Records out `(rows, outputs)` = the layer's output for x `(rows, inputs)`.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        forward: Forward,
        x: &Tensor,
        Out { y, residual }: Out,
    ) -> Result<()> {
        let Forward { pass, scratch, rows, .. } = forward;
        let (x_mat, y_mat) = (Mat::new(x, self.inputs), Mat::new(y, self.outputs));
        for part in &self.weights {
            let weight = part.matrix.in_arenas(pass.values);
            let bias = part.bias.as_ref().map(|b| b.in_arenas(pass.values));
            Product {
                form: Form::Nt,
                x: x_mat,
                w: Mat::new(&weight, self.inputs),
                y: y_mat.from(part.first),
                dims: Dims { m: rows, n: part.outputs, k: self.inputs },
                epilogue: Epilogue { bias: bias.as_ref(), residual, ..Epilogue::SET },
                decoding: pass.decoding,
            }
            .record(rec)?;
        }
        let Some(lora) = self.lora.as_ref().filter(|_| pass.adapter) else { return Ok(()) };
        self.project_down(rec, forward, lora, x)?;
        for part in &lora.parts {
            let b = part.b.in_arenas(pass.values);
            Product {
                form: Form::Nt,
                x: Mat::new(&scratch.low, lora.width()).from(part.first_rank),
                w: Mat::new(&b, part.rank),
                y: y_mat.from(part.first),
                dims: Dims { m: rows, n: part.outputs, k: part.rank },
                epilogue: Epilogue { alpha: part.scale, ..Epilogue::ADD },
                decoding: pass.decoding,
            }
            .record(rec)?;
        }
        Ok(())
    }

    /// scratch.low `(rows, ranks)` = dropout(x) Aᵀ.
    fn project_down(&self, rec: &mut Recorder, forward: Forward, lora: &Lora, x: &Tensor) -> Result<()> {
        let Forward { pass, scratch, rows, .. } = forward;
        let a = lora.a.in_arenas(pass.values);
        let down = |rec: &mut Recorder, input: &Tensor, first: usize, ranks: usize| {
            Product {
                form: Form::Nt,
                x: Mat::new(input, self.inputs),
                w: Mat::new(&a, self.inputs).from(first * self.inputs),
                y: Mat::new(&scratch.low, lora.width()).from(first),
                dims: Dims { m: rows, n: ranks, k: self.inputs },
                epilogue: Epilogue::SET,
                decoding: pass.decoding,
            }
            .record(rec)
        };
        let Some(masks) = lora.masks(pass) else { return down(rec, x, 0, lora.width()) };
        for (part, mask) in lora.parts.iter().zip(masks) {
            dropout::forward(rec, mask, x, &scratch.dropped, rows * self.inputs)?;
            down(rec, &scratch.dropped, part.first_rank, part.rank)?;
        }
        Ok(())
    }

    /// Records the gradients: those of parameters are added to `gradients`; dx, if given, is overwritten.
    pub fn backward(
        &self,
        rec: &mut Recorder,
        backward: Backward,
        x: &Tensor,
        dy: &Tensor,
        dx: Option<&Tensor>,
    ) -> Result<()> {
        let Backward { forward: Forward { pass, rows, .. }, gradients } = backward;
        for (i, part) in self.weights.iter().enumerate() {
            let dy = Mat::new(dy, self.outputs).from(part.first);
            if let Some(dx) = dx {
                let weight = part.matrix.in_arenas(pass.values);
                Product {
                    form: Form::Nn,
                    x: dy,
                    w: Mat::new(&weight, self.inputs),
                    y: Mat::new(dx, self.inputs),
                    dims: Dims { m: rows, n: self.inputs, k: part.outputs },
                    epilogue: if i == 0 { Epilogue::SET } else { Epilogue::ADD },
                    decoding: false,
                }
                .record(rec)?;
            }
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
        match self.lora.as_ref().filter(|_| pass.adapter) {
            Some(lora) => self.backward_lora(rec, backward, lora, x, dy, dx),
            None => Ok(()),
        }
    }

    fn backward_lora(
        &self,
        rec: &mut Recorder,
        backward: Backward,
        lora: &Lora,
        x: &Tensor,
        dy: &Tensor,
        dx: Option<&Tensor>,
    ) -> Result<()> {
        let Backward { forward: Forward { pass, scratch, rows, .. }, gradients } = backward;
        self.project_down(rec, backward.forward, lora, x)?;
        for part in &lora.parts {
            let of_part = |low| Mat::new(low, lora.width()).from(part.first_rank);
            let dy = Mat::new(dy, self.outputs).from(part.first);
            let b = part.b.in_arenas(pass.values);
            if let Some(db) = part.b.gradient(gradients) {
                Product {
                    form: Form::Tn,
                    x: dy,
                    w: of_part(&scratch.low),
                    y: Mat::new(&db, part.rank),
                    dims: Dims { m: part.outputs, n: part.rank, k: rows },
                    epilogue: Epilogue { alpha: part.scale, ..Epilogue::ADD },
                    decoding: false,
                }
                .record(rec)?;
            }
            Product {
                form: Form::Nn,
                x: dy,
                w: Mat::new(&b, part.rank),
                y: of_part(&scratch.dlow),
                dims: Dims { m: rows, n: part.rank, k: part.outputs },
                epilogue: Epilogue { alpha: part.scale, ..Epilogue::SET },
                decoding: false,
            }
            .record(rec)?;
        }
        let Some(masks) = lora.masks(pass) else {
            let dx = dx.map(|dx| (dx, Epilogue::ADD));
            return self.backward_down(rec, backward, lora, (0, lora.width()), x, dx);
        };
        for (part, mask) in lora.parts.iter().zip(masks) {
            let dropped = &scratch.dropped;
            dropout::forward(rec, mask, x, dropped, rows * self.inputs)?;
            let (own, wanted) = ((part.first_rank, part.rank), dx.map(|_| (dropped, Epilogue::SET)));
            self.backward_down(rec, backward, lora, own, dropped, wanted)?;
            if let Some(dx) = dx {
                dropout::backward(rec, mask, dropped, dx, rows * self.inputs)?;
            }
        }
        Ok(())
    }

    /// For `ranks` rows of A from `first` on: dA += dlowᵀ input, and the input's gradient = or += dlow A.
    fn backward_down(
        &self,
        rec: &mut Recorder,
        Backward { forward, gradients }: Backward,
        lora: &Lora,
        (first, ranks): (usize, usize),
        input: &Tensor,
        dinput: Option<(&Tensor, Epilogue)>,
    ) -> Result<()> {
        let Forward { pass, scratch, rows, .. } = forward;
        let dlow = Mat::new(&scratch.dlow, lora.width()).from(first);
        if let Some(da) = lora.a.gradient(gradients) {
            Product {
                form: Form::Tn,
                x: dlow,
                w: Mat::new(input, self.inputs),
                y: Mat::new(&da, self.inputs).from(first * self.inputs),
                dims: Dims { m: ranks, n: self.inputs, k: rows },
                epilogue: Epilogue::ADD,
                decoding: false,
            }
            .record(rec)?;
        }
        let Some((dinput, epilogue)) = dinput else { return Ok(()) };
        let a = lora.a.in_arenas(pass.values);
        Product {
            form: Form::Nn,
            x: dlow,
            w: Mat::new(&a, self.inputs).from(first * self.inputs),
            y: Mat::new(dinput, self.inputs),
            dims: Dims { m: rows, n: self.inputs, k: ranks },
            epilogue,
            decoding: false,
        }
        .record(rec)
    }
}
