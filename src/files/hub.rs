//! Models by their names on the Hugging Face Hub, through the cache that Python's huggingface_hub keeps too.
//!
//! A model that lies in the cache whole is taken from there, and nothing is asked of the network. `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to Python's.

use std::env::var;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};

use super::model::shards;
use crate::error::{Error, Result};

/// How often an interrupted download is taken up again.
const RETRIES: usize = 5;

/// Files beside the weights that a model's directory may have.
const COMPANIONS: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A repository's name, and the GGUF file in it that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// `owner/name`
    pub repository: &'a str,
    /// A file's path in it, where it is one GGUF file that is wanted.
    pub gguf: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// Reads `owner/name` or `owner/name/FILE.gguf`; `None` for what cannot be such a name.
    pub fn parse(text: &'a str) -> Option<Self> {
        let part = |part: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(fits)
        };
        let parts: Vec<&str> = text.split('/').collect();
        let known = parts.len() >= 2 && parts.iter().all(|p| part(p));
        match parts.len() {
            2 if known && !text.ends_with(".gguf") => Some(Self { repository: text, gguf: None }),
            3.. if known && text.ends_with(".gguf") => {
                let end = parts[0].len() + 1 + parts[1].len();
                Some(Self { repository: &text[..end], gguf: Some(&text[end + 1..]) })
            }
            _ => None,
        }
    }
}

/// Where a model lies once it is in the cache: a directory, or a GGUF file. What is missing is downloaded, with a bar on the terminal
/// where `bar` asks for one; what was begun before is taken up where it ended.
///
/// # Errors
/// [`Error::Input`] for a repository or file that is not there, that asks for a token, or that the network does not bring.
pub fn fetch(name: &Name, bar: bool) -> Result<PathBuf> {
    let cache = Cache::new(cache_path()?);
    let repository = Repo::model(name.repository.to_string());
    let cached = cache.repo(repository.clone());
    // Other programs leave tokenizer_config.json out, which most models have: only the Hub knows.
    if let Some(path) = whole(name, &|file| cached.get(file), true) {
        return Ok(path);
    }
    let place = format!("--model {}", name.repository);
    if var("HF_HUB_OFFLINE")
        .is_ok_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
    {
        if let Some(path) = whole(name, &|file| cached.get(file), false) {
            return Ok(path);
        }
        let expected = format!("the whole model in the cache at {}", cache.path().display());
        let fix = "unset HF_HUB_OFFLINE once, to download it";
        return Err(Error::input(place, expected, "HF_HUB_OFFLINE, and not all of it", fix));
    }
    let token = var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty()).or_else(token_file);
    let mut builder = ApiBuilder::from_cache(cache)
        .with_token(token)
        .with_progress(bar)
        .with_retries(RETRIES)
        .with_user_agent("aweigh", env!("CARGO_PKG_VERSION"));
    if let Ok(endpoint) = var("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
    }
    let remote = builder.build().map_err(|error| failed(&place, &error))?.repo(repository);
    download(name, &remote, &place)?;
    whole(name, &|file| cached.get(file), false).ok_or_else(|| {
        Error::input(place, "a model whose files all came", "one that is not whole", "try again")
    })
}

fn given(name: &str) -> Option<PathBuf> {
    var(name).ok().filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Python's rules, here and for what lies in it.
fn home() -> Option<PathBuf> {
    let cache = given("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
    given("HF_HOME").or_else(|| Some(cache?.join("huggingface")))
}

/// The token that `hf auth login` keeps.
fn token_file() -> Option<String> {
    let path = given("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")))?;
    let token = std::fs::read_to_string(path).ok()?;
    Some(token.trim().to_string()).filter(|token| !token.is_empty())
}

fn cache_path() -> Result<PathBuf> {
    given("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub"))).ok_or_else(|| {
        Error::input(
            "the Hub's cache",
            "a home directory",
            "none",
            "set HF_HOME to a folder for downloaded models",
        )
    })
}

