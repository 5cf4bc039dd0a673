//! `aweigh inspect`: describes a model or an adapter, without a GPU.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::args::ModelArgs;
use crate::open;
use crate::terminal::output::Output;
use crate::terminal::text::{bytes, count, table};
use aweigh::data::{Message, Prompt};
use aweigh::error::Result;
use aweigh::model::TargetModules;
use aweigh::model::{DecoderConfig, ListedTensor, NormKind, Weights};

/// Show a model's or an adapter's architecture, tensors, tokenizer and chat template.
///
/// Needs no GPU. A file that the other commands cannot read is an error here too.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model and the adapter to show.
    #[command(flatten)]
    pub model: ModelArgs,
    /// List every tensor, not only the number of tensors of each type
    #[arg(long)]
    pub tensors: bool,
}

const EXAMPLES: &str = "\
Examples:
  aweigh inspect --model SmolLM2-135M-Instruct
  aweigh inspect --model model.gguf --tensors
  aweigh inspect --model DIR --adapter run/adapter --json";

#[derive(Serialize)]
struct Figures {
    model: String,
    architecture: String,
    parameters: usize,
    settings: BTreeMap<&'static str, String>,
    types: Vec<OfType>,
    tensors: Option<Vec<ListedTensor>>,
    tokenizer: Tokenizer,
    adapter: Option<AdapterFigures>,
}

#[derive(Serialize)]
struct OfType {
    dtype: String,
    tensors: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Tokenizer {
    vocab_size: usize,
    end_tokens: Vec<String>,
    chat_template: bool,
    example: Option<String>,
}

#[derive(Serialize)]
struct AdapterFigures {
    name: String,
    r: usize,
    lora_alpha: f64,
    lora_dropout: f64,
    target_modules: Vec<String>,
    parameters: usize,
}

/// Prints the contents of the files.
///
/// # Errors
/// [`aweigh::error::Error::Input`] for files that are missing, damaged or not supported.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let (model, adapter) = open::described(&args.model, output)?;
    let files = model.bytes();
    let weights = files.weights()?;
    let config = weights.config_of(files.decoder_config()?)?;
    let tokenizer = open::tokenizer(&model, output)?;
    let example = Prompt::Messages(vec![Message::new("user", "Hello")]);
    let example = tokenizer.has_template().then(|| tokenizer.prompt_text(&example, None)).transpose()?;
    let ends = tokenizer.end_tokens().iter();
    let adapter =
        adapter.as_ref().map(|files| files.bytes().parse().map(|adapter| (files, adapter))).transpose()?;
    let adapter = adapter.map(|(files, adapter)| AdapterFigures {
        name: files.name.clone(),
        r: adapter.spec.r,
        lora_alpha: adapter.spec.lora_alpha,
        lora_dropout: adapter.spec.lora_dropout,
        target_modules: leaves(&adapter.spec.target_modules),
        parameters: adapter.weights.list().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum(),
    });
    let figures = Figures {
        model: files.name.to_string(),
        architecture: config.architecture.to_string(),
        parameters: config.parameters(),
        settings: settings(&config),
        types: by_type(&weights),
        tensors: args.tensors.then(|| weights.list()),
        tokenizer: Tokenizer {
            vocab_size: tokenizer.vocab_size(),
            end_tokens: ends.filter_map(|&id| tokenizer.token_text(id)).collect(),
            chat_template: tokenizer.has_template(),
            example,
        },
        adapter,
    };
    output.result(text(&figures), &figures)
}

/// The distinct last components of the names of an adapter's layers, such as q_proj.
fn leaves(modules: &TargetModules) -> Vec<String> {
    let TargetModules::Names(names) = modules else { return vec!["all-linear".into()] };
    let mut leaves: Vec<String> =
        names.iter().map(|name| name.rsplit('.').next().unwrap_or(name).to_string()).collect();
    leaves.sort();
    leaves.dedup();
    leaves
}

/// The decoder's configuration, under Hugging Face's names where these exist.
fn settings(config: &DecoderConfig) -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::from([
        ("vocab_size", config.vocab.to_string()),
        ("hidden_size", config.width.to_string()),
        ("num_hidden_layers", config.layers().to_string()),
        ("num_attention_heads", config.heads.to_string()),
        ("num_key_value_heads", config.kv_heads.to_string()),
        ("head_dim", config.head_dim.to_string()),
        ("intermediate_size", config.inner.to_string()),
        ("max_position_embeddings", config.max_positions.to_string()),
        ("tie_word_embeddings", config.tied.to_string()),
        ("hidden_act", format!("{:?}{}", config.activation, if config.gated { ", gated" } else { "" })),
        ("norm", if config.norm == NormKind::Layer { "LayerNorm" } else { "RMSNorm" }.to_string()),
    ]);
    let ropes: Vec<String> = config
        .ropes
        .iter()
        .map(|rope| {
            let scaling = rope.scaling.map(|scaling| format!(", {scaling:?}")).unwrap_or_default();
            format!("theta {}, {} rotary dimensions per head{scaling}", rope.theta, rope.dim)
        })
        .collect();
    all.insert("positions", if ropes.is_empty() { "learned".into() } else { ropes.join("; ") });
    let local = config.blocks.iter().filter_map(|block| block.window);
    if let Some(window) = local.clone().next() {
        all.insert("sliding_window", format!("{window}, in {} layers", local.count()));
    }
    let caps =
        [("attn_logit_softcapping", config.attention_cap), ("final_logit_softcapping", config.logit_cap)];
    all.extend(caps.into_iter().filter_map(|(name, cap)| Some((name, cap?.to_string()))));
    all
}

fn by_type(weights: &Weights) -> Vec<OfType> {
    let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for tensor in weights.list() {
        let (tensors, size) = types.entry(tensor.dtype).or_default();
        *tensors += 1;
        *size += tensor.bytes;
    }
    types.into_iter().map(|(dtype, (tensors, bytes))| OfType { dtype, tensors, bytes }).collect()
}

fn text(figures: &Figures) -> String {
    let mut rows = vec![
        ("model", figures.model.clone()),
        ("architecture", figures.architecture.clone()),
        ("parameters", count(figures.parameters)),
    ];
    rows.extend(figures.settings.iter().map(|(&name, value)| (name, value.clone())));
    for OfType { dtype, tensors, bytes: size } in &figures.types {
        rows.push(("tensors", format!("{tensors} in {dtype}, {}", bytes(*size))));
    }
    let Tokenizer { vocab_size, end_tokens, example, .. } = &figures.tokenizer;
    rows.push(("tokenizer", format!("{} tokens; end tokens: {}", count(*vocab_size), end_tokens.join(" "))));
    let template = example.as_ref().map_or("none".into(), |text| format!("\"Hello\" becomes {text:?}"));
    rows.push(("chat template", template));
    if let Some(adapter) = &figures.adapter {
        let AdapterFigures { r, lora_alpha, target_modules, parameters, .. } = adapter;
        rows.push(("adapter", adapter.name.clone()));
        rows.push(("  lora", format!("r {r}, lora_alpha {lora_alpha}, {} parameters", count(*parameters))));
        rows.push(("  target_modules", target_modules.join(" ")));
    }
    let wide = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<wide$}  {value}")).collect();
    if let Some(tensors) = &figures.tensors {
        let row = |t: &ListedTensor| {
            vec![t.name.clone(), t.dtype.clone(), format!("{:?}", t.shape), bytes(t.bytes)]
        };
        lines.push(String::new());
        lines.push(table(&["tensor", "type", "shape", "size"], &tensors.iter().map(row).collect::<Vec<_>>()));
    }
    lines.join("\n")
}
