//! The engine against PyTorch: logits, every gradient, ten optimizer steps of each method, full and LoRA.
//! The golden files and how they were made are in tests/golden.

mod common;
#[path = "golden/losses.rs"]
mod losses;

use aweigh::data::packing::{Group, Packed};
use aweigh::gpu::{Quantize, Recorder};
use aweigh::loss::{Formula, Loss};
use aweigh::model::gguf::{Gguf, Kind};
use aweigh::model::{
    Adapter, Capacity, Decoder, DecoderConfig, ModelBytes, Training, Weights, Workspace, serialize,
    write_gguf,
};
use aweigh::nn::{Arenas, Decay, Part, Recompute};
use aweigh::reference::compare::compare;
use aweigh::sample::{Request, SamplingParams, generate};
use common::*;
use pollster::block_on;

/// f32 against f64 for whole models: PyTorch's own f32 differs by up to 9e-6 in logits and 1.4e-6 in
/// gradients.
const ABS: f64 = 2e-5;
const EPS: f64 = 2e-4;

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn logits_and_gradients(fixture: &str) {
    logits_and_gradients_of(
        &load(fixture, Training::Full),
        fixture,
        &format!("{fixture}/golden.safetensors"),
        "grad.",
    );
}

/// Logits, log-probs, entropies and gradients of `decoder` against those in `file`.
fn logits_and_gradients_of(decoder: &Decoder, fixture: &str, file: &str, prefix: &str) {
    let info = golden_json(&format!("{fixture}/golden.json"));
    let tokens = ids(&info["tokens"]);
    let start = info["completion_start"].as_u64().expect("a number") as usize;
    let logits = block_on(decoder.logits(gpu(), decoder.policy(), &tokens)).expect("logits");
    let bytes = golden(file);
    let stored = aweigh::model::Weights::parse([("golden", bytes.as_slice())], "golden").expect("golden");
    let shape = [tokens.len(), decoder.config().vocab];
    let expected = stored.get("logits", &shape).expect("logits").to_f32();
    compare(&logits, &widen(&expected), ABS, EPS).unwrap_or_else(|m| panic!("{file}: logits: {m}"));

    let packed = Packed::new(&[Group { prompt: &tokens[..start], responses: vec![&tokens[start..]] }]);
    let (ws, gradients) = pass(decoder, &packed, Recompute::None);
    let read = |arenas: &Arenas| block_on(arenas.read(gpu(), decoder.layout())).expect("gradients");
    for recompute in [Recompute::Mlp, Recompute::Full] {
        assert_eq!(
            read(&pass(decoder, &packed, recompute).1),
            read(&gradients),
            "{file}: recompute {recompute:?}"
        );
    }
    let rows = tokens.len() - start;
    let stats = block_on(ws.stats.slice(0, 3 * rows).read_f32(gpu())).expect("stats");
    // The file has none of these for an adapter.
    if decoder.lora().is_none() {
        let (logps, entropy) = (numbers(&info["token_logps"]), numbers(&info["token_entropy"]));
        compare(&stats[..rows], &logps, ABS, EPS).unwrap_or_else(|m| panic!("{fixture}: logps: {m}"));
        compare(&stats[2 * rows..], &entropy, ABS, EPS).unwrap_or_else(|m| panic!("{fixture}: entropy: {m}"));
    }
    compare_gradients(decoder, &gradients, file, prefix, ABS, EPS);
}

/// Forward and backward passes of SFT's loss: the workspace with its results, and the gradients.
fn pass(decoder: &Decoder, packed: &Packed, recompute: Recompute) -> (Workspace, Arenas) {
    let gradients =
        Arenas::new(gpu(), decoder.layout(), aweigh::gpu::Purpose::Gradients, "g").expect("arenas");
    let capacity = Capacity::covering([packed].into_iter(), Some(recompute));
    let mut ws = decoder.workspace(gpu(), capacity).expect("workspace");
    let mut rec = Recorder::new(gpu());
    ws.load(&mut rec, packed).expect("fits");
    decoder.score(&mut rec, decoder.policy(), &ws).expect("forward");
    let loss = Loss { formula: Formula::Sft, length_normalize: false, negative_floor: None };
    ws.loss(&mut rec, loss, 1, 1, 0.0).expect("loss");
    decoder.backward(&mut rec, decoder.policy(), &gradients, &ws).expect("backward");
    rec.submit();
    (ws, gradients)
}