/// Where the model lies, if all of it does; with `configured`, tokenizer_config.json too.
fn whole(name: &Name, get: &dyn Fn(&str) -> Option<PathBuf>, configured: bool) -> Option<PathBuf> {
    if let Some(file) = name.gguf {
        return get(file);
    }
    let config = get(NEEDED[0])?;
    let directory = config.parent()?.to_path_buf();
    NEEDED.iter().all(|file| directory.join(file).is_file()).then_some(())?;
    (!configured || directory.join("tokenizer_config.json").is_file()).then_some(())?;
    let has_weights = directory.join(WEIGHTS).is_file() || {
        let index = std::fs::read(directory.join(INDEX)).ok()?;
        let names = shards(&index, &directory, INDEX).ok()?;
        names.iter().all(|name| directory.join(name).is_file())
    };
    has_weights.then_some(directory)
}

/// Brings what is missing into the cache.
fn download(name: &Name, remote: &ApiRepo, place: &str) -> Result<()> {
    let get = |file: &str| remote.get(file).map_err(|error| failed(&format!("{place}/{file}"), &error));
    let listed = remote.info().map_err(|error| failed(place, &error))?;
    let has = |file: &str| listed.siblings.iter().any(|sibling| sibling.rfilename == file);
    let missing = |file: &str, fix: String| {
        Error::input(place, format!("{file} in the repository"), "no such file", fix)
    };
    let ggufs: Vec<&str> =
        listed.siblings.iter().map(|s| s.rfilename.as_str()).filter(|file| file.ends_with(".gguf")).collect();
    let instead = match ggufs.first() {
        Some(first) => {
            format!("name one of its {} GGUF files, as in {}/{first}", ggufs.len(), name.repository)
        }
        None => "choose a model that transformers loads".into(),
    };
    if let Some(file) = name.gguf {
        return if has(file) { get(file).map(drop) } else { Err(missing(file, instead)) };
    }
    if let Some(file) = NEEDED.into_iter().find(|file| !has(file)) {
        return Err(missing(file, instead));
    }
    // Small files first: whether the model is one that can be used shows early.
    for file in COMPANIONS.into_iter().filter(|file| has(file)) {
        get(file)?;
    }
    if has(WEIGHTS) {
        return get(WEIGHTS).map(drop);
    }
    if !has(INDEX) {
        return Err(missing(WEIGHTS, instead));
    }
    let index = get(INDEX)?;
    let directory = index.parent().unwrap_or(Path::new("."));
    let bytes =
        std::fs::read(&index).map_err(|error| Error::io(index.display().to_string(), "read", error))?;
    shards(&bytes, directory, INDEX)?.iter().try_for_each(|file| get(file).map(drop))
}

/// What the Hub's answer means.
fn failed(place: &str, error: &ApiError) -> Error {
    let status = |error: &ApiError| match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    };
    let inner = if let ApiError::TooManyRetries(inner) = error { inner } else { error };
    match status(inner) {
        // The Hub does not tell strangers which of the two it is.
        Some(401 | 403) => Error::input(
            place,
            "a directory, a GGUF file, tiny, or a model on the Hugging Face Hub that may be read",
            "nothing of that name, or a repository that asks for a login",
            "check the spelling; or accept its licence on the Hub if it has one, and set HF_TOKEN to a token of yours",
        ),
        Some(404) => Error::input(
            place,
            "a directory, a GGUF file, tiny, or a model's name on the Hugging Face Hub",
            "nothing of that name",
            "check the spelling; a private model needs HF_TOKEN",
        ),
        _ => Error::input(
            place,
            "an answer from the Hugging Face Hub",
            match inner {
                ApiError::RequestError(error) => error.to_string(),
                other => other.to_string(),
            },
            "check the connection and HF_ENDPOINT, and try again: a download goes on where it ended",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub() {
        let name = |text| Name::parse(text).map(|name| (name.repository, name.gguf));
        assert_eq!(name("Qwen/Qwen2.5-0.5B-Instruct"), Some(("Qwen/Qwen2.5-0.5B-Instruct", None)));
        assert_eq!(name("a/b/c.Q4_K_M.gguf"), Some(("a/b", Some("c.Q4_K_M.gguf"))));
        assert_eq!(name("a/b/folder/c.gguf"), Some(("a/b", Some("folder/c.gguf"))));
        for other in ["model", "./model", "../a", "/a/b", "a/b/c", "a//b", "a/b.gguf", "a b/c", "a/", "C:\\a"]
        {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
