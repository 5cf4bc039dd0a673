//! One projection of the decoder: weight, optional bias, optional LoRA, all found by name.

use std::collections::BTreeMap;

use super::{column_sum, matmul};

/// Weights or gradients by their Hugging Face names, each row-major as stored there.
pub type Tensors = BTreeMap<String, Vec<f64>>;

/// The tensor `name`. Panics with that name if it is missing.
pub fn tensor<'a>(tensors: &'a Tensors, name: &str) -> &'a [f64] {
    tensors.get(name).unwrap_or_else(|| panic!("the reference decoder has no tensor {name}"))
}

/// Adds `values` to the gradient `name`, which starts at zero.
pub fn accumulate(gradients: &mut Tensors, name: &str, values: &[f64]) {
    let sum = gradients.entry(name.to_owned()).or_insert_with(|| vec![0.0; values.len()]);
    assert_eq!(sum.len(), values.len());
    sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
}

/// y = x·Wᵀ [+ bias] [+ scale · (x·Aᵀ)·Bᵀ], the LoRA of Hu et al. 2021 as in PEFT, without dropout.
///
/// The tensors are `name.weight` (outputs, inputs), `name.bias` (outputs), `name.lora_A.weight` (r, inputs)
/// and `name.lora_B.weight` (outputs, r); the bias and the LoRA term are left out of the sum if their tensors
/// are missing.
#[derive(Clone, Debug)]
pub struct Projection<'a> {
    name: String,
    weights: &'a Tensors,
    inputs: usize,
    outputs: usize,
    lora_scale: f64,
}

impl<'a> Projection<'a> {
    /// The projection `name`; `lora_scale` is lora_alpha / r.
    pub fn new(weights: &'a Tensors, name: String, inputs: usize, outputs: usize, lora_scale: f64) -> Self {
        Self { name, weights, inputs, outputs, lora_scale }
    }

    fn key(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    /// A (r, inputs) and B (outputs, r), if there is an adapter.
    fn lora(&self) -> Option<(&'a [f64], &'a [f64])> {
        let a = self.weights.get(&self.key("lora_A.weight"))?;
        Some((a, tensor(self.weights, &self.key("lora_B.weight"))))
    }

    /// The two products of the adapter for `rows` rows: x·Aᵀ (rows, r), and that times Bᵀ (rows, outputs)
    /// with the scale.
    fn products(&self, rows: usize, rank: usize) -> (matmul::Params, matmul::Params) {
        let down = matmul::Params { m: rows, n: rank, k: self.inputs, alpha: 1.0 };
        (down, matmul::Params { m: rows, n: self.outputs, k: rank, alpha: self.lora_scale })
    }

    fn base(&self, rows: usize) -> matmul::Params {
        matmul::Params { m: rows, n: self.outputs, k: self.inputs, alpha: 1.0 }
    }

    /// x (rows, inputs) -> y (rows, outputs).
    pub fn forward(&self, x: &[f64]) -> Vec<f64> {
        let rows = x.len() / self.inputs;
        let bias = self.weights.get(&self.key("bias")).map(Vec::as_slice);
        let y = matmul::nt(self.base(rows), x, tensor(self.weights, &self.key("weight")), bias, None);
        let Some((a, b)) = self.lora() else { return y };
        let (down, up) = self.products(rows, a.len() / self.inputs);
        matmul::nt(up, &matmul::nt(down, x, a, None, None), b, None, Some(&y))
    }

    /// dx (rows, inputs) from dy (rows, outputs); the gradients of all tensors of the projection are added to
    /// `gradients`.
    pub fn backward(&self, x: &[f64], dy: &[f64], gradients: &mut Tensors) -> Vec<f64> {
        let rows = x.len() / self.inputs;
        let weight = tensor(self.weights, &self.key("weight"));
        let (mut dx, dweight) = matmul::backward(self.base(rows), x, weight, dy);
        accumulate(gradients, &self.key("weight"), &dweight);
        if self.weights.contains_key(&self.key("bias")) {
            let dbias = column_sum::forward(dy, None, None, self.outputs, None);
            accumulate(gradients, &self.key("bias"), &dbias);
        }
        if let Some((a, b)) = self.lora() {
            let (down, up) = self.products(rows, a.len() / self.inputs);
            let (dlow, db) = matmul::backward(up, &matmul::nt(down, x, a, None, None), b, dy);
            let (dx_lora, da) = matmul::backward(down, x, a, &dlow);
            accumulate(gradients, &self.key("lora_A.weight"), &da);
            accumulate(gradients, &self.key("lora_B.weight"), &db);
            dx.iter_mut().zip(dx_lora).for_each(|(d, l)| *d += l);
        }
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    fn tensors() -> Tensors {
        let sizes = [("weight", 12), ("bias", 4), ("lora_A.weight", 6), ("lora_B.weight", 8)];
        sizes.iter().zip(1..).map(|((name, n), seed)| (format!("p.{name}"), values(seed, *n))).collect()
    }

    fn projection(weights: &Tensors) -> Projection<'_> {
        Projection::new(weights, "p".to_owned(), 3, 4, 1.5)
    }

    #[test]
    fn the_adapter_is_a_weight_change() {
        let (w, x) = (tensors(), values(9, 6));
        let p = matmul::Params { m: 4, n: 3, k: 2, alpha: 1.5 };
        let merged = matmul::nn(p, &w["p.lora_B.weight"], &w["p.lora_A.weight"], Some(&w["p.weight"]));
        let merged = Tensors::from([("p.weight".into(), merged), ("p.bias".into(), w["p.bias"].clone())]);
        let (y, z) = (projection(&w).forward(&x), projection(&merged).forward(&x));
        assert!(y.iter().zip(&z).all(|(a, b)| (a - b).abs() < 1e-14), "{y:?} {z:?}");
    }

    #[test]
    fn gradients() {
        let (weights, x, c) = (tensors(), values(9, 6), values(10, 8));
        let mut gradients = Tensors::new();
        let dx = projection(&weights).backward(&x, &c, &mut gradients);
        finite::check("dx", &x, &dx, |x| finite::dot(&c, &projection(&weights).forward(x)));
        assert_eq!(gradients.len(), 4);
        for (name, gradient) in &gradients {
            finite::check(name, &weights[name], gradient, |w| {
                let mut moved = weights.clone();
                moved.insert(name.clone(), w.to_vec());
                finite::dot(&c, &projection(&moved).forward(&x))
            });
        }
    }
}