#[test]
fn untied_llama_equals_pytorch() {
    logits_and_gradients("tiny_untied");
}

#[test]
fn tied_llama_equals_pytorch() {
    logits_and_gradients("tiny_tied");
}

#[test]
fn biased_llama_with_scaled_rope_equals_pytorch() {
    logits_and_gradients("tiny_biased");
}

/// A family's fixture: logits and gradients of all weights and of an adapter, 16 greedy tokens, and both
/// spellings of its config.json.
fn family(name: &str) {
    let fixture = format!("families/{name}");
    logits_and_gradients(&fixture);
    let [config, weights] = ["adapter_config.json", "adapter_model.safetensors"]
        .map(|file| golden(&format!("{fixture}/adapter/{file}")));
    let adapter = Adapter::parse(("adapter_config.json", &config), ("adapter_model.safetensors", &weights));
    let decoder = load(&fixture, Training::Adapter(&adapter.expect("an adapter")));
    logits_and_gradients_of(&decoder, &fixture, &format!("{fixture}/adapter/golden.safetensors"), "");
    assert_eq!(decoder.config(), &parsed(&fixture, "config_v5.json"), "transformers 5 spells it differently");
    for quantize in [Quantize::Q8, Quantize::Nf4] {
        quantised(&fixture, quantize, &config, &weights);
    }

    let greedy = &golden_json(&format!("{fixture}/golden.json"))["greedy"];
    let (prompt, expected) = (ids(&greedy["prompt_ids"]), ids(&greedy["token_ids"]));
    let settings = SamplingParams {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        max_new_tokens: 16,
        seed: 0,
        ends: Vec::new(),
    };
    // Two answers share one prompt, and another request has its own prompt.
    let request = |prompt, samples, index| Request { prompt, first_sample: 0, samples, index };
    let requests = [request(&prompt[..2], 1, 0), request(&prompt[..], 2, 1)];
    let mut quiet = |_, _| Ok(());
    let answers = generate(gpu(), &decoder, decoder.base(), &requests, &settings, &mut quiet);
    for answer in &block_on(answers).expect("answers")[1] {
        assert_eq!(answer.ids, expected, "{name}: greedy tokens");
    }
}

