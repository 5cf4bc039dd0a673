//! What the user takes away from a run: an adapter, a merged model, files for llama.cpp and Ollama, a report.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::runs;
use super::workspace::{Project, create};
use crate::export::{Dtype, Export, write};
use crate::messages::Messages;
use crate::report_page::html;
use aweigh::error::{Error, Result};
use aweigh::files::{disk as fs, write_whole};

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The merged model, in Hugging Face's layout.
    Merged,
    /// The merged model as a GGUF file, in the model's own type.
    Gguf,
    /// The same in 8 bits.
    GgufQ8,
    /// The adapter alone as a GGUF file, for llama.cpp's `--lora`.
    GgufAdapter,
    /// The merged model as a GGUF file with an Ollama Modelfile.
    Ollama,
    /// The run's report.
    Report,
}

impl Kind {
    /// Its name in the folder of exports.
    fn name(self) -> &'static str {
        match self {
            Self::Merged => "model",
            Self::Gguf => "model.gguf",
            Self::GgufQ8 => "model-q8_0.gguf",
            Self::GgufAdapter => "adapter.gguf",
            Self::Ollama => "ollama",
            Self::Report => "report.html",
        }
    }
}

/// The item with what a run was given and what it measured.
const RECORDS: &str = "records";

/// The files of [`RECORDS`]: their names, and where they are.
fn records(project: &Project, id: u32) -> Vec<(&'static str, PathBuf)> {
    let of_run = ["config.toml", "summary.json", "metrics.jsonl", "completions.jsonl", "samples.jsonl"];
    let of_run = of_run.map(|name| (name, project.run(id).join(name)));
    let [train, held_out] = project.data(id);
    let others =
        [("train.jsonl", train), ("held-out.jsonl", held_out), ("comparison.json", project.comparison(id))];
    of_run.into_iter().chain(others).filter(|(_, path)| fs::is_file(path)).collect()
}

/// What there is of run `id`: name, path and bytes of each; the adapter in PEFT's format first.
pub fn list(project: &Project, id: u32) -> Vec<Value> {
    let item = |path: PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (is_folder, files) = (fs::is_dir(&path), files(&path));
        (name, path, is_folder, files)
    };
    let mut all = Vec::new();
    let adapter = project.adapter(id);
    if fs::is_dir(&adapter) {
        all.push(item(adapter));
        let files = records(project, id).into_iter().map(|(name, path)| (name.to_owned(), fs::size(&path)));
        all.push((RECORDS.to_owned(), project.run(id), true, files.collect()));
    }
    // A file that is being written begins with a dot.
    let mut made = fs::names(&project.exports(id)).unwrap_or_default();
    made.retain(|name| !name.starts_with('.'));
    made.sort();
    all.extend(made.into_iter().map(|name| item(project.exports(id).join(name))));
    all.into_iter()
        .map(|(name, path, is_folder, files)| {
            let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
            let files: Vec<&String> = files.iter().map(|(name, _)| name).collect();
            json!({ "name": name, "path": path, "bytes": bytes, "files": files, "folder": is_folder })
        })
        .collect()
}

/// The names of the files at `path`, and their sizes.
fn files(path: &Path) -> Vec<(String, u64)> {
    if !fs::is_dir(path) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        return name.map(|name| (name, fs::size(path))).into_iter().collect();
    }
    let mut names = fs::names(path).unwrap_or_default();
    names.sort();
    names.into_iter().map(|name| (name.clone(), fs::size(&path.join(name)))).collect()
}

/// The file `name` of what [`list`] lists under `item`; `None` if there is none.
pub fn file(project: &Project, id: u32, item: &str, name: Option<&str>) -> Option<PathBuf> {
    if item == RECORDS {
        return records(project, id).into_iter().find(|(own, _)| Some(*own) == name).map(|(_, path)| path);
    }
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', ':']);
    let place = if item == "adapter" { project.run(id) } else { project.exports(id) }.join(item);
    let path = name.map_or(place.clone(), |name| place.join(name));
    let known = plain(item) && name.is_none_or(plain);
    (known && fs::is_file(&path)).then_some(path)
}

/// Makes one of the kinds from run `id`. Its place in the folder of exports is replaced.
///
/// # Errors
/// A run without an adapter, [`Error::Io`] such as a full disk; there is then no file.
pub fn make(project: &Project, id: u32, kind: Kind, messages: &dyn Messages) -> Result<()> {
    let adapter = project.adapter(id);
    if !fs::is_dir(&adapter) {
        return Err(Error::input("the run", "a run that has ended", format!("run {id}"), "let it end first"));
    }
    let folder = project.exports(id);
    create(&folder)?;
    let place = folder.join(kind.name());
    if kind == Kind::Report {
        let evals: Vec<Value> = runs::comparison(project, id).into_iter().collect();
        let page = html(&format!("{}: run {id}", project.model), &[runs::read(project, id)?], &evals)?;
        return write_whole(&place, page.as_bytes());
    }
    // What is there stays until the new one is whole. Only one is made at a time: what else begins with a dot
    // is left of one that was interrupted.
    for left in fs::names(&folder).unwrap_or_default().iter().filter(|name| name.starts_with('.')) {
        remove(&folder.join(left))?;
    }
    let new = folder.join(format!(".new-{}", kind.name()));
    let args = Export {
        model: project.model.clone(),
        adapter: Some(adapter),
        output: new.clone(),
        adapter_only: kind == Kind::GgufAdapter,
        modelfile: kind == Kind::Ollama,
        dtype: if kind == Kind::GgufQ8 { Dtype::Q8_0 } else { Dtype::Auto },
    };
    write(args, messages)?;
    remove(&place)?;
    fs::rename(&new, &place).map_err(|error| Error::io(&place, "write", error))
}

/// Removes a file or a folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match () {
        () if fs::is_dir(path) => fs::remove_dir_all(path),
        () if fs::exists(path) => fs::remove_file(path),
        () => Ok(()),
    };
    removed.map_err(|error| Error::io(path, "remove", error))
}
