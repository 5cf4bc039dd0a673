//! Models by their names on the Hugging Face Hub, through the cache of Python's huggingface_hub.
//!
//! A model that is complete in the cache is used without any network access. `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean the same as in huggingface_hub.

use std::env::var;
use std::io::Write;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo};
use tempfile::TempDir;

use super::shards::shards;
use crate::error::{Error, Result, setting};

/// Maximum retries of an interrupted download.
const RETRIES: usize = 5;

/// Maximum length of a safetensors header in bytes, as in the safetensors library.
const MAX_HEADER: u64 = 100_000_000;

/// Files that a model's directory may have besides the weights.
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

/// A repository's name, or that of a GGUF file in a repository.
#[derive(Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// `owner/name`
    pub repository: &'a str,
    /// The GGUF file's path in the repository, if one is named.
    pub gguf: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// Reads `owner/name` or `owner/name/FILE.gguf`; `None` for any other text.
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

/// The progress of a file's download: reported at its start, as bytes arrive, and at its end.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// Bytes downloaded so far.
    pub done: u64,
    /// The file's size in bytes.
    pub total: u64,
}

/// A callback for the progress of downloads.
type Tell<'a> = &'a mut dyn FnMut(Download);

/// Passes hf-hub's progress of one download on to a callback.
struct Told<'a> {
    tell: Tell<'a>,
    file: &'a str,
    done: u64,
    total: u64,
}

impl Told<'_> {
    fn tell(&mut self) {
        (self.tell)(Download { file: self.file, done: self.done, total: self.total });
    }
}

impl Progress for Told<'_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
        self.tell();
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.tell();
    }

    fn finish(&mut self) {
        self.done = self.total;
        self.tell();
    }
}

/// Downloads the files of a model that the cache lacks, and returns the model's path there: a directory, or a
/// GGUF file. `progress` is called during downloads. An interrupted download resumes where it stopped.
///
/// # Errors
/// [`Error::Input`] for a repository or file that does not exist, that needs a token, or whose download
/// fails.
pub fn fetch(name: &Name, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
    let hub = match Hub::of(name)? {
        Found::Cached(path) => return Ok(path),
        Found::Remote(hub) => hub,
    };
    let weights = hub.companions(name, progress)?;
    weights.iter().try_for_each(|file| hub.get(file, progress).map(drop))?;
    whole(name, &|file| hub.cached.get(file), false).ok_or_else(|| {
        Error::input(&hub.place, "all files of the model in the cache", "only some of them", "try again")
    })
}

/// A model's directory, for reading shapes. If weights are not in the cache, it is a temporary folder,
/// removed when the second value is dropped, whose weights files are sparse: of full size, but with only the
/// headers downloaded. GGUF files are downloaded whole.
///
/// # Errors
/// As [`fetch`].
pub fn describe(name: &Name, progress: &mut dyn FnMut(Download)) -> Result<(PathBuf, Option<TempDir>)> {
    if name.gguf.is_some() {
        return Ok((fetch(name, progress)?, None));
    }
    let hub = match Hub::of(name)? {
        Found::Cached(path) => return Ok((path, None)),
        Found::Remote(hub) => hub,
    };
    let weights = hub.companions(name, progress)?;
    let folder =
        tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), "create a folder in", error))?;
    let failed = |error| Error::io(folder.path(), "write to", error);
    for file in COMPANIONS.into_iter().chain([INDEX]) {
        if let Some(path) = hub.cached.get(file) {
            std::fs::copy(path, folder.path().join(file)).map_err(failed)?;
        }
    }
    for file in &weights {
        let (header, size) = hub.header(file)?;
        let mut written = std::fs::File::create(folder.path().join(file)).map_err(failed)?;
        // The rest of the file is sparse: it takes no disk space.
        written.write_all(&header).and_then(|()| written.set_len(size)).map_err(failed)?;
    }
    Ok((folder.path().to_path_buf(), Some(folder)))
}

/// Where a model's files are.
enum Found {
    /// All of them in the cache.
    Cached(PathBuf),
    /// Some are, or may be, missing from the cache: the Hub is asked.
    Remote(Box<Hub>),
}

/// The names of the repositories in the cache that have weights, in order.
pub fn cached() -> Vec<String> {
    let Ok(cache) = cache_path().map(Cache::new) else { return Vec::new() };
    let folders = std::fs::read_dir(cache.path()).into_iter().flatten().flatten();
    let name = |folder: std::fs::DirEntry| {
        let name = folder.file_name().to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
        let own = cache.repo(Repo::model(name.clone()));
        (own.get(WEIGHTS).is_some() || own.get(INDEX).is_some()).then_some(name)
    };
    let mut all: Vec<String> = folders.filter_map(name).collect();
    all.sort();
    all
}

/// A repository on the Hub and in the cache.
struct Hub {
    remote: ApiRepo,
    cached: CacheRepo,
    token: Option<String>,
    /// The place in messages.
    place: String,
}