/// Logits, and gradients of an adapter, on weights that were quantised when they were loaded. They equal, bit
/// for bit, those on f32 weights of the same values, whose kernels are compared with PyTorch.
fn quantised(fixture: &str, quantize: Quantize, adapter_config: &[u8], adapter: &[u8]) {
    let (config, file) =
        (golden(&format!("{fixture}/config.json")), golden(&format!("{fixture}/model.safetensors")));
    let weights = || Weights::parse([("model.safetensors", file.as_slice())], fixture).expect("weights");
    let shapes = parsed(fixture, "config.json").tensors();
    let quantised = weights().quantized(Some(quantize));
    let mut changed = 0;
    let dequantised: Vec<(String, Vec<usize>, Vec<f32>)> = shapes
        .into_iter()
        .map(|(name, stored)| {
            let part = |shape: &[usize], transposed| Part {
                quantizable: true,
                transposed,
                ..Part::whole(&name, shape)
            };
            let plain = weights().get(&name, &stored).expect("a tensor").to_f32();
            // Only the matrices of the blocks are quantised; GPT-2 stores its matrices transposed.
            let in_block = name.contains(".layers.") || name.contains("h.");
            let [rows, columns] = stored[..] else { return (name, stored, plain) };
            if !in_block {
                return (name, stored, plain);
            }
            let transposed = fixture.ends_with("gpt2");
            let own = if transposed { [columns, rows] } else { [rows, columns] };
            let values = quantised.part(&part(&own, transposed)).expect("a matrix").to_f32();
            let values = if transposed { aweigh::nn::transposed(&values, own[0], own[1]) } else { values };
            changed += usize::from(values != plain);
            (name, stored, values)
        })
        .collect();
    assert!(changed > 0, "{fixture}: nothing was quantised");
    let plain = serialize(dequantised.iter().map(|(n, s, v)| (n.as_str(), s.as_slice(), v.as_slice())));
    let plain = plain.expect("a file");
    let plain = Weights::parse([("dequantised", plain.as_slice())], fixture).expect("weights");
    let run = |weights: &Weights| {
        let adapter = Adapter::parse(("adapter_config.json", adapter_config), ("adapter", adapter));
        let training = Training::Adapter(adapter.as_ref().expect("an adapter"));
        let decoder = Decoder::load(gpu(), ("config.json", &config), weights, training, Decay::All);
        let decoder = decoder.unwrap_or_else(|error| panic!("{error}"));
        let tokens = ids(&golden_json(&format!("{fixture}/golden.json"))["tokens"]);
        let logits = block_on(decoder.logits(gpu(), decoder.policy(), &tokens)).expect("logits");
        let packed = Packed::new(&[Group { prompt: &tokens[..2], responses: vec![&tokens[2..]] }]);
        let (_, gradients) = pass(&decoder, &packed, Recompute::None);
        (logits, block_on(gradients.read(gpu(), decoder.layout())).expect("gradients"))
    };
    assert_eq!(run(&quantised), run(&plain), "{fixture}: {quantize:?}");
}

/// A model written as a GGUF file and read again gives the same logits, bit-identical in F32.
#[test]
fn gguf_files_are_the_models_they_were_made_of() {
    // Without llama3: its fixture scales frequencies as no released model does, and a GGUF file does not
    // state how.
    for name in ["mistral", "qwen2", "qwen3"] {
        let fixture = format!("families/{name}");
        let (config, file) =
            (golden(&format!("{fixture}/config.json")), golden(&format!("{fixture}/model.safetensors")));
        let model =
            ModelBytes { config: &config, weights: vec![("model", (&file).into())], ..aweigh::tiny::model() };
        let tokens = ids(&golden_json(&format!("{fixture}/golden.json"))["tokens"]);
        let logits = |model: &ModelBytes| {
            let decoder = model.decoder(gpu(), Training::None).unwrap_or_else(|error| panic!("{error}"));
            block_on(decoder.logits(gpu(), decoder.policy(), &tokens)).expect("logits")
        };
        let expected = logits(&model);
        for (kind, close) in [(Kind::F32, 0.0), (Kind::F16, 2e-2), (Kind::Bf16, 1e-1)] {
            let mut bytes = Vec::new();
            let failed = |error: std::io::Error| panic!("{error}");
            write_gguf(&mut bytes, &model, None, kind, &failed).unwrap_or_else(|error| panic!("{error}"));
            let companions = Gguf::parse(&bytes).and_then(|file| file.companions()).expect("a file");
            let read = ModelBytes {
                config: &companions.config,
                weights: vec![("gguf", (&bytes).into())],
                ..model.clone()
            };
            let expected = widen(&expected);
            compare(&logits(&read), &expected, close, close)
                .unwrap_or_else(|message| panic!("{name} in {}: {message}", kind.name()));
        }
    }
}

fn parsed(fixture: &str, file: &str) -> DecoderConfig {
    DecoderConfig::parse(&golden(&format!("{fixture}/{file}")), file)
        .unwrap_or_else(|error| panic!("{error}"))
}

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        mod families {
            $(#[test] fn $name() { super::family(stringify!($name)); })*
        }
    };
}

families! {
    llama3, mistral, qwen2, qwen3, smollm3, gemma2, gemma3, phi3, gpt2, gpt_neox, gpt_neox_sequential,
}
