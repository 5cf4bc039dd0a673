//! Linear layers of any weight type, with optional LoRA adapters inside (Hu et al., 2106.09685; PEFT's
//! meanings).

use super::{Arenas, Param, Pass, Scratch};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::dropout::{self, Mask};
use crate::kernels::matmul::{Dims, Epilogue, Form, Product};
use crate::kernels::{Mat, column_sum};

/// `y = x Wᵀ (+ bias) (+ lora_alpha / r · dropout(x) Aᵀ Bᵀ)`: one layer, or several that read the same x,
/// whose outputs stand side by side in y.
pub struct Linear {
    /// One matrix with the rows of all layers, or one for each layer where a joint one would exceed a
    /// binding.
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
    /// `(ranks, inputs)`: the adapters' A matrices, one after the other.
    pub a: Param,
    /// The adapters' outputs.
    pub parts: Vec<LoraPart>,
    /// The share of inputs dropped in training.
    pub dropout: f32,
}

/// Where one adapter's output goes.
pub struct LoraPart {
    /// `(outputs, rank)`
    pub b: Param,
    /// The first column of y.
    pub first: usize,
    /// The number of columns.
    pub outputs: usize,
    /// Its first row of A.
    pub first_rank: usize,
    /// Rank, r.
    pub rank: usize,
    /// lora_alpha / r.
    pub scale: f32,
    /// The layer's number among all adapters: the dropout stream.
    pub stream: u32,
}

impl Lora {
    /// The width of all adapters' inner activations.
    fn width(&self) -> usize {
        self.parts.iter().map(|part| part.rank).sum()
    }

