//! The models that a user can open, and what one of them takes, before anything is loaded.

use std::path::Path;

use serde::Serialize;

use super::App;
use super::current::SEATS;
use crate::open;
use crate::server::engine::USUAL_CONTEXT;
use aweigh::config::{PartialConfig, RunConfig};
use aweigh::data::{ORDINARY, parse_rows};
use aweigh::error::{Error, Result};
use aweigh::files::disk;
use aweigh::gpu::{DEFAULT_BINDING, Memory, chosen_adapter};
use aweigh::model::Training;
use aweigh::sample::{Batch, Seating};
use aweigh::tiny;
use aweigh::train::Inputs;

/// A model to choose.
#[derive(Debug, Serialize)]
pub struct Known {
    /// What to open it by.
    pub name: String,
    /// Where it is: `built in`, `used before`, `downloaded`, or `added` to a tab.
    pub place: &'static str,
    /// Flagged answers so far.
    pub flags: usize,
    /// Whether it was added to a tab, from which it can be removed.
    pub added: bool,
}

/// The built-in model, those with a project, and those in the Hub's cache or added to the tab.
pub fn known(app: &App) -> Vec<Known> {
    let mut all = vec![Known { name: tiny::NAME.into(), place: "built in", flags: 0, added: false }];
    for (name, folder) in app.workspace.models() {
        let text = disk::read_to_string(folder.join("flagged.jsonl")).unwrap_or_default();
        let flags = text.lines().count();
        match all.iter_mut().find(|known| known.name == name) {
            Some(known) => known.flags = flags,
            None => all.push(Known { added: is_added(&name), name, place: "used before", flags }),
        }
    }
    for name in others::names() {
        if !all.iter().any(|known| known.name == name) {
            all.push(Known { added: is_added(&name), name, place: others::PLACE, flags: 0 });
        }
    }
    all
}

/// Where models are kept that were added to the app itself.
pub const ADDED: &str = "models";

/// Whether `name` is a model that was added to the app itself, and is there.
fn is_added(name: &str) -> bool {
    let path = Path::new(name);
    let folder = path.parent();
    cfg!(target_arch = "wasm32") && folder == Some(Path::new(ADDED)) && disk::exists(path)
}

/// Removes a model that was added to the app itself; its project stays.
///
/// # Errors
/// [`Error::Input`] for one that is open, or that a run or other work may use; [`Error::Io`].
pub fn remove(app: &App, name: &str) -> Result<()> {
    if !is_added(name) {
        return Err(Error::input("the model", "one that was added here", name, "reload the page"));
    }
    let activity = app.activity();
    activity.idle()?;
    let open = app.current.project().is_some_and(|project| project.model == name) && app.current.is_open();
    if open {
        let fix = "take it off the GPU first";
        return Err(Error::input("the model", "one that is not open", name, fix));
    }
    let path = Path::new(name);
    let removed = if disk::is_dir(path) { disk::remove_dir_all(path) } else { disk::remove_file(path) };
    removed.map_err(|error| Error::io(path, "remove", error))
}

/// Models besides those with a project, and where they are; whether a name could be that of one elsewhere.
#[cfg(feature = "hub")]
mod others {
    use aweigh::files::hub;

    pub const PLACE: &str = "downloaded";

    pub fn names() -> Vec<String> {
        hub::cached()
    }

    pub fn could_be(name: &str) -> bool {
        hub::Name::parse(name).is_some()
    }
}

#[cfg(not(feature = "hub"))]
mod others {
    use std::path::Path;

    use aweigh::files::disk;

    pub const PLACE: &str = "added";

    pub fn names() -> Vec<String> {
        let names = disk::names(Path::new(super::ADDED)).unwrap_or_default();
        let whole = names.into_iter().filter(|name| !name.starts_with('.'));
        whole.map(|name| format!("{}/{name}", super::ADDED)).collect()
    }

    pub fn could_be(_: &str) -> bool {
        false
    }
}

/// The name that a model is known by: a path in full, so that it is the same model from wherever the app is
/// started.
///
/// # Errors
/// [`Error::Input`] if there is no such path, and no such name could be on the Hub.
pub fn identity(name: &str) -> Result<String> {
    let path = Path::new(name);
    if name == tiny::NAME || !disk::exists(path) && others::could_be(name) {
        return Ok(name.to_owned());
    }
    let full = disk::canonicalize(path).map_err(|_| {
        let fix = match cfg!(target_arch = "wasm32") {
            true => "choose one that is here, or add one",
            false => "give a folder, a GGUF file, a name on the Hub (owner/name), or \"tiny\"",
        };
        Error::input("the model", "a model that exists", name, fix)
    })?;
    Ok(full.to_string_lossy().into_owned())
}