impl Hub {
    fn of(name: &Name) -> Result<Found> {
        let cache = Cache::new(cache_path()?);
        let repository = Repo::model(name.repository.to_string());
        let cached = cache.repo(repository.clone());
        // Other programs may not have downloaded tokenizer_config.json. Most models have it: ask the Hub.
        if let Some(path) = whole(name, &|file| cached.get(file), true) {
            return Ok(Found::Cached(path));
        }
        let place = format!("{} {}", setting("model"), name.repository);
        let offline = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        if var("HF_HUB_OFFLINE").is_ok_and(offline) {
            if let Some(path) = whole(name, &|file| cached.get(file), false) {
                return Ok(Found::Cached(path));
            }
            let expected = format!("the whole model in the cache at {}", cache.path().display());
            let fix = "unset HF_HUB_OFFLINE once, to download it";
            return Err(Error::input(place, expected, "missing files, and HF_HUB_OFFLINE is set", fix));
        }
        let token = var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty()).or_else(token_file);
        let mut builder = ApiBuilder::from_cache(cache)
            .with_token(token.clone())
            .with_progress(false)
            .with_retries(RETRIES)
            .with_user_agent("aweigh", env!("CARGO_PKG_VERSION"));
        if let Ok(endpoint) = var("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
        }
        let remote = builder.build().map_err(|error| failed(&place, &error))?.repo(repository);
        Ok(Found::Remote(Box::new(Self { remote, cached, token, place })))
    }

    /// The path of a file in the cache; downloads it if it is missing.
    fn get(&self, file: &str, tell: Tell) -> Result<PathBuf> {
        if let Some(path) = self.cached.get(file) {
            return Ok(path);
        }
        let progress = Told { tell, file, done: 0, total: 0 };
        self.remote
            .download_with_progress(file, progress)
            .map_err(|error| failed(&format!("{}/{file}", self.place), &error))
    }

    /// Downloads the small files into the cache, and returns the names of the weights files.
    fn companions(&self, name: &Name, progress: Tell) -> Result<Vec<String>> {
        let listed = self.remote.info().map_err(|error| failed(&self.place, &error))?;
        let has = |file: &str| listed.siblings.iter().any(|sibling| sibling.rfilename == file);
        let missing = |file: &str, fix: String| {
            Error::input(&self.place, format!("{file} in the repository"), "no such file", fix)
        };
        let names = listed.siblings.iter().map(|sibling| sibling.rfilename.as_str());
        let ggufs: Vec<&str> = names.filter(|file| file.ends_with(".gguf")).collect();
        let instead = match ggufs.first() {
            Some(first) => {
                format!("name one of its {} GGUF files, as in {}/{first}", ggufs.len(), name.repository)
            }
            None => "choose a model that transformers loads".into(),
        };
        if let Some(file) = name.gguf {
            return if has(file) { Ok(vec![file.to_string()]) } else { Err(missing(file, instead)) };
        }
        if let Some(file) = NEEDED.into_iter().find(|file| !has(file)) {
            return Err(missing(file, instead));
        }
        // The small files first, so that an error (a missing login, for example) shows early.
        for file in COMPANIONS.into_iter().filter(|file| has(file)) {
            self.get(file, progress)?;
        }
        if has(WEIGHTS) {
            return Ok(vec![WEIGHTS.to_string()]);
        }
        if !has(INDEX) {
            return Err(missing(WEIGHTS, instead));
        }
        let index = self.get(INDEX, progress)?;
        let directory = index.parent().unwrap_or(Path::new("."));
        let bytes =
            std::fs::read(&index).map_err(|error| Error::io(index.display().to_string(), "read", error))?;
        shards(&bytes, directory, INDEX)
    }

    /// The start of a safetensors file (the header's length, and the header), and the file's size in bytes.
    fn header(&self, file: &str) -> Result<(Vec<u8>, u64)> {
        let place = format!("{}/{file}", self.place);
        let (mut header, size) = self.range(file, 0, 8)?;
        let length = header.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        if length > MAX_HEADER.min(size) {
            let found = format!("one of {length} bytes in a file of {size}");
            return Err(Error::input(place, "a safetensors header", found, "choose another model"));
        }
        header.extend(self.range(file, 8, length)?.0);
        Ok((header, size))
    }

    /// `count` bytes of a file, from byte `first`, and the file's size in bytes.
    fn range(&self, file: &str, first: u64, count: u64) -> Result<(Vec<u8>, u64)> {
        let place = format!("{}/{file}", self.place);
        let of_network = |error: ureq::Error| failed(&place, &ApiError::RequestError(Box::new(error)));
        let mut request = ureq::get(self.remote.url(file));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let last = first + count.saturating_sub(1);
        let response = request.header("Range", format!("bytes={first}-{last}")).call().map_err(of_network)?;
        let total =
            response.headers().get("Content-Range").and_then(|range| range.to_str().ok()?.rsplit_once('/'));
        let Some(total) = total.and_then(|(_, total)| total.parse().ok()) else {
            let fix = "download the model first, as with `aweigh generate`";
            return Err(Error::input(place, "a part of the file", "an answer without Content-Range", fix));
        };
        let bytes = response.into_body().with_config().limit(count).read_to_vec().map_err(of_network)?;
        Ok((bytes, total))
    }
}

fn given(name: &str) -> Option<PathBuf> {
    var(name).ok().filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The Hub's home folder, by huggingface_hub's rules, as are the paths in it.
fn home() -> Option<PathBuf> {
    let cache = given("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
    given("HF_HOME").or_else(|| Some(cache?.join("huggingface")))
}

/// The token that `hf auth login` saves.
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

/// The model's path, if all its files are there; with `configured`, tokenizer_config.json is needed too.
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

/// The error message for a failed request to the Hub.
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
        // Without a login the Hub does not tell which of the two it is.
        Some(401 | 403) => Error::input(
            place,
            "a directory, a GGUF file, tiny, or a model on the Hugging Face Hub that you may read",
            "nothing of that name, or a repository that needs a login",
            "check the spelling; or accept the model's licence on the Hub, if it has one, and set HF_TOKEN \
             to your token",
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
            "check the connection and HF_ENDPOINT, and try again: the download resumes where it stopped",
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
