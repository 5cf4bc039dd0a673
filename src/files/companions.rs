//! The files beside a model's weights, when weights are written elsewhere.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The files of a model's directory that go where its weights go, in the order of their names.
pub(super) fn companions(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let failed = |error| Error::io(directory, "list", error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Of a name that is no text nothing is known.
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_file() && is_companion(name) {
            found.push((name.to_owned(), super::read(&path, "--model")?));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file of this name goes along: configurations, tokenizers, templates and licences do. Weights in
/// any format do not, nor does what says how they were cut up or trained, nor a model card, which would be
/// another model's.
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

/// config.json with the weights' type, under "dtype" where it has that (transformers 5), otherwise under
/// "torch_dtype"; and as a judge's of that architecture. As it was, to the byte, where nothing changes.
pub(super) fn changed(
    config: &[u8],
    dtype: Option<&str>,
    architecture: Option<&str>,
    untied: bool,
) -> Result<Vec<u8>> {
    if dtype.is_none() && architecture.is_none() && !untied {
        return Ok(config.to_vec());
    }
    let wrong = |error| Error::input("config.json", "a JSON object", error, "fetch the file again");
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