/// Prompts to begin with: a help desk's customers for the built-in model, ordinary questions for others.
pub fn prompts(model: &str) -> Vec<String> {
    if model == tiny::NAME {
        return (0..PROMPTS).map(|i| tiny::generate(tiny::Split::Train, PROMPT_SEED, i).prompt).collect();
    }
    let rows = parse_rows(ORDINARY.1, ORDINARY.0, None).map(|parsed| parsed.rows).unwrap_or_default();
    rows.iter().map(|row| row.prompt.last_text().to_owned()).collect()
}

/// The number of the help desk's prompts, and their seed: not the one of its training data.
const PROMPTS: u32 = 60;
const PROMPT_SEED: u32 = 2026;

/// What a model takes.
#[derive(Debug, Serialize)]
pub struct Described {
    name: String,
    family: String,
    parameters: usize,
    /// The longest conversation that the model was made for, in tokens.
    context: usize,
    /// Whether it has a chat template.
    chat: bool,
    /// Bytes on the GPU to chat with it.
    to_chat: u64,
    /// Bytes on the GPU for a run with the usual settings and the longest texts that they allow.
    to_align: u64,
    gpu: String,
    /// Bytes of the memory that the GPU shares with the system; `None` for a GPU with its own memory, which
    /// no graphics API tells.
    memory: Option<u64>,
    /// Bytes of that memory that nothing uses.
    free: Option<u64>,
}

/// What the model `name` takes. Of a model on the Hub that is not downloaded yet, only the headers are read.
///
/// # Errors
/// A model that is not there or not supported.
pub async fn describe(app: &App, name: &str) -> Result<Described> {
    let crate::app::Settings { gpu, weights, messages } = &app.settings;
    let adapter = chosen_adapter(gpu.gpu.as_deref(), gpu.backend).await?;
    let model = open::model(name, false, &**messages)?;
    let binding = adapter.max_binding.min(adapter.max_buffer).max(DEFAULT_BINDING);
    let memory = Memory::on_paper(binding);
    let decoder = open::stored(&model, *weights).decoder(&memory, Training::None)?;
    let context = decoder.context();
    let seating = Seating { seats: SEATS, context: context.min(USUAL_CONTEXT) };
    let batch = Batch::new(&memory, &[&decoder], seating)?;
    let to_chat = memory.ledger().total().peak;
    drop(batch);
    let mut below = PartialConfig::default();
    let path = Some(std::path::PathBuf::from("-"));
    (below.data.train, below.output.output_dir) = (path.clone(), path);
    below.model.model = Some(name.into());
    let config = RunConfig::resolve(vec![aweigh::config::Layer::from_flags(below)])?;
    let job = Inputs::new(model.bytes(), ("-", &[])).assume(&config)?;
    let to_align = job.plan(&config, binding)?.peak().total;
    let config: serde_json::Value = serde_json::from_slice(model.bytes().config).unwrap_or_default();
    let family = config["model_type"].as_str().unwrap_or("unknown").to_owned();
    let shared = adapter.kind == "Cpu" || adapter.kind == "IntegratedGpu";
    let memory = system_memory().filter(|_| shared);
    Ok(Described {
        name: name.into(),
        family,
        parameters: decoder.config().parameters(),
        context,
        chat: model.bytes().tokenizer()?.has_template(),
        to_chat,
        to_align,
        gpu: adapter.name,
        memory: memory.map(|memory| memory.0),
        free: memory.map(|memory| memory.1),
    })
}

/// Bytes of the system's memory, and those that nothing uses; a browser does not tell them.
fn system_memory() -> Option<(u64, u64)> {
    #[cfg(not(target_arch = "wasm32"))]
    {
        use sysinfo::{MemoryRefreshKind, RefreshKind, System};
        let ram = MemoryRefreshKind::nothing().with_ram();
        let system = System::new_with_specifics(RefreshKind::nothing().with_memory(ram));
        Some((system.total_memory(), system.available_memory()))
    }
    #[cfg(target_arch = "wasm32")]
    None
}
