//! A whole small Llama in f64, with its gradient, built from the kernels' references.
//!
//! Weights have their Hugging Face names, so that a test can compare tensor by tensor. Optional parts are
//! used if their tensors are there: biases and LoRA on any projection (see [`Projection`]), and
//! `lm_head.weight`. Without `lm_head.weight` the output head is the embedding. The input is a packed
//! [`Batch`], which [`pack`] makes.

use super::activation::Function::Silu;
pub use super::linear::Tensors;
use super::linear::{Projection, accumulate, tensor};
use super::{activation, add, attention, gather, log_prob, matmul, rms_norm, rope, sequence_sum};

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Sizes and constants of the decoder.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of blocks.
    pub layers: usize,
    /// Width D of the residual stream.
    pub width: usize,
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads G.
    pub kv_heads: usize,
    /// Size of one head; H · head_dim need not be D.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ff: usize,
    /// Vocabulary V.
    pub vocab: usize,
    /// Added to the mean square in every norm.
    pub eps: f64,
    /// lora_alpha / r.
    pub lora_scale: f64,
}

/// The decoder: its shape, its weights, and the (P, head_dim/2) table of [`rope::table`].
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// Sizes.
    pub shape: Shape,
    /// Weights by name.
    pub weights: &'a Tensors,
    /// (cos, sin) pairs for every position of the batch.
    pub table: &'a [f64],
}

/// One row of packed tokens, and the predictions in it.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids (T).
    pub tokens: Vec<u32>,
    /// Positions (T); every response of a group continues from the end of the prompt.
    pub positions: Vec<u32>,
    /// The keys that every token sees (T): `[prefix_start, prefix_end, segment_start, segment_end)`.
    pub ranges: Vec<[u32; 4]>,
    /// The tokens (R) whose outputs predict a response token; the prompt's last token occurs once for each
    /// response.
    pub rows: Vec<u32>,
    /// The token that each row predicts (R).
    pub targets: Vec<u32>,
    /// The rows [start, end) of each response.
    pub spans: Vec<[u32; 2]>,
}

/// Packs groups of a prompt and its responses: `[prompt][y_1]..[y_n]`, the prompt stored once.
///
/// A plain sequence is a group with one response. The prompt must not be empty: its last token predicts the
/// first one of every response.
pub fn pack(groups: &[(&[u32], &[&[u32]])]) -> Batch {
    let mut b = Batch::default();
    for (prompt, responses) in groups {
        assert!(!prompt.is_empty(), "a prompt needs at least one token");
        let start = b.tokens.len() as u32;
        let end = start + prompt.len() as u32;
        b.tokens.extend_from_slice(prompt);
        b.positions.extend(0..end - start);
        b.ranges.extend((start..end).map(|t| [start, start, start, t + 1]));
        for response in *responses {
            let from = b.tokens.len() as u32;
            let to = from + response.len() as u32;
            let first_row = b.rows.len() as u32;
            b.tokens.extend_from_slice(response);
            b.positions.extend((from..to).map(|t| end - start + t - from));
            b.ranges.extend((from..to).map(|t| [start, end, from, t + 1]));
            b.rows.extend((from..to).map(|t| if t == from { end - 1 } else { t - 1 }));
            b.targets.extend_from_slice(response);
            b.spans.push([first_row, b.rows.len() as u32]);
        }
    }
    b
}

/// Values that one block keeps for its backward pass; all are (T, ..).
#[derive(Clone, Debug)]
struct BlockSaved {
    x: Vec<f64>,
    normed: Vec<f64>,
    rstd: Vec<f64>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    o: Vec<f64>,
    lse: Vec<f64>,
    mid: Vec<f64>,
    mid_normed: Vec<f64>,
    mid_rstd: Vec<f64>,
    gate: Vec<f64>,
    up: Vec<f64>,
    act: Vec<f64>,
}

/// The results of [`forward`], and the values that [`backward`] needs from it.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Logits of the batch's rows (R, V).
    pub logits: Vec<f64>,
    /// Log-prob of the target, log-sum-exp and entropy of every row.
    pub token: log_prob::Rows,
    /// The residual stream: the embedding, then the output of every block (layers + 1 of (T, D)).
    pub hidden: Vec<Vec<f64>>,
    blocks: Vec<BlockSaved>,
    rstd: Vec<f64>,
    head_in: Vec<f64>,
}

