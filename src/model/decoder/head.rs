//! The end of a decoder's forward pass and the beginning of its backward pass: the last norm and the head, on
//! the rows that are asked for, in chunks of logits.

use super::Decoder;
use crate::Result;
use crate::data::packing::{Group, Packed};
use crate::gpu::{Gpu, Purpose, Recorder, Tensor};
use crate::kernels::gather::{self, Reading, Rows};
use crate::kernels::log_prob::{self, Chunk};
use crate::kernels::{Out, row_scale, soft_cap};
use crate::model::Capacity;
use crate::model::workspace::Workspace;
use crate::nn::{Arenas, Backward, Input, Param, Pass, Weight};

impl Decoder {
    /// Records gathering the hidden states `(rows, D)` whose indices are in `source` (every `stride`-th of
    /// its words), and the last norm on them.
    pub(super) fn gather_hidden(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        ws: &Workspace,
        hidden: &Tensor,
        source: &Tensor,
        (rows, stride): (usize, usize),
    ) -> Result<()> {
        let width = self.config.width;
        let reading = Reading::plain(rows, width, stride);
        gather::forward(rec, source, Rows::whole(hidden, width), &ws.hidden, reading)?;
        let forward = self.layers(pass, ws, rows);
        self.norm.forward(rec, forward, &ws.hidden, Out::to(&ws.normed), &ws.hidden_stats)
    }

    /// Records the logits of `count` gathered rows from `first` on.
    pub(super) fn head_logits(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        ws: &Workspace,
        first: usize,
        count: usize,
    ) -> Result<()> {
        let width = self.config.width;
        let x = ws.normed.slice(first * width, count * width);
        let input = Input { x: &x, low: &ws.scratch.head_low };
        self.head.forward(rec, self.layers(pass, ws, count), input, Out::to(&ws.logits))?;
        match self.logit_cap() {
            Some(cap) => soft_cap::forward(rec, &ws.logits, count * self.config.logits(), cap),
            None => Ok(()),
        }
    }

    /// Records logits `(rows, V)` into the workspace's chunk for the rows whose hidden states `source` names.
    /// This is the last part of a sampler's forward pass. `rows` must fit one chunk.
    pub(crate) fn next_logits<'a>(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        ws: &'a Workspace,
        hidden: &Tensor,
        source: &Tensor,
        rows: usize,
    ) -> Result<&'a Tensor> {
        self.gather_hidden(rec, pass, ws, hidden, source, (rows, 1))?;
        self.head_logits(rec, pass, ws, 0, rows)?;
        Ok(&ws.logits)
    }

    /// The soft cap on a language model's logits; a judge's logits have none.
    fn logit_cap(&self) -> Option<f32> {
        self.config.logit_cap.filter(|_| self.config.classes.is_none())
    }

    pub(super) fn chunks(&self, ws: &Workspace) -> Vec<Chunk> {
        let (total, vocab, cap) = (ws.batch.rows, self.config.logits(), self.logit_cap());
        (0..total)
            .step_by(ws.chunk)
            .map(|first| Chunk { rows: ws.chunk.min(total - first), first, total, vocab, cap })
            .collect()
    }

    /// Whether the head's weights have no gradient. The gradient of the head's input is then each row's
    /// coefficient times the gradient of the row's log-prob. The forward pass can compute the latter while it
    /// has the logits, so that logits are computed once instead of twice.
    pub(super) fn head_is_frozen(&self) -> bool {
        let frozen = |weight: &Weight| matches!(weight.matrix, Param::Frozen(_));
        self.head.lora.is_none() && self.head.weights.iter().all(frozen)
    }

    /// Records the head's backward pass for one chunk: from the gradient of its logits to the gradient of its
    /// part of `normed`, and to the gradients of the head's weights.
    pub(super) fn head_backward(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        gradients: &Arenas,
        ws: &Workspace,
        chunk: Chunk,
    ) -> Result<()> {
        let width = self.config.width;
        let rows = |t: &Tensor| t.slice(chunk.first * width, chunk.rows * width);
        let (x, dx) = (rows(&ws.normed), rows(&ws.dnormed));
        let backward = Backward { forward: self.layers(pass, ws, chunk.rows), gradients };
        self.head.backward_input(rec, backward, &ws.scratch.head_low, &ws.logits, Some(&dx))?;
        self.head.backward_weights(rec, backward, &x, &ws.logits)
    }

    /// Records the backward pass from the coefficients to the gradient of the residual stream, one chunk of
    /// logits after another.
    pub(super) fn backward_head(
        &self,
        rec: &mut Recorder,
        pass: Pass,
        gradients: &Arenas,
        ws: &Workspace,
    ) -> Result<()> {
        let width = self.config.width;
        if self.head_is_frozen() {
            row_scale::forward(rec, &ws.coefficient, &ws.dnormed, (ws.batch.rows, width))?;
        } else {
            // The buffer still has the forward pass's logits of the last chunk, so that one comes first. The
            // others' are computed again.
            for chunk in self.chunks(ws).into_iter().rev() {
                if chunk.first + chunk.rows < ws.batch.rows {
                    self.head_logits(rec, pass, ws, chunk.first, chunk.rows)?;
                }
                let coefficient = Some(&ws.coefficient);
                log_prob::backward(rec, &ws.predict, &ws.stats, coefficient, &ws.logits, chunk)?;
                self.head_backward(rec, pass, gradients, ws, chunk)?;
            }
        }
        let backward = Backward { forward: self.layers(pass, ws, ws.batch.rows), gradients };
        let kept = (&ws.hidden, &ws.hidden_stats);
        self.norm.backward(rec, backward, kept, (&ws.dnormed, &ws.dhidden), false, None)?;
        ws.dstream.clear(rec);
        gather::backward(
            rec,
            &ws.source_lists,
            &ws.dhidden,
            Rows::whole(&ws.dstream, width),
            ws.batch.distinct_sources,
            (width, 1.0),
        )
    }

    /// Logits `(T, V)` of the plain sequence `ids`. For tests and small inputs, because all logits are copied
    /// to the host.
    pub async fn logits(&self, gpu: &Gpu, pass: Pass<'_>, ids: &[u32]) -> Result<Vec<f32>> {
        let packed = Packed::new(&[Group { prompt: ids, responses: Vec::new() }]);
        let capacity = Capacity { rows: ids.len(), ..Capacity::covering([&packed].into_iter(), None) };
        let mut ws = self.workspace(gpu, capacity)?;
        let mut rec = Recorder::new(gpu);
        ws.load(&mut rec, &packed)?;
        let every: Vec<u32> = (0..ids.len() as u32).collect();
        let every = Tensor::from_u32(gpu, Purpose::Staging, "rows", &every)?;
        let hidden = self.hidden(&mut rec, pass, &ws, None)?;
        self.gather_hidden(&mut rec, pass, &ws, hidden, &every, (ids.len(), 1))?;
        let mut all = Vec::new();
        for first in (0..ids.len()).step_by(ws.chunk) {
            let rows = ws.chunk.min(ids.len() - first);
            self.head_logits(&mut rec, pass, &ws, first, rows)?;
            rec.submit();
            all.extend(ws.logits.slice(0, rows * self.config.logits()).read_f32(gpu).await?);
        }
        Ok(all)
    }
}
