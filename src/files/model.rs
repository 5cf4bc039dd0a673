//! Opens a model's files (or the built-in model) for the library, which takes bytes.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Mapped;
use super::companions::{changed, companions};
use super::disk::{self, File, TemporaryFolder};
#[cfg(feature = "hub")]
use super::hub;
use super::need::{need_file, need_folder};
use super::shards::shards;
use crate::data::TokenizerFiles;
use crate::error::{Result, setting};
use crate::model::ModelBytes;
use crate::model::gguf::{Companions, Damage, Gguf};
use crate::tiny;

/// An opened model, as named by `--model`.
#[derive(Debug)]
pub struct Model {
    source: Source,
    /// The user's own chat template, instead of the model's: its file and its text.
    chat_template: Option<(String, String)>,
    /// A temporary folder of the model: the last field, so that mapped files are closed before its removal.
    _temporary: Option<TemporaryFolder>,
}

/// Where a model comes from.
#[derive(Debug)]
enum Source {
    /// The model built into this program.
    Tiny,
    /// A directory.
    Files(Box<ModelFiles>),
    /// A GGUF file.
    Gguf(Box<GgufFile>),
}

/// Whether `path` is a GGUF file, by its extension or its first bytes.
fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
        read.is_ok() && magic == *b"GGUF"
    };
    disk::is_file(path) && (path.extension().is_some_and(|ending| ending == "gguf") || begins())
}

/// A model in one GGUF file. Its weights are mapped.
#[derive(Debug)]
pub struct GgufFile {
    /// The file as the user wrote it, for messages.
    pub name: String,
    /// config.json, tokenizer.json and tokenizer_config.json, made from the file's metadata.
    pub companions: Companions,
    /// The whole file.
    pub map: Mapped,
}

impl GgufFile {
    /// Opens `path`; `place` names it in messages.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a file that is not a GGUF file, or whose architecture or tokenizer is not
    /// supported.
    pub fn open(path: &Path, place: &str) -> Result<Self> {
        let (name, map) = (path.display().to_string(), super::map(path, place)?);
        let of = |damage: Damage| damage.of(&name);
        let companions = Gguf::parse(map.file()).and_then(|file| file.companions()).map_err(of)?;
        Ok(Self { companions, map, name })
    }
}

impl Model {
    /// Opens "tiny", a GGUF file or a directory (for one named tiny, write `./tiny`). With the feature `hub`,
    /// `owner/name` or `owner/name/FILE.gguf` is a model on the Hugging Face Hub if no such path exists; it
    /// is downloaded once.
    ///
    /// # Errors
    /// As [`ModelFiles::open`] and [`Model::fetch`].
    pub fn open(name: &str) -> Result<Self> {
        if name == tiny::NAME {
            return Ok(Self::tiny());
        }
        #[cfg(feature = "hub")]
        if hub::Name::parse(name).is_some_and(|_| !Path::new(name).exists()) {
            return Self::fetch(name, &mut |_| {});
        }
        Self::at(Path::new(name), name)
    }

    /// As [`Model::open`]; `progress` is called during downloads.
    ///
    /// # Errors
    /// As [`Model::open`]; [`crate::Error::Input`] for a repository or file that does not exist, that needs a
    /// token, or whose download fails.
    #[cfg(feature = "hub")]
    pub fn fetch(name: &str, progress: &mut dyn FnMut(hub::Download)) -> Result<Self> {
        match hub::Name::parse(name).filter(|_| !Path::new(name).exists()) {
            Some(of_hub) => Self::at(&hub::fetch(&of_hub, progress)?, name),
            None => Self::open(name),
        }
    }

    /// As [`Model::fetch`], for reading shapes only: if a model on the Hub is not in the cache, only the
    /// headers of its safetensors weights are downloaded.
    ///
    /// # Errors
    /// As [`Model::fetch`].
    #[cfg(feature = "hub")]
    pub fn describe(name: &str, progress: &mut dyn FnMut(hub::Download)) -> Result<Self> {
        let of_hub = hub::Name::parse(name).filter(|_| !Path::new(name).exists());
        let Some(of_hub) = of_hub else { return Self::open(name) };
        let (path, temporary) = hub::describe(&of_hub, progress)?;
        Ok(Self { _temporary: temporary, ..Self::at(&path, name)? })
    }