    /// The dropout mask of each adapter's input; `None` when nothing is dropped.
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
    /// Records y `(count, outputs)` = the output of the layer for x `(count, inputs)`, + residual
    /// `(count, outputs)` where there is one.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        scratch: &Scratch,
        x: &Tensor,
        y: &Tensor,
        residual: Option<&Tensor>,
        count: usize,
    ) -> Result<()> {
        let (x_mat, y_mat) = (Mat::new(x, self.inputs), Mat::new(y, self.outputs));
        for part in &self.weights {
            let weight = part.matrix.in_arenas(pass.values);
            let bias = part.bias.as_ref().map(|b| b.in_arenas(pass.values));
            Product {
                form: Form::Nt,
                x: x_mat,
                w: Mat::new(&weight, self.inputs),
                y: y_mat.from(part.first),
                dims: Dims { m: count, n: part.outputs, k: self.inputs },
                epilogue: Epilogue { bias: bias.as_ref(), residual, ..Epilogue::SET },
                decoding: pass.decoding,
            }
            .record(rec)?;
        }
        let Some(lora) = self.lora.as_ref().filter(|_| pass.adapter) else { return Ok(()) };
        self.project_down(rec, lora, pass, scratch, x, count)?;
        for part in &lora.parts {
            let b = part.b.in_arenas(pass.values);
            Product {
                form: Form::Nt,
                x: Mat::new(&scratch.low, lora.width()).from(part.first_rank),
                w: Mat::new(&b, part.rank),
                y: y_mat.from(part.first),
                dims: Dims { m: count, n: part.outputs, k: part.rank },
                epilogue: Epilogue { alpha: part.scale, ..Epilogue::ADD },
                decoding: pass.decoding,
            }
            .record(rec)?;
        }
        Ok(())
    }

    /// scratch.low `(count, ranks)` = dropout(x) Aᵀ.
    fn project_down(
        &self,
        rec: &mut Recorder,
        lora: &Lora,
        pass: Pass,
        scratch: &Scratch,
        x: &Tensor,
        count: usize,
    ) -> Result<()> {
        let a = lora.a.in_arenas(pass.values);
        let down = |rec: &mut Recorder, input: &Tensor, first: usize, ranks: usize| {
            Product {
                form: Form::Nt,
                x: Mat::new(input, self.inputs),
                w: Mat::new(&a, self.inputs).from(first * self.inputs),
                y: Mat::new(&scratch.low, lora.width()).from(first),
                dims: Dims { m: count, n: ranks, k: self.inputs },
                epilogue: Epilogue::SET,
                decoding: pass.decoding,
            }
            .record(rec)
        };
        let Some(masks) = lora.masks(pass) else { return down(rec, x, 0, lora.width()) };
        for (part, mask) in lora.parts.iter().zip(masks) {
            dropout::forward(rec, mask, x, &scratch.dropped, count * self.inputs)?;
            down(rec, &scratch.dropped, part.first_rank, part.rank)?;
        }
        Ok(())
    }

    /// Records the gradients: those of parameters `+=` in `gradients`; dx, where it is wanted, `=`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        gradients: &Arenas,
        scratch: &Scratch,
        x: &Tensor,
        dy: &Tensor,
        dx: Option<&Tensor>,
        count: usize,
    ) -> Result<()> {
        for (i, part) in self.weights.iter().enumerate() {
            let dy = Mat::new(dy, self.outputs).from(part.first);
            if let Some(dx) = dx {
                let weight = part.matrix.in_arenas(pass.values);
                Product {
                    form: Form::Nn,
                    x: dy,
                    w: Mat::new(&weight, self.inputs),
                    y: Mat::new(dx, self.inputs),
                    dims: Dims { m: count, n: self.inputs, k: part.outputs },
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
                    dims: Dims { m: part.outputs, n: self.inputs, k: count },
                    epilogue: Epilogue::ADD,
                    decoding: false,
                }
                .record(rec)?;
            }
            if let Some(db) = part.bias.as_ref().and_then(|b| b.gradient(gradients)) {
                column_sum::plain(rec, dy, &db, count, part.outputs)?;
            }
        }
        match self.lora.as_ref().filter(|_| pass.adapter) {
            Some(lora) => self.backward_lora(rec, lora, pass, gradients, scratch, (x, dy, dx), count),
            None => Ok(()),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_lora(
        &self,
        rec: &mut Recorder,
        lora: &Lora,
        pass: Pass,
        gradients: &Arenas,
        scratch: &Scratch,
        (x, dy, dx): (&Tensor, &Tensor, Option<&Tensor>),
        count: usize,
    ) -> Result<()> {
        self.project_down(rec, lora, pass, scratch, x, count)?;
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
                    dims: Dims { m: part.outputs, n: part.rank, k: count },
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
                dims: Dims { m: count, n: part.rank, k: part.outputs },
                epilogue: Epilogue { alpha: part.scale, ..Epilogue::SET },
                decoding: false,
            }
            .record(rec)?;
        }
        let Some(masks) = lora.masks(pass) else {
            let all = (0, lora.width());
            self.backward_down(
                rec,
                lora,
                pass,
                gradients,
                scratch,
                x,
                all,
                dx.map(|dx| (dx, Epilogue::ADD)),
                count,
            )?;
            return Ok(());
        };
        for (part, mask) in lora.parts.iter().zip(masks) {
            let dropped = &scratch.dropped;
            dropout::forward(rec, mask, x, dropped, count * self.inputs)?;
            let (own, wanted) = ((part.first_rank, part.rank), dx.map(|_| (dropped, Epilogue::SET)));
            self.backward_down(rec, lora, pass, gradients, scratch, dropped, own, wanted, count)?;
            if let Some(dx) = dx {
                dropout::backward(rec, mask, dropped, dx, count * self.inputs)?;
            }
        }
        Ok(())
    }

    /// For `ranks` rows of A from `first` on: dA += dlowᵀ input, and the input's gradient = or += dlow A.
    #[allow(clippy::too_many_arguments)]
    fn backward_down(
        &self,
        rec: &mut Recorder,
        lora: &Lora,
        pass: Pass,
        gradients: &Arenas,
        scratch: &Scratch,
        input: &Tensor,
        (first, ranks): (usize, usize),
        dinput: Option<(&Tensor, Epilogue)>,
        count: usize,
    ) -> Result<()> {
        let dlow = Mat::new(&scratch.dlow, lora.width()).from(first);
        if let Some(da) = lora.a.gradient(gradients) {
            Product {
                form: Form::Tn,
                x: dlow,
                w: Mat::new(input, self.inputs),
                y: Mat::new(&da, self.inputs).from(first * self.inputs),
                dims: Dims { m: ranks, n: self.inputs, k: count },
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
            dims: Dims { m: count, n: self.inputs, k: ranks },
            epilogue,
            decoding: false,
        }
        .record(rec)
    }
}
