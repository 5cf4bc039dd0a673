//! What the user takes away from a run: an adapter, a merged model, files for llama.cpp and Ollama, a report.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::runs;
use super::workspace::{Project, create};
use crate::commands::export::{Args, Dtype, write};
use crate::report_page::html;
use crate::terminal::output::Output;
use aweigh::error::{Error, Result};
use aweigh::files::write_whole;

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

/// What there is of run `id`: name, path and bytes of each; the adapter in PEFT's format first.
pub fn list(project: &Project, id: u32) -> Vec<Value> {
    let adapter = project.adapter(id);
    let made = fs::read_dir(project.exports(id)).into_iter().flatten().flatten().map(|entry| entry.path());
    // A file that is being written begins with a dot.
    let whole =
        |path: &PathBuf| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.'));
    let mut all: Vec<PathBuf> = made.filter(whole).collect();
    all.sort();
    let all = adapter.is_dir().then_some(adapter).into_iter().chain(all);
    all.map(|path| {
        let files = files(&path);
        let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        let files: Vec<&String> = files.iter().map(|(name, _)| name).collect();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        json!({ "name": name, "path": path, "bytes": bytes, "files": files, "folder": path.is_dir() })
    })
    .collect()
}

/// The names of the files at `path`, and their sizes.
fn files(path: &Path) -> Vec<(String, u64)> {
    let size = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    if !path.is_dir() {
        return name(path).map(|name| (name, size(path))).into_iter().collect();
    }
    let mut all: Vec<(String, u64)> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((name(&entry.path())?, size(&entry.path()))))
        .collect();
    all.sort();
    all
}

/// The file `name` of what [`list`] lists under `item`; `None` if there is none.
pub fn file(project: &Project, id: u32, item: &str, name: Option<&str>) -> Option<PathBuf> {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', ':']);
    let place = if item == "adapter" { project.run(id) } else { project.exports(id) }.join(item);
    let path = name.map_or(place.clone(), |name| place.join(name));
    let known = plain(item) && name.is_none_or(plain);
    (known && path.is_file()).then_some(path)
}

/// Makes one of the kinds from run `id`. Its place in the folder of exports is replaced.
///
/// # Errors
/// A run without an adapter, [`Error::Io`] such as a full disk; there is then no file.
pub fn make(project: &Project, id: u32, kind: Kind, output: &Output) -> Result<()> {
    let adapter = project.adapter(id);
    if !adapter.is_dir() {
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
    for left in fs::read_dir(&folder).into_iter().flatten().flatten() {
        if left.file_name().to_string_lossy().starts_with('.') {
            remove(&left.path())?;
        }
    }
    let new = folder.join(format!(".new-{}", kind.name()));
    let args = Args {
        model: project.model.clone(),
        adapter: Some(adapter),
        output: new.clone(),
        adapter_only: kind == Kind::GgufAdapter,
        modelfile: kind == Kind::Ollama,
        dtype: if kind == Kind::GgufQ8 { Dtype::Q8_0 } else { Dtype::Auto },
    };
    write(args, output)?;
    remove(&place)?;
    fs::rename(&new, &place).map_err(|error| Error::io(&place, "write", error))
}

/// Removes a file or a folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match () {
        () if path.is_dir() => fs::remove_dir_all(path),
        () if path.exists() => fs::remove_file(path),
        () => Ok(()),
    };
    removed.map_err(|error| Error::io(path, "remove", error))
}