/// The weights without any adapter: the reference model of a LoRA run.
pub fn without_adapter(weights: &Tensors) -> Tensors {
    weights.iter().filter(|(name, _)| !name.contains(".lora_")).map(|(n, w)| (n.clone(), w.clone())).collect()
}

/// Summed log-prob of every response of the batch.
pub fn logps(batch: &Batch, saved: &Saved) -> Vec<f64> {
    sequence_sum::forward(&saved.token.logp, &batch.spans)
}

/// The token log-probs of every response of the batch.
pub fn token_logps<'a>(batch: &Batch, saved: &'a Saved) -> Vec<&'a [f64]> {
    batch.spans.iter().map(|span| &saved.token.logp[span[0] as usize..span[1] as usize]).collect()
}

/// Logits and log-probs of the batch's rows.
pub fn forward(m: Model<'_>, batch: &Batch) -> Saved {
    let s = m.shape;
    let mut hidden = vec![gather::forward(tensor(m.weights, EMBEDDING), &batch.tokens, s.width)];
    let mut blocks = Vec::with_capacity(s.layers);
    for layer in 0..s.layers {
        let (saved, x) = m.block(layer, &hidden[layer], batch);
        blocks.push(saved);
        hidden.push(x);
    }
    let (normed, rstd) = rms_norm::forward(&hidden[s.layers], tensor(m.weights, NORM), s.width, s.eps);
    let head_in = gather::forward(&normed, &batch.rows, s.width);
    let logits = matmul::nt(m.head_product(batch), &head_in, tensor(m.weights, m.head()), None, None);
    let token = log_prob::forward(&logits, &batch.targets, s.vocab);
    Saved { logits, token, hidden, blocks, rstd, head_in }
}

/// The gradient of every tensor of `m.weights`, from dL/dlogp of every row (R).
pub fn backward(m: Model<'_>, batch: &Batch, saved: &Saved, coefficients: &[f64]) -> Tensors {
    let s = m.shape;
    let mut gradients: Tensors = m.weights.iter().map(|(n, w)| (n.clone(), vec![0.0; w.len()])).collect();
    let dlogits = log_prob::backward(&saved.logits, &batch.targets, &saved.token.lse, coefficients, s.vocab);
    let head = tensor(m.weights, m.head());
    let (dhead_in, dhead) = matmul::backward(m.head_product(batch), &saved.head_in, head, &dlogits);
    accumulate(&mut gradients, m.head(), &dhead);
    let zeros = vec![0.0; batch.tokens.len() * s.width];
    let dnormed = gather::backward(&dhead_in, &batch.rows, s.width, &zeros);
    let last = &saved.hidden[s.layers];
    let (mut dx, dnorm) = rms_norm::backward(last, tensor(m.weights, NORM), &saved.rstd, &dnormed, s.width);
    accumulate(&mut gradients, NORM, &dnorm);
    for layer in (0..s.layers).rev() {
        dx = m.block_backward(layer, &saved.blocks[layer], batch, &dx, &mut gradients);
    }
    let table = gather::backward(&dx, &batch.tokens, s.width, &gradients[EMBEDDING]);
    gradients.insert(EMBEDDING.to_owned(), table);
    gradients
}