    /// Opens a GGUF file or a directory; messages call it `name`.
    fn at(path: &Path, name: &str) -> Result<Self> {
        Ok(Self::of(if is_gguf(path) {
            Source::Gguf(Box::new(GgufFile { name: name.into(), ..GgufFile::open(path, &setting("model"))? }))
        } else {
            Source::Files(Box::new(ModelFiles {
                name: name.into(),
                ..ModelFiles::open(path, &setting("model"))?
            }))
        }))
    }

    /// Fails if the weights were written to since the model was opened.
    ///
    /// # Errors
    /// [`crate::Error::Input`] names the file.
    pub fn check_unchanged(&self) -> Result<()> {
        match &self.source {
            Source::Tiny => Ok(()),
            Source::Files(files) => files.check_unchanged(),
            Source::Gguf(file) => file.map.check_unchanged(),
        }
    }

    /// Whether this may be the model that `other` names, such as an adapter's base model. Folder names are
    /// arbitrary, so two models count as different only if both names contain letters and a digit (a version
    /// or a size) and neither contains the other.
    pub fn may_be(&self, other: &str) -> bool {
        let last = |name: &str| {
            let last = name
                .trim_end_matches(['/', '\\'])
                .rsplit(['/', '\\'])
                .next()
                .unwrap_or_default()
                .to_lowercase();
            last.chars().filter(char::is_ascii_alphanumeric).collect::<String>()
        };
        let bytes = self.bytes();
        let config: Value = serde_json::from_slice(bytes.config).unwrap_or_default();
        let origin = config["_name_or_path"].as_str().unwrap_or_default();
        let says = |name: &String| {
            name.chars().any(|c| c.is_ascii_digit()) && name.chars().any(|c| c.is_ascii_alphabetic())
        };
        let own: Vec<String> = [last(bytes.name), last(origin)].into_iter().filter(says).collect();
        let other = last(other);
        let related = |name: &String| name.contains(&other) || other.contains(name.as_str());
        own.is_empty() || !says(&other) || own.iter().any(related)
    }

    fn of(source: Source) -> Self {
        Self { source, chat_template: None, _temporary: None }
    }

    /// The model built into this program.
    pub fn tiny() -> Self {
        Self::of(Source::Tiny)
    }

    /// Ordinary prompts of its own world, where it has one: the built-in model knows its help desk only.
    pub fn ordinary(&self) -> Option<(&'static str, &'static [u8])> {
        matches!(self.source, Source::Tiny).then_some(tiny::ORDINARY)
    }

    /// Replaces the chat template with that in `file`, if one is given.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a file that does not exist or is not UTF-8.
    pub fn with_chat_template(self, file: Option<&Path>) -> Result<Self> {
        let read = |path: &Path| {
            Ok((path.display().to_string(), super::read_text(path, &setting("chat_template"))?))
        };
        Ok(Self { chat_template: file.map(read).transpose()?, ..self })
    }
}

impl From<ModelFiles> for Model {
    fn from(files: ModelFiles) -> Self {
        Self::of(Source::Files(Box::new(files)))
    }
}

