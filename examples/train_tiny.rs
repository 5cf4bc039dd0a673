//! Trains the built-in model from random weights, on the generated help-desk conversations. This is how
//! `assets/tiny/model.safetensors` was made.
//!
//!     cargo run --release --example make_tiny_data     # tokenizer, config and data; first
//!     cargo run --release --example train_tiny [FOLDER] [STEPS]

use aweigh::data::packing::Group;
use aweigh::data::{ChatTokenizer, Completion, Message, Prompt, TokenizerFiles};
use aweigh::gpu::{DType, Gpu, Options};
use aweigh::loss::{Formula, Loss};
use aweigh::model::{Decoder, ExportDType, Training, Weights, merged, serialize};
use aweigh::nn::Decay;
use aweigh::optim::{AdamW, Optimizer, Schedule};
use aweigh::rng;
use aweigh::score::score;
use aweigh::tiny::{self, Split};
use aweigh::train::{MicroBatch, Trainer};

const BATCH: usize = 48;
const SEED: u32 = 7;

/// Initial weights: sums of four uniform random numbers, roughly normal with standard deviation 0.02.
fn noise(count: usize, stream: u32) -> Vec<f32> {
    let draw = |i: u32| rng::pcg4d([i, stream, 0, SEED]).iter().map(|&b| rng::uniform(b) - 0.5).sum::<f32>();
    (0..count as u32).map(|i| draw(i) * 0.02 * 3f32.sqrt()).collect()
}

/// Random weights under Hugging Face's names.
fn start(config: &serde_json::Value) -> aweigh::Result<Vec<u8>> {
    let size = |key: &str| config[key].as_u64().unwrap_or_default() as usize;
    let (width, inner) = (size("hidden_size"), size("intermediate_size"));
    let (q, kv) =
        (size("num_attention_heads") * size("head_dim"), size("num_key_value_heads") * size("head_dim"));
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![size("vocab_size"), width]),
        ("model.norm.weight".to_string(), vec![width]),
    ];
    for i in 0..size("num_hidden_layers") {
        let parts = [
            ("input_layernorm", vec![width]),
            ("post_attention_layernorm", vec![width]),
            ("self_attn.q_proj", vec![q, width]),
            ("self_attn.k_proj", vec![kv, width]),
            ("self_attn.v_proj", vec![kv, width]),
            ("self_attn.o_proj", vec![width, q]),
            ("mlp.gate_proj", vec![inner, width]),
            ("mlp.up_proj", vec![inner, width]),
            ("mlp.down_proj", vec![width, inner]),
        ];
        tensors.extend(parts.map(|(part, shape)| (format!("model.layers.{i}.{part}.weight"), shape)));
    }
    let values: Vec<Vec<f32>> = (0..)
        .zip(&tensors)
        .map(|(i, (_, shape))| {
            let count = shape.iter().product();
            if shape.len() == 1 { vec![1.0; count] } else { noise(count, i) }
        })
        .collect();
    serialize(
        tensors.iter().zip(&values).map(|((name, shape), v)| (name.as_str(), shape.as_slice(), v.as_slice())),
    )
}

/// A conversation as (prompt ids, answer ids).
fn encode(
    tokenizer: &ChatTokenizer,
    system: Option<&str>,
    user: &str,
    answer: &str,
) -> aweigh::Result<(Vec<u32>, Vec<u32>)> {
    let system = system.map(|s| Message::new("system", s));
    let prompt = Prompt::Messages(system.into_iter().chain([Message::new("user", user)]).collect());
    let ids = tokenizer.encode_prompt(&prompt, None)?;
    Ok((ids, tokenizer.encode_completion(&prompt, &Completion::assistant(answer))?))
}

fn group((prompt, answer): &(Vec<u32>, Vec<u32>)) -> Group<'_> {
    Group { prompt, responses: vec![answer] }
}