impl<'a> Model<'a> {
    /// The name of the head's weight (V, D).
    fn head(self) -> &'static str {
        if self.weights.contains_key(HEAD) { HEAD } else { EMBEDDING }
    }

    fn head_product(self, batch: &Batch) -> matmul::Params {
        matmul::Params { m: batch.rows.len(), n: self.shape.vocab, k: self.shape.width, alpha: 1.0 }
    }

    fn attention(self) -> attention::Params {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let scale = 1.0 / (head_dim as f64).sqrt();
        attention::Params { heads, kv_heads, head_dim, scale, window: None, cap: None }
    }

    /// A projection of a block, by the last part of its name.
    fn projection(self, layer: usize, name: &str) -> Projection<'a> {
        let s = self.shape;
        let (query, key) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let (part, inputs, outputs) = match name {
            "q_proj" => ("self_attn", s.width, query),
            "k_proj" | "v_proj" => ("self_attn", s.width, key),
            "o_proj" => ("self_attn", query, s.width),
            "down_proj" => ("mlp", s.ff, s.width),
            _ => ("mlp", s.width, s.ff), // gate_proj, up_proj
        };
        let name = format!("model.layers.{layer}.{part}.{name}");
        Projection::new(self.weights, name, inputs, outputs, s.lora_scale)
    }

    /// x (T, D) -> the values that the block's backward pass needs, and its output.
    fn block(self, layer: usize, x: &[f64], batch: &Batch) -> (BlockSaved, Vec<f64>) {
        let Shape { width, head_dim, eps, .. } = self.shape;
        let norm =
            |x: &[f64], name| rms_norm::forward(x, tensor(self.weights, &norm_name(layer, name)), width, eps);
        let rotate = |x: Vec<f64>| rope::forward(&x, self.table, &batch.positions, (head_dim, head_dim), 1.0);
        let (normed, rstd) = norm(x, "input");
        let q = rotate(self.projection(layer, "q_proj").forward(&normed));
        let k = rotate(self.projection(layer, "k_proj").forward(&normed));
        let v = self.projection(layer, "v_proj").forward(&normed);
        let (o, lse) = attention::forward(self.attention(), &q, &k, &v, &batch.ranges);
        let mid = add::forward(x, &self.projection(layer, "o_proj").forward(&o));
        let (mid_normed, mid_rstd) = norm(&mid, "post_attention");
        let gate = self.projection(layer, "gate_proj").forward(&mid_normed);
        let up = self.projection(layer, "up_proj").forward(&mid_normed);
        let act = activation::forward(Silu, &gate, Some(&up));
        let out = add::forward(&mid, &self.projection(layer, "down_proj").forward(&act));
        let x = x.to_vec();
        (BlockSaved { x, normed, rstd, q, k, v, o, lse, mid, mid_normed, mid_rstd, gate, up, act }, out)
    }

    /// dx (T, D) from the gradient of the block's output, through the MLP and then the attention.
    fn block_backward(
        self,
        layer: usize,
        b: &BlockSaved,
        batch: &Batch,
        dout: &[f64],
        gradients: &mut Tensors,
    ) -> Vec<f64> {
        let Shape { width, head_dim, .. } = self.shape;
        let dact = self.projection(layer, "down_proj").backward(&b.act, dout, gradients);
        let (dgate, dup) = activation::backward(Silu, &b.gate, Some(&b.up), &dact);
        let dnormed = add::forward(
            &self.projection(layer, "gate_proj").backward(&b.mid_normed, &dgate, gradients),
            &self.projection(layer, "up_proj").backward(&b.mid_normed, &dup, gradients),
        );
        let norm_backward = |name, x: &[f64], rstd: &[f64], dy: &[f64], gradients: &mut Tensors| {
            let name = norm_name(layer, name);
            let (dx, dw) = rms_norm::backward(x, tensor(self.weights, &name), rstd, dy, width);
            accumulate(gradients, &name, &dw);
            dx
        };
        let dmid = norm_backward("post_attention", &b.mid, &b.mid_rstd, &dnormed, gradients);
        let dmid = add::forward(dout, &dmid);

        let dattended = self.projection(layer, "o_proj").backward(&b.o, &dmid, gradients);
        let saved =
            attention::Saved { q: &b.q, k: &b.k, v: &b.v, o: &b.o, lse: &b.lse, ranges: &batch.ranges };
        let (dq, dk, dv) = attention::backward(self.attention(), &dattended, saved);
        let unrotate = |d: Vec<f64>| rope::backward(&d, self.table, &batch.positions, (head_dim, head_dim));
        let mut dnormed = self.projection(layer, "v_proj").backward(&b.normed, &dv, gradients);
        for (name, d) in [("q_proj", unrotate(dq)), ("k_proj", unrotate(dk))] {
            dnormed =
                add::forward(&dnormed, &self.projection(layer, name).backward(&b.normed, &d, gradients));
        }
        add::forward(&dmid, &norm_backward("input", &b.x, &b.rstd, &dnormed, gradients))
    }
}

/// The name of the weight of a block's norm; `name` is "input" or "post_attention".
fn norm_name(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}_layernorm.weight")
}

#[cfg(test)]
mod tests;
