//! The files of a run's folder, as a report shows them.

use std::path::Path;

use serde_json::{Map, Value};

use aweigh::error::{Error, Result};
use aweigh::files::{disk, read_text};

/// The files of a run's folder.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Its name on the page.
    pub name: String,
    /// The lines of metrics.jsonl, one per step or evaluation.
    pub metrics: Vec<Map<String, Value>>,
    /// The lines of completions.jsonl.
    pub completions: Vec<Value>,
    /// summary.json; null for a run that has not ended.
    pub summary: Value,
    /// config.toml
    pub config: String,
}

impl Run {
    /// Reads the folder of a run, which may still be running.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder without a run, or with a damaged file.
    pub fn read(folder: &Path) -> Result<Self> {
        let metrics = folder.join("metrics.jsonl");
        if !disk::is_file(&metrics) {
            let fix = "give the --output-dir of \"aweigh align\"";
            return Err(Error::input(folder.display(), "a run's folder with metrics.jsonl", "none", fix));
        }
        let there = |name: &str| Some(folder.join(name)).filter(|path| disk::is_file(path));
        let text = |name: &str| there(name).map_or(Ok(String::new()), |path| read_text(&path, "RUN"));
        let summary = ["summary.json", "judge.json"].into_iter().find_map(there);
        let summary = summary.map_or(Ok(Value::Null), |path| json(&path))?;
        let name =
            folder.file_name().map_or(folder.display().to_string(), |name| name.to_string_lossy().into());
        Ok(Self {
            name,
            metrics: lines(&metrics)?,
            completions: there("completions.jsonl").map_or(Ok(Vec::new()), |path| lines(&path))?,
            summary,
            config: text("config.toml")?,
        })
    }

    /// The points (step, value) of a figure.
    pub fn points(&self, name: &str) -> Vec<(f64, f64)> {
        let point =
            |line: &Map<String, Value>| Some((line.get("global_step")?.as_f64()?, line.get(name)?.as_f64()?));
        self.metrics.iter().filter_map(point).collect()
    }

    /// A setting from config.toml, as text; empty if it is missing.
    pub fn setting(&self, section: &str, key: &str) -> String {
        let config: toml::Table = self.config.parse().unwrap_or_default();
        match config.get(section).and_then(|section| section.get(key)) {
            Some(toml::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }
}

/// The lines of a JSONL file of the run. An incomplete last line is left out: the run may still be writing
/// it.
fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = read_text(path, "RUN")?;
    let count = text.lines().count();
    let mut all = Vec::with_capacity(count);
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(value) => all.push(value),
            Err(_) if i + 1 == count && !text.ends_with('\n') => {}
            Err(error) => {
                let place = format!("{}:{}", path.display(), i + 1);
                return Err(Error::input(place, "one JSON object per line", error, "remove the line"));
            }
        }
    }
    Ok(all)
}

fn json(path: &Path) -> Result<Value> {
    let text = read_text(path, "RUN")?;
    let fix = "restore the file, or remove it";
    serde_json::from_str(&text).map_err(|error| Error::input(path.display(), "JSON", error, fix))
}
