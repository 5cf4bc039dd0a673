//! tokenizer.json and tokenizer_config.json from a GGUF file's metadata.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::{Damage, Gguf, Value};

/// Token types, as `tokenizer.ggml.token_type` has them.
pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER: u64 = 4;
pub(super) const UNUSED: u64 = 5;
pub(super) const BYTE: u64 = 6;

/// Llama 3's pre-tokenizer: how a text is split before merging.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's pre-tokenizer.
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The vocabulary of a file.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf) -> Result<Self, Damage> {
        let key = "tokenizer.ggml.tokens";
        let array = |key: &str| file.metadata.get(key).and_then(Value::as_array);
        let tokens = array(key).and_then(|all| all.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        let tokens = tokens.ok_or_else(|| Damage::new(format!("{key}: strings"), file.brief(key)))?;
        let key = "tokenizer.ggml.token_type";
        let types = array(key).and_then(|all| all.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
        let types = types.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(Damage::new(format!("{key}: {} entries", tokens.len()), types.len().to_string()));
        }
        Ok(Self { tokens, types })
    }

    /// Whether this is the converter's padding for a row of the embedding that has no token.
    fn is_padding(&self, id: usize) -> bool {
        let token = self.tokens[id];
        token == format!("[PAD{id}]") || token == format!("<pad{id}>")
    }

    /// Tokens that are matched in a text as a whole. Control tokens are special, user-defined ones are not.
    fn added(&self) -> Vec<Json> {
        let whole = |id: &usize| [UNKNOWN, CONTROL, USER].contains(&self.types[*id]) && !self.is_padding(*id);
        let token = |id: usize| {
            json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": self.types[id] != USER})
        };
        (0..self.tokens.len()).filter(whole).map(token).collect()
    }

    /// Ids by token. A token that occurs twice has its first id.
    fn ids(&self) -> HashMap<&'a str, usize> {
        let mut ids = HashMap::new();
        for id in (0..self.tokens.len()).filter(|&id| !self.is_padding(id)) {
            ids.entry(self.tokens[id]).or_insert(id);
        }
        ids
    }
}

/// tokenizer.json.
pub(super) fn tokenizer(file: &Gguf) -> Result<Json, Damage> {
    let vocabulary = Vocabulary::read(file)?;
    match file.str("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(file, &vocabulary),
        Some("llama") => sentence_pieces(file, &vocabulary),
        _ => {
            let key = "tokenizer.ggml.model";
            Err(Damage::unsupported(format!("{key} gpt2 or llama"), file.brief(key)))
        }
    }
}

/// tokenizer_config.json: special tokens and the chat template.
pub(super) fn config(file: &Gguf) -> Json {
    let mut config = Map::new();
    let tokens = file.metadata.get("tokenizer.ggml.tokens").and_then(Value::as_array).unwrap_or_default();
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        let id = file.u64(&format!("tokenizer.ggml.{key}_token_id"));
        if let Some(token) = id.and_then(|id| tokens.get(id as usize)?.as_str()) {
            config.insert(format!("{name}_token"), token.into());
        }
    }
    if let Some(template) = file.str("tokenizer.chat_template") {
        config.insert("chat_template".into(), template.into());
    }
    Json::Object(config)
}

/// The post-processor that adds the tokens for the beginning and the end of a text, if the file asks for
/// them.
fn ends(file: &Gguf, vocabulary: &Vocabulary, bos: bool) -> Json {
    let flag = |key: &str| file.metadata.get(key).and_then(Value::as_bool);
    let token = |wanted: bool, name: &str| {
        let id = file.u64(&format!("tokenizer.ggml.{name}_token_id"))? as usize;
        vocabulary.tokens.get(id).filter(|_| wanted).map(|token| (*token, id))
    };
    let bos = token(flag("tokenizer.ggml.add_bos_token").unwrap_or(bos), "bos");
    let eos = token(flag("tokenizer.ggml.add_eos_token").unwrap_or(false), "eos");
    if bos.is_none() && eos.is_none() {
        return Json::Null;
    }
    let special = |of: Option<(&str, usize)>, kind: u32| {
        of.map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": kind}}))
    };
    let side = |sequence: &str, kind: u32| {
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        [special(bos, kind), Some(text), special(eos, kind)].into_iter().flatten().collect::<Vec<_>>()
    };
    let used: Map<String, Json> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [side("A", 0), side("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": side("A", 0), "pair": pair, "special_tokens": used})
}

