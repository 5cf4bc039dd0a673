//! The small files around a tokenizer: special tokens, end tokens, the chat template's text.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result, setting};

/// The bytes of a model's tokenizer files, as Hugging Face names them. Only `tokenizer` is needed.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles {
    /// The model's name or folder, for messages.
    pub origin: String,
    /// Whether all files were made from the metadata of one GGUF file, `origin`.
    pub of_gguf: bool,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`: special tokens, and in older models the chat template.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `special_tokens_map.json`, for special tokens that `tokenizer_config.json` lacks.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `generation_config.json`, whose `eos_token_id` may list several end tokens.
    pub generation_config: Option<Vec<u8>>,
    /// `config.json`, for its `eos_token_id`.
    pub config: Option<Vec<u8>>,
    /// `chat_template.jinja`, or the user's own template: it takes precedence over `tokenizer_config.json`.
    pub chat_template: Option<String>,
    /// The file that `chat_template` is from, if it is not the model's own.
    pub template_file: Option<String>,
    /// Variables for the chat template, such as `{"enable_thinking": false}`.
    pub template_args: Map<String, Value>,
    /// The moment that `strftime_now` prints, in seconds since 1970 (UTC). None: the time of loading.
    pub now: Option<i64>,
}

impl TokenizerFiles {
    /// The name of a file in messages: its path, or the GGUF file whose metadata it was made from.
    pub(crate) fn place(&self, file: &str) -> String {
        match self.of_gguf {
            true => format!("{} (its metadata, read as {file})", self.origin),
            false => format!("{}/{file}", self.origin),
        }
    }
}

/// Special tokens, end tokens and chat template, as read from the files.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenizerFacts {
    /// Special tokens by name (`bos_token`, ...), from `tokenizer_config.json` first.
    pub specials: BTreeMap<String, String>,
    /// `eos_token_id`s of `generation_config.json`, then of `config.json`; may contain duplicates.
    pub eos_ids: Vec<u32>,
    /// The template's text and the file it came from.
    pub template: Option<(String, String)>,
    /// `added_tokens_decoder` of `tokenizer_config.json`: ids and tokens.
    pub added: Vec<(u32, String)>,
}

impl TokenizerFacts {
    /// Reads every file except `tokenizer.json`. Fails on invalid JSON or a value of the wrong kind.
    pub fn read(files: &TokenizerFiles) -> Result<Self> {
        let object = |name: &str, bytes: &Option<Vec<u8>>| match bytes {
            Some(bytes) => parse_object(files.place(name), bytes),
            None => Ok(Map::new()),
        };
        let config = object("tokenizer_config.json", &files.tokenizer_config)?;
        let mut facts = Self::default();
        let added = config.get("added_tokens_decoder").and_then(Value::as_object);
        let token = |(id, token): (&String, &Value)| Some((id.parse().ok()?, token_text(token)?.to_owned()));
        facts.added = added.into_iter().flatten().filter_map(token).collect();
        for map in [&object("special_tokens_map.json", &files.special_tokens_map)?, &config] {
            for (name, value) in map.iter().filter(|(name, _)| name.ends_with("_token")) {
                if let Some(token) = token_text(value) {
                    facts.specials.insert(name.clone(), token.to_owned());
                }
            }
        }
        for (name, bytes) in
            [("generation_config.json", &files.generation_config), ("config.json", &files.config)]
        {
            facts.eos_ids.extend(eos_ids(&files.place(name), &object(name, bytes)?)?);
        }
        facts.template = match &files.chat_template {
            Some(text) => {
                let own = || files.place("chat_template.jinja");
                let place = files.template_file.clone().unwrap_or_else(own);
                if text.trim().is_empty() {
                    let fix = format!("download it again, or give another with {}", setting("chat_template"));
                    return Err(Error::input(place, "a chat template", "an empty file", fix));
                }
                // Python reads `\r\n` as `\n`, and a byte order mark is not part of a prompt.
                let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
                Some((text, place))
            }
            None => {
                let place = files.place("tokenizer_config.json");
                template_text(&place, config.get("chat_template"))?.map(|text| (text.to_owned(), place))
            }
        };
        Ok(facts)
    }
}

fn parse_object(place: String, bytes: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::input(place, "a JSON object", "another JSON value", "download the file again")),
        Err(error) => Err(Error::input(place, "a JSON object", error, "download the file again")),
    }
}

/// A special token is written as a string or as an object with a `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// `eos_token_id`: absent, null, -1, one id, or a list of ids.
fn eos_ids(place: &str, map: &Map<String, Value>) -> Result<Vec<u32>> {
    let wrong = |found: &Value| {
        Error::input(
            format!("{place}: eos_token_id"),
            "a token id or a list of token ids",
            found,
            "correct the id, or remove the key",
        )
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(value));
    // Old configurations write -1 for "no end token".
    let is_one = |value: &&Value| !value.is_null() && value.as_i64() != Some(-1);
    let all = match map.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(value) => std::slice::from_ref(value),
        None => &[],
    };
    all.iter().filter(is_one).map(id).collect()
}