/// The files of a model in Hugging Face's layout. The weights are mapped, the rest is read.
#[derive(Debug)]
pub struct ModelFiles {
    /// The directory as the user wrote it, or the model's name on the Hub, for messages.
    pub name: String,
    /// The folder with the files.
    pub directory: PathBuf,
    /// `config.json`
    pub config: Vec<u8>,
    /// `tokenizer.json`
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`, if present: special tokens and often the chat template.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `special_tokens_map.json`, if present.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `generation_config.json`, if present: the end-of-turn tokens.
    pub generation_config: Option<Vec<u8>>,
    /// The template in `chat_template.jinja` or `chat_template.json`, if present; it takes precedence over
    /// the one in `tokenizer_config.json`.
    pub chat_template: Option<String>,
    /// The safetensors files, each with its path for messages: one, or the shards of
    /// `model.safetensors.index.json`, sorted by name.
    pub weights: Vec<(String, Mapped)>,
}

impl ModelFiles {
    /// As [`Model::check_unchanged`].
    ///
    /// # Errors
    /// [`crate::Error::Input`] names the file.
    pub fn check_unchanged(&self) -> Result<()> {
        self.weights.iter().try_for_each(|(_, map)| map.check_unchanged())
    }

    /// Opens the model in `directory`; `place` names it in messages.
    ///
    /// # Errors
    /// [`crate::Error::Input`] names what is missing from the directory.
    pub fn open(directory: &Path, place: &str) -> Result<Self> {
        need_folder(directory, place, "a model's directory, a GGUF file, or tiny")?;
        let needed =
            |file: &str| need_file(directory, place, file).and_then(|path| super::read(&path, place));
        let template = match directory.join("chat_template.jinja") {
            file if disk::is_file(&file) => Some(super::read_text(&file, place)?),
            // A processor's template, for a tokenizer without one.
            _ => optional(directory, place, "chat_template.json")?.and_then(|bytes| {
                let json: Value = serde_json::from_slice(&bytes).ok()?;
                json["chat_template"].as_str().map(str::to_owned)
            }),
        };
        Ok(Self {
            name: directory.display().to_string(),
            directory: directory.to_path_buf(),
            config: needed("config.json")?,
            tokenizer: needed("tokenizer.json")?,
            tokenizer_config: optional(directory, place, "tokenizer_config.json")?,
            special_tokens_map: optional(directory, place, "special_tokens_map.json")?,
            generation_config: optional(directory, place, "generation_config.json")?,
            chat_template: template,
            weights: weights(directory, place)?,
        })
    }
}

impl Model {
    /// The model in the form that the library takes.
    pub fn bytes(&self) -> ModelBytes<'_> {
        let mut bytes = match &self.source {
            Source::Tiny => tiny::model(),
            Source::Gguf(file) => ModelBytes {
                name: &file.name,
                config: &file.companions.config,
                quantize: None,
                offload: false,
                judge: false,
                weights: vec![(file.name.as_str(), file.map.file())],
                tokenizer: TokenizerFiles {
                    origin: file.name.clone(),
                    of_gguf: true,
                    tokenizer: file.companions.tokenizer.clone(),
                    tokenizer_config: Some(file.companions.tokenizer_config.clone()),
                    config: Some(file.companions.config.clone()),
                    ..TokenizerFiles::default()
                },
            },
            Source::Files(files) => ModelBytes {
                quantize: None,
                offload: false,
                judge: false,
                name: &files.name,
                config: &files.config,
                weights: files.weights.iter().map(|(name, map)| (name.as_str(), map.file())).collect(),
                tokenizer: TokenizerFiles {
                    origin: files.name.clone(),
                    tokenizer: files.tokenizer.clone(),
                    tokenizer_config: files.tokenizer_config.clone(),
                    special_tokens_map: files.special_tokens_map.clone(),
                    generation_config: files.generation_config.clone(),
                    config: Some(files.config.clone()),
                    chat_template: files.chat_template.clone(),
                    ..TokenizerFiles::default()
                },
            },
        };
        if let Some((file, template)) = self.chat_template.clone() {
            bytes.tokenizer.template_file = Some(file);
            bytes.tokenizer.chat_template = Some(template);
        }
        bytes
    }
}

impl Model {
    /// Copies the files that belong with the weights (configuration, tokenizer, template, licence) into
    /// `folder`, and returns their names. In config.json, sets the weights' type to `dtype` (transformers'
    /// name) and the architecture to `architecture`, if given, and `tie_word_embeddings` to false if the
    /// model has its own output head: not every reader checks the weights for one.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if a file cannot be read or written, [`crate::Error::Input`] for a config.json
    /// that is not a JSON object.
    pub fn write_companions(
        &self,
        folder: &Path,
        dtype: Option<&str>,
        architecture: Option<&str>,
    ) -> Result<Vec<String>> {
        let files = match &self.source {
            Source::Tiny => tiny::FILES.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).into(),
            Source::Files(files) => companions(&files.directory)?,
            Source::Gguf(file) => {
                let Companions { config, tokenizer, tokenizer_config } = file.companions.clone();
                [
                    ("config.json", config),
                    ("tokenizer.json", tokenizer),
                    ("tokenizer_config.json", tokenizer_config),
                ]
                .map(|(name, bytes)| (name.to_owned(), bytes))
                .into()
            }
        };
        let mut files: Vec<(String, Vec<u8>)> = files;
        if let Some((_, template)) = &self.chat_template {
            files.retain(|(name, _)| name != "chat_template.jinja");
            files.push(("chat_template.jinja".into(), template.clone().into_bytes()));
        }
        let untied = self.bytes().is_untied()?;
        for (name, bytes) in &files {
            let path = folder.join(name);
            if name == "config.json" {
                super::write_whole(&path, &changed(bytes, dtype, architecture, untied)?)?;
            } else {
                super::write_whole(&path, bytes)?;
            }
        }
        Ok(files.into_iter().map(|(name, _)| name).collect())
    }
}

fn optional(directory: &Path, place: &str, file: &str) -> Result<Option<Vec<u8>>> {
    let path = directory.join(file);
    if disk::is_file(&path) { super::read(&path, place).map(Some) } else { Ok(None) }
}

/// `model.safetensors`, or the shards that the index names.
fn weights(directory: &Path, place: &str) -> Result<Vec<(String, Mapped)>> {
    let index_name = "model.safetensors.index.json";
    let names = match optional(directory, place, index_name)? {
        Some(index) if !disk::is_file(&directory.join("model.safetensors")) => {
            shards(&index, directory, index_name)?
        }
        _ => vec!["model.safetensors".to_owned()],
    };
    names
        .into_iter()
        .map(|name| {
            let path = need_file(directory, place, &name)?;
            Ok((path.display().to_string(), super::map(&path, place)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_found_and_missing_files_named() {
        let room = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(room.path().join(name), text).unwrap();
        let message = || ModelFiles::open(room.path(), "model").unwrap_err().to_string();
        assert!(message().contains("expected config.json in it"));
        write("config.json", "{}");
        write("tokenizer.json", "{}");
        assert!(message().contains("expected model.safetensors in it"));
        write(
            "model.safetensors.index.json",
            r#"{"weight_map": {"b": "2.safetensors", "a": "1.safetensors"}}"#,
        );
        write("1.safetensors", "x");
        assert!(message().contains("expected 2.safetensors in it"));
        write("2.safetensors", "yz");
        let files = ModelFiles::open(room.path(), "model").unwrap();
        let place = |name: &str| room.path().join(name).display().to_string();
        let sizes: Vec<_> =
            files.weights.iter().map(|(name, map)| (name.clone(), map.file().len())).collect();
        assert_eq!(sizes, [(place("1.safetensors"), 1), (place("2.safetensors"), 2)]);
        write("model.safetensors.index.json", r#"{"weight_map": {"b": "../2.safetensors"}}"#);
        assert!(message().contains("../2.safetensors"));
        assert!(
            ModelFiles::open(&room.path().join("none"), "model")
                .unwrap_err()
                .to_string()
                .contains("found nothing at")
        );
    }

    #[test]
    fn names_with_sizes_tell_models_apart() {
        let room = tempfile::tempdir().unwrap();
        let folder = room.path().join("SmolLM2-135M-Instruct");
        Model::tiny()
            .write_companions(
                {
                    std::fs::create_dir(&folder).unwrap();
                    &folder
                },
                None,
                None,
            )
            .unwrap();
        std::fs::write(folder.join("model.safetensors"), "x").unwrap();
        let model = Model::open(&folder.display().to_string()).unwrap();
        for other in ["HuggingFaceTB/SmolLM2-135M-Instruct", "./smollm2-135m/", "model", "../base", ""] {
            assert!(model.may_be(other), "{other}");
        }
        assert!(!model.may_be("org/Qwen2-0.5B") && !model.may_be("SmolLM2-360M"));
        // A name without a version or a size.
        assert!(Model::tiny().may_be("org/Qwen2-0.5B"));
    }
}
