//! A linear layer of any weight type, with an optional LoRA adapter inside (Hu et al., 2106.09685; PEFT's meanings).

use super::{Arenas, Param, Pass, Scratch};
use crate::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::column_sum;
use crate::kernels::dropout::{self, Mask};
use crate::kernels::matmul::{self, Dims, Epilogue, Form};

/// `y = x Wᵀ (+ bias) (+ lora_alpha / r · dropout(x) Aᵀ Bᵀ)`.
pub struct Linear {
    /// `(outputs, inputs)`
    pub weight: Param,
    /// `(outputs)`
    pub bias: Option<Param>,
    /// The adapter, if this layer has one.
    pub lora: Option<Lora>,
    /// Width of x.
    pub inputs: usize,
    /// Width of y.
    pub outputs: usize,
}

/// A low-rank adapter of one layer.
pub struct Lora {
    /// `(rank, inputs)`
    pub a: Param,
    /// `(outputs, rank)`
    pub b: Param,
    /// Rank, r.
    pub rank: usize,
    /// lora_alpha / r.
    pub scale: f32,
    /// The share of inputs dropped in training.
    pub dropout: f32,
    /// The layer's number among all adapters: the dropout stream.
    pub stream: u32,
}

impl Linear {
    /// Records y `(count, outputs)` = the layer of x `(count, inputs)`.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        scratch: &Scratch,
        x: &Tensor,
        y: &Tensor,
        count: usize,
    ) -> Result<()> {
        let weight = self.weight.in_arenas(pass.values);
        let bias = self.bias.as_ref().map(|b| b.in_arenas(pass.values));
        let dims = Dims { m: count, n: self.outputs, k: self.inputs };
        let epilogue = Epilogue { bias: bias.as_ref(), ..Epilogue::SET };
        matmul::forward(rec, Form::Nt, x, &weight, y, dims, epilogue)?;
        let Some(lora) = self.lora.as_ref().filter(|_| pass.adapter) else { return Ok(()) };
        self.project_down(rec, lora, pass, scratch, x, count)?;
        let b = lora.b.in_arenas(pass.values);
        let up = Dims { m: count, n: self.outputs, k: lora.rank };
        let epilogue = Epilogue { alpha: lora.scale, ..Epilogue::ADD };
        matmul::forward(rec, Form::Nt, &scratch.low, &b, y, up, epilogue)
    }

    /// scratch.low `(count, rank)` = dropout(x) Aᵀ. Returns what A multiplied: x, or its dropped-out copy, and the mask.
    fn project_down(
        &self,
        rec: &mut Recorder,
        lora: &Lora,
        pass: Pass,
        scratch: &Scratch,
        x: &Tensor,
        count: usize,
    ) -> Result<(Tensor, Option<Mask>)> {
        let counters = pass.dropout.filter(|_| lora.dropout > 0.0);
        let mask =
            counters.map(|d| Mask { p: lora.dropout, stream: lora.stream, step: d.step, seed: d.seed });
        let input = match mask {
            None => x.clone(),
            Some(mask) => {
                dropout::forward(rec, mask, x, &scratch.dropped, count * self.inputs)?;
                scratch.dropped.clone()
            }
        };
        let a = lora.a.in_arenas(pass.values);
        let down = Dims { m: count, n: lora.rank, k: self.inputs };
        matmul::forward(rec, Form::Nt, &input, &a, &scratch.low, down, Epilogue::SET)?;
        Ok((input, mask))
    }

    /// Records the gradients: parameters' `+=` in `gradients`; dx, where wanted, `=` or `+=` (with `accumulate`).
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
        accumulate: bool,
    ) -> Result<()> {
        if let Some(dx) = dx {
            let weight = self.weight.in_arenas(pass.values);
            let dims = Dims { m: count, n: self.inputs, k: self.outputs };
            let epilogue = if accumulate { Epilogue::ADD } else { Epilogue::SET };
            matmul::forward(rec, Form::Nn, dy, &weight, dx, dims, epilogue)?;
        }
        if let Some(dw) = self.weight.gradient(gradients) {
            let dims = Dims { m: self.outputs, n: self.inputs, k: count };
            matmul::forward(rec, Form::Tn, dy, x, &dw, dims, Epilogue::ADD)?;
        }
        if let Some(db) = self.bias.as_ref().and_then(|b| b.gradient(gradients)) {
            column_sum::plain(rec, dy, &db, count, self.outputs)?;
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
        let (a, b) = (lora.a.in_arenas(pass.values), lora.b.in_arenas(pass.values));
        let (input, mask) = self.project_down(rec, lora, pass, scratch, x, count)?;
        let scaled = Epilogue { alpha: lora.scale, ..Epilogue::ADD };
        if let Some(db) = lora.b.gradient(gradients) {
            let dims = Dims { m: self.outputs, n: lora.rank, k: count };
            matmul::forward(rec, Form::Tn, dy, &scratch.low, &db, dims, scaled)?;
        }
        let dims = Dims { m: count, n: lora.rank, k: self.outputs };
        let epilogue = Epilogue { alpha: lora.scale, ..Epilogue::SET };
        matmul::forward(rec, Form::Nn, dy, &b, &scratch.dlow, dims, epilogue)?;
        if let Some(da) = lora.a.gradient(gradients) {
            let dims = Dims { m: lora.rank, n: self.inputs, k: count };
            matmul::forward(rec, Form::Tn, &scratch.dlow, &input, &da, dims, Epilogue::ADD)?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let dims = Dims { m: count, n: self.inputs, k: lora.rank };
        match mask {
            None => matmul::forward(rec, Form::Nn, &scratch.dlow, &a, dx, dims, Epilogue::ADD),
            Some(mask) => {
                matmul::forward(rec, Form::Nn, &scratch.dlow, &a, &scratch.dropped, dims, Epilogue::SET)?;
                dropout::backward(rec, mask, &scratch.dropped, dx, count * self.inputs)
            }
        }
    }
}
