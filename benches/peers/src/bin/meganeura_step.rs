//! One training step without the update (forward, loss, all gradients) of a SmolLM2 checkpoint, by meganeura.
//!
//! `meganeura_step --model DIR [--tokens 128] [--runs 1] [--warmup 1]`

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use aweigh_peers::{Flags, Result, clock, context, finish, token_ids, version};
use meganeura::data::safetensors::SafeTensorsModel;
use meganeura::models::smollm2::{self, SmolLM2Config};
use meganeura::{CoopPolicy, Session, SessionConfig};
use serde_json::{Value, json};

fn main() -> ExitCode {
    finish(run())
}

fn run() -> Result<Value> {
    let flags = Flags::parse(&["model", "tokens", "runs", "warmup"])?;
    let folder = Path::new(flags.text("model")?);
    let tokens: usize = flags.number("tokens", 128)?;
    if tokens < 2 {
        return Err("--tokens: expected 2 or more, as the first token is not predicted".into());
    }

    let config = read_config(folder)?;
    let start = Instant::now();
    let graph = smollm2::build_training_graph(&config, tokens);
    // The environment may turn tuning on. Cooperative matrices stay off: their tiles may read f16.
    let mut options = SessionConfig::from_env();
    options.runtime.coop = CoopPolicy::Disabled;
    let tuned = options.tune;
    let (mut session, _) = meganeura::build(&graph, options);
    let setup = start.elapsed().as_secs_f64();

    load(&mut session, &config, folder)?;
    session.set_input_u32("token_ids", &token_ids(tokens, config.vocab_size));
    session.set_input("labels", &labels(tokens, config.vocab_size));
    session.clear_optimizer();
    let times = clock(flags.number("warmup", 1)?, flags.number("runs", 1)?, || {
        session.step();
        session.wait();
        Ok(())
    })?;

    let (trained, norm) = gradients(&session);
    let device = session.device_information();
    Ok(json!({
        "peer": "meganeura",
        "version": version("meganeura"),
        "adapter": format!("{} ({} {})", device.device_name, device.driver_name, device.driver_info),
        "what": "step",
        "precision": "f32",
        "tokens": tokens,
        "tuned": tuned,
        "setup_seconds": setup,
        "first_seconds": times.first,
        "seconds": times.seconds,
        "loss": session.read_loss(),
        "grad_norm": norm,
        "trained_parameters": trained,
    }))
}

/// The shapes in `config.json`.
fn read_config(folder: &Path) -> Result<SmolLM2Config> {
    let path = folder.join("config.json");
    let text = context(fs::read_to_string(&path), path.display())?;
    let config: Value = context(serde_json::from_str(&text), path.display())?;
    let size = |key: &str| {
        let value = config[key].as_u64().and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| format!("{}: expected a size in \"{key}\"", path.display()))
    };
    let real = |key: &str| {
        // Newer files have rope_theta in an object of its own.
        let value = config[key].as_f64().or_else(|| config["rope_parameters"][key].as_f64());
        value
            .map(|value| value as f32)
            .ok_or_else(|| format!("{}: expected a number in \"{key}\"", path.display()))
    };
    Ok(SmolLM2Config {
        vocab_size: size("vocab_size")?,
        hidden_size: size("hidden_size")?,
        num_hidden_layers: size("num_hidden_layers")?,
        num_attention_heads: size("num_attention_heads")? as u32,
        num_key_value_heads: size("num_key_value_heads")? as u32,
        intermediate_size: size("intermediate_size")?,
        rms_norm_eps: real("rms_norm_eps")?,
        rope_theta: real("rope_theta")?,
        tie_word_embeddings: config["tie_word_embeddings"].as_bool().unwrap_or(false),
    })
}

/// Fills the parameters from `model.safetensors`; meganeura stores a linear layer's weight as (in, out).
fn load(session: &mut Session, config: &SmolLM2Config, folder: &Path) -> Result<()> {
    let path = folder.join("model.safetensors");
    let file = context(SafeTensorsModel::load(path.clone()), path.display())?;
    let transposed: HashSet<String> = smollm2::transposed_weight_names(config).into_iter().collect();
    for name in smollm2::weight_names(config) {
        let data = if transposed.contains(&name) {
            file.tensor_f32_auto_transposed(&name)
        } else {
            file.tensor_f32_auto(&name)
        };
        let data = context(data, &name)?;
        let expected =
            session.param_size(&name).ok_or_else(|| format!("{name}: not in meganeura's graph"))?;
        if data.len() != expected {
            return Err(format!("{name}: expected {expected} elements, found {}", data.len()));
        }
        // Parameters that meganeura has fused (gate and up) are filled from their parts.
        session.set_parameter(&name, &data);
    }
    Ok(())
}

/// One-hot labels `(tokens, vocabulary)` of each row's next token; the last row is zero. meganeura divides the
/// loss by all T rows, so each label weighs T / (T - 1).
fn labels(tokens: usize, vocabulary: usize) -> Vec<f32> {
    let mut labels = vec![0.0; tokens * vocabulary];
    let weight = tokens as f32 / (tokens - 1) as f32;
    for (row, next) in token_ids(tokens, vocabulary).into_iter().skip(1).enumerate() {
        labels[row * vocabulary + next as usize] = weight;
    }
    labels
}

/// The number of parameters with a gradient, and the norm of all gradients.
fn gradients(session: &Session) -> (usize, f64) {
    let (mut trained, mut squares) = (0, 0.0);
    for name in session.param_names() {
        let Some(size) = session.param_size(name).filter(|_| session.has_param_grad(name)) else { continue };
        let mut gradient = vec![0.0_f32; size];
        session.read_param_grad(name, &mut gradient);
        trained += size;
        squares += gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    }
    (trained, squares.sqrt())
}