async fn train(folder: &str, steps: usize) -> aweigh::Result<()> {
    let path = |name: &str| format!("{folder}/{name}");
    let read = |name: &str| std::fs::read(path(name)).map_err(|e| aweigh::Error::io(path(name), "read", e));
    let config = read("config.json")?;
    let tokenizer = ChatTokenizer::from_bytes(&TokenizerFiles {
        origin: folder.into(),
        tokenizer: read("tokenizer.json")?,
        tokenizer_config: Some(read("tokenizer_config.json")?),
        ..TokenizerFiles::default()
    })?;
    let gpu = Gpu::open(&Options::default()).await?;
    let json = serde_json::from_slice(&config).unwrap_or_default();
    let bytes = start(&json)?;
    let weights = Weights::parse([("start", bytes.as_slice())], "start")?;
    let decoder = Decoder::load(&gpu, ("config.json", &config), &weights, Training::Full, Decay::Matrices)?;
    let settings = AdamW {
        adam_beta1: 0.9,
        adam_beta2: 0.98,
        adam_epsilon: 1e-8,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        ..AdamW::default()
    };
    let optimizer = Optimizer::new(&gpu, decoder.layout(), settings)?;
    let loss = Loss { formula: Formula::Sft, length_normalize: false, negative_floor: None };
    let mut trainer = Trainer::new(&gpu, decoder, optimizer, loss, SEED);
    let schedule =
        Schedule { kind: aweigh::optim::LrScheduler::Cosine, peak: 3e-3, warmup: 40, total: steps };
    let held_out = (0..200).map(|i| {
        let prompt = tiny::Prompt::generate(Split::HeldOut, None, SEED, i);
        encode(&tokenizer, None, &prompt.text, &tiny::good_answer(&prompt, SEED, i))
    });
    let held_out = held_out.collect::<aweigh::Result<Vec<_>>>()?;
    for step in 0..steps {
        let first = (step * BATCH) as u32;
        let rows = (first..first + BATCH as u32).map(|i| {
            let c = tiny::training_conversation(SEED, i);
            encode(&tokenizer, c.system, &c.user, &c.assistant)
        });
        let rows = rows.collect::<aweigh::Result<Vec<_>>>()?;
        let batch = MicroBatch {
            weights: Vec::new(),
            groups: rows.iter().map(group).collect(),
            retained: None,
            reference: Vec::new(),
            kl: 0.0,
        };
        let outcome = trainer.accumulate(&batch, BATCH)?.await?;
        trainer.step(schedule.rate(step))?.await?;
        let mean = outcome.groups.iter().map(|o| o.loss).sum::<f32>() / BATCH as f32;
        if step % 50 == 49 || step + 1 == steps {
            let groups: Vec<Group> = held_out.iter().map(group).collect();
            let decoder = &trainer.decoder;
            let scored = score(&gpu, decoder, decoder.policy(), &groups, 4096, &mut |_, _| Ok(())).await?;
            let tokens: usize = scored.iter().flatten().map(|r| r.token_logps.len()).sum();
            let logp: f32 = scored.iter().flatten().map(|r| r.logp).sum();
            let perplexity = (-logp / tokens as f32).exp();
            eprintln!("step {:4}  loss {mean:.4}  held-out good-answer perplexity {perplexity:.4}", step + 1);
        } else {
            eprintln!("step {:4}  loss {mean:.4}", step + 1);
        }
    }
    let layout = trainer.decoder.layout();
    let values = trainer.decoder.values().read(&gpu, layout).await?;
    let stored = layout.stored(&values);
    let f32s =
        serialize(stored.iter().map(|(name, shape, v)| (name.as_str(), shape.as_slice(), v.as_slice())))?;
    let trained = Weights::parse([("trained", f32s.as_slice())], "trained")?;
    let stored = merged(&trained, trainer.decoder.config(), None, ExportDType::As(DType::F16))?;
    std::fs::write(path("model.safetensors"), stored)
        .map_err(|e| aweigh::Error::io(path("model.safetensors"), "write", e))
}

fn main() -> aweigh::Result<()> {
    env_logger::init();
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "assets/tiny".into());
    let steps = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(700);
    pollster::block_on(train(&folder, steps))
}
