use super::super::finite;
use super::*;
use crate::loss::formula;
use crate::rng;

const SHAPE: Shape = Shape {
    layers: 2,
    width: 8,
    heads: 4,
    kv_heads: 2,
    head_dim: 4, // heads · head_dim is not the width
    ff: 10,
    vocab: 11,
    eps: 1e-5,
    lora_scale: 2.0,
};
const RANK: usize = 2;
const PROMPT: &[u32] = &[3, 1, 4];
const RESPONSES: &[&[u32]] = &[&[1, 5, 9], &[2], &[6, 5], &[3, 5, 8, 9]];
const D2O: formula::Formula = formula::Formula::D2o { alpha: 0.6, beta: 0.9 };

fn table() -> Vec<f64> {
    rope::table(8, &rope::inv_freq(SHAPE.head_dim, 100.0))
}

/// All tensors, filled by the shared generator; the seed of a tensor is 100 + its index in the order of
/// names.
fn weights(biased: bool, lora: bool, tied: bool) -> Tensors {
    let (d, q, kv, ff) = (SHAPE.width, 16, 8, SHAPE.ff);
    let mut sizes = vec![(EMBEDDING.to_owned(), SHAPE.vocab * d), (NORM.to_owned(), d)];
    if !tied {
        sizes.push((HEAD.to_owned(), SHAPE.vocab * d));
    }
    for layer in 0..SHAPE.layers {
        sizes.extend(["input", "post_attention"].map(|name| (norm_name(layer, name), d)));
        for (name, inputs, outputs) in [
            ("self_attn.q_proj", d, q),
            ("self_attn.k_proj", d, kv),
            ("self_attn.v_proj", d, kv),
            ("self_attn.o_proj", q, d),
            ("mlp.gate_proj", d, ff),
            ("mlp.up_proj", d, ff),
            ("mlp.down_proj", ff, d),
        ] {
            let name = format!("model.layers.{layer}.{name}");
            sizes.push((format!("{name}.weight"), inputs * outputs));
            if biased {
                sizes.push((format!("{name}.bias"), outputs));
            }
            if lora {
                sizes.push((format!("{name}.lora_A.weight"), RANK * inputs));
                sizes.push((format!("{name}.lora_B.weight"), outputs * RANK));
            }
        }
    }
    sizes.sort();
    let fill = |(seed, (name, n)): (u32, (String, usize))| {
        let shift = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        (name, rng::values(seed, n).iter().map(|v| shift + 0.5 * v).collect())
    };
    (100..).zip(sizes).map(fill).collect()
}

/// D²O of one packed group against fixed reference log-probs: the loss, and the coefficients of its
/// responses.
fn group_loss(logps: &[&[f64]]) -> formula::Outcome {
    let reference: Vec<f64> = (0..logps.len()).map(|i| -5.0 - i as f64).collect();
    formula::forward(D2O, logps, None, &reference, formula::Terms::default())
}

fn loss_and_gradients(weights: &Tensors, batch: &Batch) -> (f64, Tensors) {
    let table = table();
    let model = Model { shape: SHAPE, weights, table: &table };
    let saved = forward(model, batch);
    let outcome = group_loss(&token_logps(batch, &saved));
    (outcome.loss, backward(model, batch, &saved, &outcome.coefficients.concat()))
}

/// Central differences over a few elements of every tensor.
fn check(weights: &Tensors) {
    let batch = pack(&[(PROMPT, RESPONSES)]);
    let table = table();
    let (_, gradients) = loss_and_gradients(weights, &batch);
    assert!(gradients.keys().eq(weights.keys()));
    for (at, (name, gradient)) in gradients.iter().enumerate() {
        let mut moved = weights.clone();
        let which = (0..6).map(|i| rng::pcg4d([i, at as u32, 0, 0])[0] as usize % gradient.len());
        let found = finite::difference(&weights[name], gradient, which, |w| {
            moved.insert(name.clone(), w.to_vec());
            let saved = forward(Model { shape: SHAPE, weights: &moved, table: &table }, &batch);
            group_loss(&token_logps(&batch, &saved)).loss
        });
        assert_eq!(found, Ok(()), "{name}");
    }
}

fn assert_near(name: &str, a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len(), "{name}");
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 + 1e-11 * b.abs();
    assert!(a.iter().zip(b).all(near), "{name}: {a:?} {b:?}");
}

#[test]
fn gradients_of_the_plain_tied_decoder() {
    check(&weights(false, false, true));
}

#[test]
fn gradients_with_biases_adapters_and_a_head() {
    check(&weights(true, true, false));
}