fn byte_level(file: &Gguf, vocabulary: &Vocabulary) -> Result<Json, Damage> {
    let bytes = |regex: bool, prefix: bool| {
        let trim = true;
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex})
    };
    let split = |pattern: &str| {
        let pattern = json!({"Regex": pattern});
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    let sequence = |first: Json, second: Json| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let key = "tokenizer.ggml.pre";
    let (pre_tokenizer, normalizer, whole, bos) = match file.str(key).unwrap_or("default") {
        "gpt-2" => (bytes(true, false), Json::Null, false, false),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (sequence(digits, bytes(true, false)), Json::Null, false, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => {
            (sequence(split(LLAMA3), bytes(false, false)), Json::Null, true, true)
        }
        "qwen2" | "deepseek-r1-qwen" => {
            (sequence(split(QWEN2), bytes(false, false)), json!({"type": "NFC"}), false, false)
        }
        other => {
            let expected = format!("{key} gpt-2, smollm, llama-bpe or qwen2");
            return Err(Damage::unsupported(expected, format!("\"{other}\"")));
        }
    };
    let key = "tokenizer.ggml.merges";
    let merges = file.metadata.get(key).and_then(Value::as_array);
    let pair = |merge: &Value| merge.as_str()?.split_once(' ').map(|(left, right)| json!([left, right]));
    let merges = merges.and_then(|all| all.iter().map(pair).collect::<Option<Vec<_>>>());
    let merges = merges.ok_or_else(|| Damage::new(format!("{key}: pairs"), file.brief(key)))?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": ends(file, vocabulary, bos),
        "decoder": bytes(true, true),
        "model": {"type": "BPE", "vocab": vocabulary.ids(), "merges": merges, "ignore_merges": whole},
    }))
}

/// SentencePiece's BPE: the file has scores instead of merges.
fn sentence_pieces(file: &Gguf, vocabulary: &Vocabulary) -> Result<Json, Damage> {
    let key = "tokenizer.ggml.scores";
    let scores = file.metadata.get(key).and_then(Value::as_array);
    let scores = scores.and_then(|all| all.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
    let scores = scores.filter(|scores| scores.len() == vocabulary.tokens.len());
    let scores = scores.ok_or_else(|| Damage::new(format!("{key}: one for each token"), file.brief(key)))?;
    let prefix =
        file.metadata.get("tokenizer.ggml.add_space_prefix").and_then(Value::as_bool).unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let back = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    let normalizer = if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, spaces]})
    } else {
        spaces
    };
    let unknown = file.u64("tokenizer.ggml.unknown_token_id").map(|id| id as usize);
    let unknown = unknown.or_else(|| vocabulary.types.iter().position(|kind| *kind == UNKNOWN));
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": ends(file, vocabulary, true),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": vocabulary.ids(),
            "merges": merges(vocabulary, &scores),
            "unk_token": unknown.and_then(|id| vocabulary.tokens.get(id)),
            "fuse_unk": true,
            "byte_fallback": vocabulary.types.contains(&BYTE),
        },
    }))
}

/// Every way to make a piece from two others, in the order in which SentencePiece merges: the best score
/// first.
fn merges(vocabulary: &Vocabulary, scores: &[f64]) -> Vec<Json> {
    let merged = |id: usize| [NORMAL, USER, UNUSED].contains(&vocabulary.types[id]);
    let ids: HashMap<&str, usize> = vocabulary.ids().into_iter().filter(|(_, id)| merged(*id)).collect();
    let mut found = Vec::new();
    // A user-defined token is matched as a whole before anything is merged.
    for (token, &id) in ids.iter().filter(|(_, id)| vocabulary.types[**id] != USER) {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if ids.contains_key(left) && ids.contains_key(right) {
                found.push((scores[id], id, left, right));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(b.2.len().cmp(&a.2.len())));
    found.into_iter().map(|(_, _, left, right)| json!([left, right])).collect()
}
