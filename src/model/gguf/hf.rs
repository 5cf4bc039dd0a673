//! Converts a GGUF file to the contents of a Hugging Face directory: config.json, the tokenizer's files, and
//! tensors by Hugging Face's names.

use serde_json::{Map, Value as Json, json};

use super::{Damage, Gguf, Kind, Value, tokenizer};
use crate::model::config::{Rope, RopeScaling};

/// The small files of a model. A GGUF file contains all of them.
#[derive(Debug, Clone)]
pub struct Companions {
    /// `config.json`
    pub config: Vec<u8>,
    /// `tokenizer.json`
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`, with the chat template if there is one.
    pub tokenizer_config: Vec<u8>,
}

/// `general.architecture`, with the Hugging Face architecture and model type that it stands for, and whether
/// the converter has reordered the rows of queries and keys for rotation by neighbours.
pub(super) const ARCHITECTURES: [(&str, &str, &str, bool); 3] = [
    ("llama", "LlamaForCausalLM", "llama", true),
    ("qwen2", "Qwen2ForCausalLM", "qwen2", false),
    ("qwen3", "Qwen3ForCausalLM", "qwen3", false),
];

/// Parts of a block: GGUF's name and Hugging Face's.
pub(super) const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// A tensor of a file and its place in a Hugging Face model.
#[derive(Debug, Clone)]
pub struct Named<'a> {
    /// GGUF's name.
    pub name: &'a str,
    /// Hugging Face's name.
    pub hf: String,
    /// The number of heads, for queries and keys whose rows the converter has reordered.
    pub reordered: Option<usize>,
}

impl Gguf<'_> {
    fn architecture(&self) -> Result<(&'static str, &'static str, &'static str, bool), Damage> {
        if let Some(parts) = self.u64("split.count").filter(|parts| *parts > 1) {
            let part = self.u64("split.no").map_or("a part".into(), |part| format!("part {}", part + 1));
            let fix = "join the parts with llama.cpp's `llama-gguf-split --merge FIRST OUT.gguf`";
            return Err(Damage {
                fix,
                ..Damage::new("a complete GGUF file", format!("{part} of {parts} of a split file"))
            });
        }
        if let Some(kind) = self.str("general.type").filter(|kind| *kind != "model") {
            let fix = "give a model; an adapter is given in PEFT's format";
            return Err(Damage {
                fix,
                ..Damage::new("a GGUF file of a model", format!("one of type \"{kind}\""))
            });
        }
        let found = self.str("general.architecture").unwrap_or("none");
        ARCHITECTURES.into_iter().find(|(name, ..)| *name == found).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(name, ..)| *name).collect();
            let expected = format!("a GGUF file of a supported architecture ({})", known.join(", "));
            Damage::unsupported(expected, format!("\"{found}\""))
        })
    }

    fn need(&self, key: &str) -> Result<u64, Damage> {
        self.u64(key).ok_or_else(|| Damage::new(format!("{key}, a whole number"), self.brief(key)))
    }

    pub(super) fn brief(&self, key: &str) -> String {
        self.metadata.get(key).map_or("none".into(), Value::brief)
    }

    /// config.json, tokenizer.json and tokenizer_config.json, rebuilt from the metadata.
    ///
    /// # Errors
    /// An architecture or tokenizer that is not supported, or metadata that is missing or of another type.
    pub fn companions(&self) -> Result<Companions, Damage> {
        let bytes = |value: &Json| serde_json::to_vec_pretty(value).unwrap_or_default();
        Ok(Companions {
            config: bytes(&self.config()?),
            tokenizer: bytes(&tokenizer::tokenizer(self)?),
            tokenizer_config: bytes(&tokenizer::config(self)),
        })
    }

    fn config(&self) -> Result<Json, Damage> {
        let (arch, architecture, model_type, _) = self.architecture()?;
        let key = |name: &str| format!("{arch}.{name}");
        if let Some(experts) = self.u64(&key("expert_count")).filter(|experts| *experts > 0) {
            let found = format!("a mixture of {experts} experts");
            return Err(Damage { fix: "use a dense model", ..Damage::new("a dense model", found) });
        }
        let scaling = key("rope.scaling.type");
        let kind = self.str(&scaling).unwrap_or("linear");
        if !["none", "linear"].contains(&kind) {
            return Err(Damage::unsupported(format!("{scaling}: none or linear"), format!("\"{kind}\"")));
        }
        // llama.cpp takes a factor without a type as linear. Old files have the factor under another name.
        let factor = self.f64(&key("rope.scaling.factor")).or(self.f64(&key("rope.scale_linear")));
        let factor = factor.filter(|factor| kind == "linear" && *factor != 0.0 && *factor != 1.0);
        let tensor = self.tensors.get("token_embd.weight");
        let vocab = tensor.and_then(|t| t.shape.first()).copied();
        let vocab = vocab.ok_or_else(|| Damage::new("tensor token_embd.weight", "none"))?;
        let heads = self.need(&key("attention.head_count"))?;
        let width = self.need(&key("embedding_length"))?;
        let head_dim = self.u64(&key("attention.key_length")).unwrap_or(width / heads.max(1));
        let turned = self.u64(&key("rope.dimension_count"));
        if let Some(turned) = turned.filter(|turned| *turned != head_dim) {
            let expected = format!("{arch}.rope.dimension_count {head_dim}");
            return Err(Damage::unsupported(expected, turned.to_string()));
        }
        // The file has an f32; its shortest decimal is the number that config.json had.
        let number = |name: &str| self.f64(&key(name)).map(|value| (value as f32).to_string().parse::<f64>());
        let mut config = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": self.need(&key("feed_forward_length"))?,
            "num_hidden_layers": self.need(&key("block_count"))?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.u64(&key("attention.head_count_kv")).unwrap_or(heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.need(&key("context_length"))?,
            "rms_norm_eps": number("attention.layer_norm_rms_epsilon").and_then(Result::ok).unwrap_or(1e-6),
            "rope_theta": number("rope.freq_base").and_then(Result::ok).unwrap_or(10_000.0),
            "tie_word_embeddings": !self.tensors.contains_key("output.weight"),
            "hidden_act": "silu",
            "torch_dtype": "float16",
        });
        let Json::Object(map) = &mut config else { return Ok(config) };
        if let Some(factor) = factor {
            map.insert("rope_scaling".into(), json!({"rope_type": "linear", "factor": factor}));
        }
        self.add_scaling(map)?;
        self.add_biases(arch, map)?;
        if let Some(window) = self.u64(&key("attention.sliding_window")).filter(|_| arch == "llama") {
            if map.contains_key("attention_bias") || map["model_type"] != "llama" {
                return Err(Damage::unsupported(
                    "no sliding window in a model with biases",
                    window.to_string(),
                ));
            }
            // Of the models that are called llama, only Mistral has a window.
            map.insert("architectures".into(), json!(["MistralForCausalLM"]));
            map.insert("model_type".into(), json!("mistral"));
            map.insert("sliding_window".into(), window.into());
        }
        for token in ["bos", "eos"] {
            if let Some(id) = self.u64(&format!("tokenizer.ggml.{token}_token_id")) {
                map.insert(format!("{token}_token_id"), id.into());
            }
        }
        Ok(config)
    }

    /// The metadata do not say which layers have biases, only the tensors do. In a llama, either all or none
    /// of attention's layers have them, and either all or none of the MLP's. A llama with biases on queries,
    /// keys and values alone is read as a Qwen 2.
    fn add_biases(&self, arch: &str, config: &mut Map<String, Json>) -> Result<(), Damage> {
        let has = |part: &str| self.tensors.contains_key(&format!("blk.0.{part}.bias"));
        let groups =
            [&["attn_q", "attn_k", "attn_v"][..], &["attn_output"], &["ffn_gate", "ffn_up", "ffn_down"]];
        let all = groups.map(|group| group.iter().all(|part| has(part)));
        let some = groups.iter().zip(all).any(|(group, all)| !all && group.iter().any(|part| has(part)));
        match (arch, all) {
            _ if some => {}
            (_, [false, false, false]) | ("qwen2", [true, false, false]) => return Ok(()),
            ("llama", [attention, output, mlp]) if attention == output => {
                config.insert("attention_bias".into(), attention.into());
                config.insert("mlp_bias".into(), mlp.into());
                return Ok(());
            }
            ("llama", [true, false, false]) => {
                config.insert("architectures".into(), json!(["Qwen2ForCausalLM"]));
                config.insert("model_type".into(), json!("qwen2"));
                return Ok(());
            }
            _ => {}
        }
        let found = self.tensors.keys().find(|name| name.starts_with("blk.0.") && name.ends_with(".bias"));
        let found = found.map_or("other biases".into(), |name| format!("{name}, among others"));
        let expected = "biases in all or none of attention's layers, and in all or none of the MLP's";
        Err(Damage::unsupported(expected, found))
    }

    /// Llama 3's scaling of rotary frequencies is stored as the divisor of each frequency. The settings
    /// behind it are not stored: the factor is the largest divisor, and the others are assumed to be those of
    /// all Llama 3 models. They must give the same divisors.
    fn add_scaling(&self, config: &mut Map<String, Json>) -> Result<(), Damage> {
        let Some(tensor) = self.tensors.get("rope_freqs.weight") else { return Ok(()) };
        let bytes = tensor.bytes.read();
        let bytes =
            bytes.map_err(|error| Damage::new("rope_freqs.weight that can be read", error.to_string()))?;
        let divisors = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let divisors: Vec<f64> = divisors.map(f64::from).collect();
        let factor = divisors.iter().copied().fold(1.0, f64::max);
        let (low_freq_factor, high_freq_factor, original_max) = (1.0, 4.0, 8192.0);
        let number = |key: &str| config.get(key).and_then(Json::as_f64).unwrap_or_default();
        let (theta, dim) = (number("rope_theta"), number("head_dim") as usize);
        let scaling = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max };
        let [plain, scaled] =
            [None, Some(scaling)].map(|scaling| Rope { theta, scaling, dim }.inverse_frequencies());
        let expected = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
        let same =
            expected.zip(&divisors).all(|(expected, found)| (expected - found).abs() <= 1e-3 * expected);
        if tensor.kind != Kind::F32 || divisors.len() != plain.len() || !same {
            let expected = "rope_freqs.weight of Llama 3's scaling (factors 1 and 4, context 8192)";
            return Err(Damage::unsupported(expected, "other divisors"));
        }
        let scaling = json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max,
        });
        config.insert("rope_scaling".into(), scaling);
        Ok(())
    }

    /// The file's tensors by Hugging Face's names; `rope_freqs`, which becomes a setting, is left out.
    ///
    /// # Errors
    /// As [`Gguf::companions`].
    pub fn names(&self) -> Result<Vec<Named<'_>>, Damage> {
        let (arch, _, _, reordered) = self.architecture()?;
        let heads = self.need(&format!("{arch}.attention.head_count"))? as usize;
        let kv_heads = self.u64(&format!("{arch}.attention.head_count_kv")).map_or(heads, |n| n as usize);
        let known = |name: &str| match name {
            "token_embd.weight" => Some(("model.embed_tokens.weight".to_string(), None)),
            "output_norm.weight" => Some(("model.norm.weight".into(), None)),
            "output.weight" => Some(("lm_head.weight".into(), None)),
            other => {
                let (index, rest) = other.strip_prefix("blk.")?.split_once('.')?;
                let (part, ending) = rest.rsplit_once('.')?;
                let index: usize = index.parse().ok()?;
                let (_, module) = PARTS.into_iter().find(|(own, _)| *own == part)?;
                let heads = match part {
                    "attn_q" => Some(heads),
                    "attn_k" => Some(kv_heads),
                    _ => None,
                };
                Some((format!("model.layers.{index}.{module}.{ending}"), heads.filter(|_| reordered)))
            }
        };
        let all = self.tensors.keys().filter_map(|name| {
            // A tensor that is not part of a model keeps its name, so that it can be listed as not read.
            let (hf, reordered) = known(name).unwrap_or_else(|| (name.clone(), None));
            (name != "rope_freqs.weight").then_some(Named { name, hf, reordered })
        });
        Ok(all.collect())
    }
}

/// The rows of queries or keys in Hugging Face's order. In a file of llama's architecture, row 2 j + half of
/// a head is row half · d / 2 + j in Hugging Face, because llama.cpp rotates neighbours.
pub(crate) fn in_halves(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    // With any other shape it is not such a projection: that is reported where the tensor is used.
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) || !bytes.len().is_multiple_of(rows) {
        return bytes.to_vec();
    }
    let (size, dim) = (bytes.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, within) = (row / dim, row % dim);
        let (half, j) = (within / (dim / 2), within % (dim / 2));
        let source = head * dim + 2 * j + half;
        out.extend(&bytes[source * size..(source + 1) * size]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::TensorInfo;
    use crate::model::{FileBytes, Span};

    /// The scaling that is read from the divisors of Llama 3.2's frequencies, with one of them multiplied by
    /// `spoilt`.
    fn scaling(spoilt: f32) -> Result<Map<String, Json>, Damage> {
        let (low_freq_factor, high_freq_factor, original_max) = (1.0, 4.0, 8192.0);
        let scaling = RopeScaling::Llama3 { factor: 32.0, low_freq_factor, high_freq_factor, original_max };
        let [plain, scaled] = [None, Some(scaling)]
            .map(|scaling| Rope { theta: 500_000.0, scaling, dim: 64 }.inverse_frequencies());
        let mut divisors: Vec<f32> =
            plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect();
        divisors[16] *= spoilt;
        let bytes: Vec<u8> = divisors.iter().flat_map(|d| d.to_le_bytes()).collect();
        let tensor = TensorInfo { kind: Kind::F32, shape: vec![32], bytes: Span::all((&bytes).into()) };
        let tensors = [("rope_freqs.weight".to_string(), tensor)].into();
        let mut config =
            Map::from_iter([("rope_theta".into(), json!(500_000.0)), ("head_dim".into(), json!(64))]);
        Gguf { metadata: Default::default(), tensors }.add_scaling(&mut config).map(|()| config)
    }

    #[test]
    fn llama_3_s_scaling_is_recognised_and_another_refused() {
        assert_eq!(scaling(1.0).unwrap()["rope_scaling"]["factor"], 32.0);
        assert!(scaling(1.1).unwrap_err().expected.contains("rope_freqs.weight"));
    }

    /// A file with these metadata in addition to those of a small Llama.
    fn file(more: &[(&str, Value)]) -> Gguf<'static> {
        let own = [
            ("general.architecture", Value::String("llama".into())),
            ("llama.attention.head_count", Value::U32(2)),
            ("llama.embedding_length", Value::U32(8)),
            ("llama.feed_forward_length", Value::U32(8)),
            ("llama.block_count", Value::U32(1)),
            ("llama.context_length", Value::U32(32)),
        ];
        let metadata = own.iter().chain(more).map(|(key, value)| (key.to_string(), value.clone())).collect();
        let tensor =
            TensorInfo { kind: Kind::F32, shape: vec![4, 8], bytes: Span::all(FileBytes::Memory(&[])) };
        Gguf { metadata, tensors: [("token_embd.weight".to_string(), tensor)].into() }
    }

    #[test]
    fn files_that_are_no_whole_dense_model_are_named() {
        for (key, value, found, fix) in [
            ("split.count", Value::U16(3), "a part of 3 of a split file", "llama-gguf-split --merge"),
            ("general.type", Value::String("adapter".into()), "one of type \"adapter\"", "PEFT"),
            ("llama.expert_count", Value::U32(8), "a mixture of 8 experts", "a dense model"),
            ("llama.rope.scaling.type", Value::String("yarn".into()), "\"yarn\"", "Hugging Face directory"),
        ] {
            let damage = file(&[(key, value)]).config().unwrap_err();
            assert!(damage.found == found && damage.fix.contains(fix), "{damage:?}");
        }
    }

    #[test]
    fn biases_are_told_by_the_tensors() {
        let with = |parts: &[&str]| {
            let mut file = file(&[]);
            for part in parts {
                let bias =
                    TensorInfo { kind: Kind::F32, shape: vec![8], bytes: Span::all(FileBytes::Memory(&[])) };
                file.tensors.insert(format!("blk.0.{part}.bias"), bias);
            }
            file.config()
        };
        let qkv = ["attn_q", "attn_k", "attn_v"];
        assert_eq!(with(&[]).unwrap()["attention_bias"], Json::Null);
        assert_eq!(with(&qkv).unwrap()["architectures"][0], "Qwen2ForCausalLM");
        let all =
            with(&["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]).unwrap();
        assert_eq!((&all["attention_bias"], &all["mlp_bias"]), (&json!(true), &json!(true)));
        for odd in [&qkv[..1], &["attn_output"], &["ffn_up"]] {
            assert!(with(odd).unwrap_err().found.contains(odd[0]));
        }
    }

    #[test]
    fn linear_scaling_is_read_from_all_its_keys() {
        let rope = |more: &[(&str, Value)]| file(more).config().unwrap()["rope_scaling"].clone();
        let linear = json!({"rope_type": "linear", "factor": 4.0});
        assert_eq!(rope(&[("llama.rope.scale_linear", Value::F32(4.0))]), linear);
        assert_eq!(rope(&[("llama.rope.scaling.factor", Value::F32(4.0))]), linear);
        let named = ("llama.rope.scaling.type", Value::String("linear".into()));
        assert_eq!(rope(&[named, ("llama.rope.scaling.factor", Value::F32(4.0))]), linear);
        for none in [
            &[][..],
            &[("llama.rope.scaling.factor", Value::F32(1.0))],
            &[("llama.rope.scale_linear", Value::F32(0.0))],
        ] {
            assert_eq!(rope(none), Json::Null);
        }
    }

    #[test]
    fn rows_go_back_to_halves() {
        // Two heads of four rows of one byte: neighbours 0 and 1 are the first of each half.
        assert_eq!(in_halves(&[0, 2, 1, 3, 10, 12, 11, 13], 8, 2), [0, 1, 2, 3, 10, 11, 12, 13]);
        assert_eq!(in_halves(&[1, 2, 3], 3, 2), [1, 2, 3]);
    }
}