#[test]
fn packing_lays_out_a_group() {
    let b = pack(&[(&[7, 8], &[&[1, 2], &[3]]), (&[9], &[&[4, 5]])]);
    assert_eq!(b.tokens, [7, 8, 1, 2, 3, 9, 4, 5]);
    assert_eq!(b.positions, [0, 1, 2, 3, 2, 0, 1, 2]);
    assert_eq!(b.rows, [1, 2, 1, 5, 6]);
    assert_eq!(b.targets, [1, 2, 3, 4, 5]);
    assert_eq!(b.spans, [[0, 2], [2, 3], [3, 5]]);
    assert_eq!(b.ranges[1], [0, 0, 0, 2]);
    assert_eq!(b.ranges[3], [0, 2, 2, 4]);
    assert_eq!(b.ranges[4], [0, 2, 4, 5]);
    assert_eq!(b.ranges[7], [5, 6, 6, 8]);
    assert_eq!(attention::visible_end(&b.ranges), Ok(vec![5, 5, 4, 4, 5, 8, 8, 8]));
}

#[test]
fn a_shared_prompt_equals_separate_sequences() {
    let weights = weights(true, true, false);
    let (loss, packed) = loss_and_gradients(&weights, &pack(&[(PROMPT, RESPONSES)]));
    let table = table();
    let model = Model { shape: SHAPE, weights: &weights, table: &table };
    // Each response alone, as one causal sequence without any prefix.
    let alone: Vec<(Batch, Saved)> = RESPONSES
        .iter()
        .map(|r| {
            let mut batch = pack(&[(PROMPT, &[r])]);
            for (t, range) in (0..).zip(&mut batch.ranges) {
                *range = [0, 0, 0, t + 1];
            }
            let saved = forward(model, &batch);
            (batch, saved)
        })
        .collect();
    let tokens: Vec<&[f64]> = alone.iter().map(|(b, s)| token_logps(b, s)[0]).collect();
    let outcome = group_loss(&tokens);
    assert!((outcome.loss - loss).abs() < 1e-12);
    let mut sum = Tensors::new();
    for ((batch, saved), c) in alone.iter().zip(&outcome.coefficients) {
        for (name, gradient) in backward(model, batch, saved, c) {
            accumulate(&mut sum, &name, &gradient);
        }
    }
    packed.iter().for_each(|(name, gradient)| assert_near(name, gradient, &sum[name]));
}

#[test]
fn groups_of_one_batch_do_not_see_each_other() {
    let weights = weights(false, false, true);
    let table = table();
    let model = Model { shape: SHAPE, weights: &weights, table: &table };
    let run = |groups: &[(&[u32], &[&[u32]])]| {
        let batch = pack(groups);
        logps(&batch, &forward(model, &batch))
    };
    let (p, y): (&[u32], &[&[u32]]) = (&[9, 9], &[&[1, 2], &[7]]);
    let (a, b) = ((PROMPT, RESPONSES), (p, y));
    assert_near("logps", &run(&[a, b]), &[run(&[a]), run(&[b])].concat());
}

#[test]
fn the_order_of_the_anchors_does_not_matter() {
    let weights = weights(false, true, true);
    let (y, swapped) = (RESPONSES, &[RESPONSES[2], RESPONSES[0], RESPONSES[1], RESPONSES[3]]);
    let table = table();
    let model = Model { shape: SHAPE, weights: &weights, table: &table };
    let run = |responses: &[&[u32]]| {
        let batch = pack(&[(PROMPT, responses)]);
        let saved = forward(model, &batch);
        let tokens = token_logps(&batch, &saved);
        let found = formula::forward(D2O, &tokens, None, &[-9.0; 4], formula::Terms::default());
        (found.loss, backward(model, &batch, &saved, &found.coefficients.concat()))
    };
    let (a, b) = (run(y), run(swapped));
    assert!((a.0 - b.0).abs() < 1e-13);
    a.1.iter().for_each(|(name, gradient)| assert_near(name, gradient, &b.1[name]));
}

#[test]
fn an_adapter_with_zero_b_changes_nothing() {
    let mut weights = weights(true, true, true);
    weights.iter_mut().filter(|(n, _)| n.contains("lora_B")).for_each(|(_, w)| w.fill(0.0));
    let (table, batch, bare) = (table(), pack(&[(PROMPT, RESPONSES)]), without_adapter(&weights));
    let with = forward(Model { shape: SHAPE, weights: &weights, table: &table }, &batch);
    let without = forward(Model { shape: SHAPE, weights: &bare, table: &table }, &batch);
    assert_eq!(with.logits, without.logits);
    assert_eq!(weights.len() - bare.len(), 2 * 7 * SHAPE.layers);
    let (_, gradients) = loss_and_gradients(&weights, &batch);
    for (name, gradient) in gradients {
        // The gradient of A is multiplied by B, which is 0 here. The gradient of B is not.
        assert_eq!(gradient.iter().all(|g| *g == 0.0), name.contains("lora_A"), "{name}");
    }
}

