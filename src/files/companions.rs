//! The files that are copied along when a model's weights are written to another folder.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::disk;
use crate::error::{Error, Result, setting};

/// Names and bytes of the files in a model's directory that are copied with its weights, sorted by name.
pub(super) fn companions(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let failed = |error| Error::io(directory, "list", error);
    let mut found = Vec::new();
    for name in disk::names(directory).map_err(failed)? {
        let path = directory.join(&name);
        if is_companion(&name) && disk::is_file(&path) {
            found.push((name, super::read(&path, &setting("model"))?));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file of this name is copied: configurations, tokenizers, templates and licences are. Weights in
/// any format, shard indexes, records of training and model cards (of another model, then) are not.
fn is_companion(name: &str) -> bool {
    let name = name.to_lowercase();
    let legal = ["license", "licence", "notice", "use_policy"].iter().any(|start| name.starts_with(start));
    let kind = [".json", ".jinja", ".model", ".tiktoken", ".txt"].iter().any(|end| name.ends_with(end));
    let other = ["adapter_config.json", "trainer_state.json", "all_results.json", "train_results.json"];
    (legal || kind)
        && !name.starts_with('.')
        && !name.ends_with(".index.json")
        && !other.contains(&name.as_str())
}

/// config.json with these changes, if any: `dtype` under "dtype" if that key exists (transformers 5),
/// otherwise under "torch_dtype"; `architecture` with a judge's labels; with `untied`, embeddings that are
/// not tied to the head. Without changes, the same bytes.
pub(super) fn changed(
    config: &[u8],
    dtype: Option<&str>,
    architecture: Option<&str>,
    untied: bool,
) -> Result<Vec<u8>> {
    if dtype.is_none() && architecture.is_none() && !untied {
        return Ok(config.to_vec());
    }
    let wrong = |error| Error::input("config.json", "a JSON object", error, "download it again");
    let mut config: Map<String, Value> = serde_json::from_slice(config).map_err(wrong)?;
    for key in ["dtype", "torch_dtype"] {
        let own = config.contains_key(key) || (key == "torch_dtype" && !config.contains_key("dtype"));
        if let Some(dtype) = dtype.filter(|_| own) {
            config.insert(key.to_owned(), dtype.into());
        }
    }
    if untied {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    if let Some(architecture) = architecture {
        config.insert("architectures".into(), json!([architecture]));
        config.insert("id2label".into(), json!({"0": "fine", "1": "flagged"}));
        config.insert("label2id".into(), json!({"fine": 0, "flagged": 1}));
    }
    Ok((serde_json::to_string_pretty(&config).map_err(wrong)? + "\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_what_describes_them_stay_behind() {
        for name in
            ["config.json", "tokenizer.model", "chat_template.jinja", "merges.txt", "LICENSE", "NOTICE.md"]
        {
            assert!(is_companion(name), "{name}");
        }
        let others = "model.safetensors pytorch_model.bin model.safetensors.index.json a.gguf README.md \
                      .gitattributes adapter_config.json training_args.bin";
        for name in others.split_whitespace() {
            assert!(!is_companion(name), "{name}");
        }
    }

    #[test]
    fn the_configuration_names_the_type_once() {
        let set = |config: &str| {
            let bytes = changed(config.as_bytes(), Some("float32"), None, false).unwrap();
            serde_json::from_slice::<Value>(&bytes).unwrap().to_string()
        };
        assert_eq!(set(r#"{"dtype": "bfloat16"}"#), r#"{"dtype":"float32"}"#);
        assert_eq!(set(r#"{"torch_dtype": "bfloat16", "a": 1}"#), r#"{"a":1,"torch_dtype":"float32"}"#);
        assert_eq!(set("{}"), r#"{"torch_dtype":"float32"}"#);
        let untied = changed(br#"{"tie_word_embeddings": true}"#, None, None, true).unwrap();
        assert!(String::from_utf8(untied).unwrap().contains("\"tie_word_embeddings\": false"));
        assert!(
            changed(b"[]", Some("float32"), None, false).unwrap_err().to_string().starts_with("config.json")
        );
    }
}