/// `chat_template`: absent, null, one text, or a list (or map) of named texts, where `default` is used.
fn template_text<'a>(place: &str, value: Option<&'a Value>) -> Result<Option<&'a str>> {
    let named: Vec<(&str, &str)> = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(items)) => items
            .iter()
            .filter_map(|item| Some((item.get("name")?.as_str()?, item.get("template")?.as_str()?)))
            .collect(),
        Some(Value::Object(map)) => {
            map.iter().filter_map(|(name, text)| Some((name.as_str(), text.as_str()?))).collect()
        }
        Some(_) => Vec::new(),
    };
    match named.iter().find(|(name, _)| *name == "default") {
        Some((_, text)) => Ok(Some(text)),
        None => Err(Error::input(
            format!("{place}: chat_template"),
            "a template, or named templates with one called \"default\"",
            match named.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ") {
                names if names.is_empty() => "neither".to_owned(),
                names => format!("only {names}"),
            },
            format!("give the template to use with {}", setting("chat_template")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(tokenizer_config: &str, generation_config: &str) -> Result<TokenizerFacts> {
        TokenizerFacts::read(&TokenizerFiles {
            origin: "m".into(),
            tokenizer_config: Some(tokenizer_config.into()),
            generation_config: Some(generation_config.into()),
            special_tokens_map: Some(br#"{"eos_token": "old", "unk_token": "<unk>"}"#.to_vec()),
            config: Some(br#"{"eos_token_id": 9}"#.to_vec()),
            ..TokenizerFiles::default()
        })
    }

    #[test]
    fn tokens_come_as_strings_or_objects_and_ids_as_one_or_many() {
        let read =
            facts(r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null}"#, "{}")
                .unwrap();
        assert_eq!(read.specials["bos_token"], "<s>");
        assert_eq!(read.specials["eos_token"], "</s>"); // tokenizer_config.json wins
        assert_eq!(read.specials["unk_token"], "<unk>");
        assert!(!read.specials.contains_key("pad_token"));
        assert_eq!(read.eos_ids, [9]);
        assert_eq!(facts("{}", r#"{"eos_token_id": [3, 4]}"#).unwrap().eos_ids, [3, 4, 9]);
        assert_eq!(facts("{}", r#"{"eos_token_id": 5}"#).unwrap().eos_ids, [5, 9]);
        assert_eq!(facts("{}", r#"{"eos_token_id": [null, 4, -1]}"#).unwrap().eos_ids, [4, 9]);
        let error = facts("{}", r#"{"eos_token_id": "x"}"#).unwrap_err().to_string();
        assert!(error.contains("m/generation_config.json: eos_token_id"), "{error}");
    }

    #[test]
    fn the_default_of_several_templates_is_taken() {
        let named = r#"{"chat_template":
            [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
        assert_eq!(facts(named, "{}").unwrap().template.unwrap().0, "D");
        assert_eq!(facts(r#"{"chat_template": "one"}"#, "{}").unwrap().template.unwrap().0, "one");
        let error =
            facts(r#"{"chat_template": [{"name": "rag", "template": "R"}]}"#, "{}").unwrap_err().to_string();
        assert!(error.contains("only rag") && error.contains("chat_template"), "{error}");
    }

    #[test]
    fn broken_files_are_named() {
        let error = facts("[1]", "{}").unwrap_err().to_string();
        assert!(error.contains("m/tokenizer_config.json"), "{error}");
    }
}