/// Values of transformers' LlamaForCausalLM in float64 with the same weights (adapters merged by autograd,
/// norm, softmax and rotary angles patched from f32 to f64, each response run alone): summed log-probs, the
/// loss of [`group_loss`], and the dot product of each gradient with `rng::values(7, n)`.
#[test]
fn equals_transformers() {
    let weights = weights(true, true, false);
    let (table, batch) = (table(), pack(&[(PROMPT, RESPONSES)]));
    let saved = forward(Model { shape: SHAPE, weights: &weights, table: &table }, &batch);
    assert_near("logps", &logps(&batch, &saved), &TRANSFORMERS_LOGPS);
    let (loss, gradients) = loss_and_gradients(&weights, &batch);
    assert_near("loss", &[loss], &[TRANSFORMERS_LOSS]);
    for (name, expected) in TRANSFORMERS_GRADIENTS {
        let found = finite::dot(&gradients[name], &rng::values(7, gradients[name].len()));
        assert_near(name, &[found], &[expected]);
    }
}

const TRANSFORMERS_LOGPS: [f64; 4] =
    [-8.890612291779767, -3.0322145779189933, -2.446554223258164, -11.458259847775512];
const TRANSFORMERS_LOSS: f64 = 0.04138221657723449;
const TRANSFORMERS_GRADIENTS: [(&str, f64); 33] = [
    ("lm_head.weight", -0.06786738864595615),
    ("model.embed_tokens.weight", -0.0498396320522566),
    ("model.layers.0.input_layernorm.weight", 0.013445353747902128),
    ("model.layers.0.mlp.down_proj.bias", -0.013277701775361486),
    ("model.layers.0.mlp.down_proj.lora_A.weight", 0.005652188886177527),
    ("model.layers.0.mlp.down_proj.lora_B.weight", 0.013255000774143523),
    ("model.layers.0.mlp.down_proj.weight", 0.0054483635145710675),
    ("model.layers.0.mlp.gate_proj.bias", 0.004166459081212033),
    ("model.layers.0.mlp.gate_proj.lora_A.weight", -0.004844419035317112),
    ("model.layers.0.mlp.gate_proj.lora_B.weight", -0.00010504891051287403),
    ("model.layers.0.mlp.gate_proj.weight", -0.007520445093968027),
    ("model.layers.0.mlp.up_proj.bias", -0.0008356586580525075),
    ("model.layers.0.mlp.up_proj.lora_A.weight", -0.002556076324791488),
    ("model.layers.0.mlp.up_proj.lora_B.weight", -0.0019426999816084696),
    ("model.layers.0.mlp.up_proj.weight", 0.00839222515635909),
    ("model.layers.0.post_attention_layernorm.weight", 0.003035861039823802),
    ("model.layers.0.self_attn.k_proj.bias", -0.00858202478568997),
    ("model.layers.0.self_attn.k_proj.lora_A.weight", -0.021814645728508775),
    ("model.layers.0.self_attn.k_proj.lora_B.weight", 0.021294640519104457),
    ("model.layers.0.self_attn.k_proj.weight", -0.00802742741410241),
    ("model.layers.0.self_attn.o_proj.bias", -0.013865374248590525),
    ("model.layers.0.self_attn.o_proj.lora_A.weight", -0.00857512672283307),
    ("model.layers.0.self_attn.o_proj.lora_B.weight", 0.027857143164620464),
    ("model.layers.0.self_attn.o_proj.weight", -0.025793891248957732),
    ("model.layers.0.self_attn.q_proj.bias", 0.004522669030727245),
    ("model.layers.0.self_attn.q_proj.lora_A.weight", -0.005510597676589919),
    ("model.layers.0.self_attn.q_proj.lora_B.weight", -0.0036701762254461286),
    ("model.layers.0.self_attn.q_proj.weight", -0.0314729057143239),
    ("model.layers.0.self_attn.v_proj.bias", 0.0005897152247778493),
    ("model.layers.0.self_attn.v_proj.lora_A.weight", 0.011085459496378423),
    ("model.layers.0.self_attn.v_proj.lora_B.weight", 0.015380880361481945),
    ("model.layers.0.self_attn.v_proj.weight", -0.01824441169158894),
    ("model.norm.weight", -0.03471205511716887),
];
