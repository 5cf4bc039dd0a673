//! Work that takes a while, one piece at a time: comparisons and exports.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::exports::{self, Kind};
use super::workspace::{Project, create};
use super::{App, guarded};
use crate::args::SamplingArgs;
use crate::comparison::{Candidate, Compared, Kind as Of, Part, Set, Watch};
use crate::meters::Spec;
use crate::open;
use crate::tasks::start;
use aweigh::data::{ORDINARY, Prompt, parse_rows};
use aweigh::error::{Error, Result};
use aweigh::files::{disk, read, write_whole};
use aweigh::tiny;

/// What the page shows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct View {
    /// The run that it is about.
    pub run: u32,
    /// The project's folder.
    pub project: String,
    /// `compare`, or the kind of file.
    pub what: String,
    /// What is being done.
    pub part: String,
    /// Items done.
    pub done: usize,
    /// All items of the part.
    pub total: usize,
    /// Whether it has ended.
    pub ended: bool,
    /// Why it failed; `None` if it did not.
    pub error: Option<String>,
}

/// A piece of work, shared by its task and the page.
#[derive(Default)]
pub struct Job {
    view: Mutex<View>,
    cancelled: AtomicBool,
}

impl Job {
    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the page shows now.
    pub fn view(&self) -> View {
        self.lock().clone()
    }

    /// Asks it to end.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }
}

/// What is asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Wanted {
    /// The model and the run answer the same prompts.
    Compare {
        /// `--num-samples`
        #[serde(default = "once")]
        num_samples: usize,
    },
    /// A file is made.
    Export {
        /// The kind of file.
        kind: Kind,
    },
}

fn once() -> usize {
    1
}

/// Begins work on run `id`.
///
/// # Errors
/// Other work that goes on, or a run that does.
pub fn begin(app: &Arc<App>, project: &Arc<Project>, id: u32, wanted: Wanted) -> Result<()> {
    let what = match &wanted {
        Wanted::Compare { .. } => "compare".to_owned(),
        Wanted::Export { kind } => serde_json::to_string(kind).unwrap_or_default().replace('"', ""),
    };
    let mut activity = app.activity();
    activity.idle()?;
    let job = Arc::new(Job::default());
    *job.lock() = View { run: id, project: project.id(), what, ..View::default() };
    let (own, project, mine) = (app.clone(), project.clone(), job.clone());
    let task = start("job", async move || {
        let work = async {
            match wanted {
                Wanted::Compare { num_samples } => compare(&own, &project, id, num_samples, &mine).await,
                Wanted::Export { kind } => exports::make(&project, id, kind, &*own.settings.messages),
            }
        };
        let done = guarded("working", work).await;
        // Who cancels knows.
        let failure = done.err().filter(|error| !matches!(error, Error::Interrupted));
        let mut view = mine.lock();
        (view.ended, view.error) = (true, failure.map(|error| error.to_string()));
    })?;
    activity.begin_job(job, task);
    Ok(())
}

/// The most flagged prompts of a comparison.
const MOST: usize = 60;

/// Compares the model and run `id` on the held-out flags and on ordinary prompts.
async fn compare(app: &App, project: &Project, id: u32, num_samples: usize, job: &Job) -> Result<()> {
    let messages = &*app.settings.messages;
    let base = open::model(&project.model, true, messages)?;
    let adapter = open::adapter(&project.adapter(id), "the run", &base, messages)?;
    let [train, held_out] = project.data(id);
    let is_tiny = project.model == tiny::NAME;
    let set = |name: &str, origin: &str, bytes: &[u8]| {
        let rows = parse_rows(bytes, origin, None)?.rows;
        Ok::<_, Error>(Set { name: name.into(), origin: origin.into(), rows })
    };
    let trained = set("flagged, trained on", "the flags", &read(&train, "the flags")?)?;
    let mut asked: Vec<String> = trained.rows.iter().map(|row| row.prompt.last_text().to_owned()).collect();
    let mut flagged = match disk::is_file(&held_out) {
        true => set("flagged, held out", "the held-out flags", &read(&held_out, "the held-out flags")?)?,
        false => trained,
    };
    // Of several flags of a prompt, one answer is enough.
    let mut seen: Vec<Prompt> = Vec::new();
    flagged.rows.retain(|row| {
        !seen.contains(&row.prompt) && seen.len() < MOST && {
            seen.push(row.prompt.clone());
            true
        }
    });
    // The built-in model knows only its help desk, and so do its meters.
    let mut ordinary = match is_tiny {
        true => set("help desk, held out", tiny::HELD_OUT.0, tiny::HELD_OUT.1)?,
        false => set("ordinary", ORDINARY.0, ORDINARY.1)?,
    };
    // A question that was flagged in whatever conversation is not an ordinary one.
    asked.extend(flagged.rows.iter().map(|row| row.prompt.last_text().to_owned()));
    ordinary.rows.retain(|row| !asked.iter().any(|asked| asked == row.prompt.last_text()));
    flagged.rows.retain(|row| !is_tiny || tiny::Prompt::parse(row.prompt.last_text()).is_some());
    let sets = [flagged, ordinary].into_iter().filter(|set| !set.rows.is_empty()).collect();
    let mut meters: Vec<Spec> = project.flags().rule().map(Spec::Rule).into_iter().collect();
    let others = if is_tiny { ["tiny-hostile", "tiny-topic"] } else { ["lexicon", "refusal"] };
    for name in others {
        let meter: Spec = name.parse().expect("a built-in meter");
        if !meters.contains(&meter) {
            meters.push(meter);
        }
    }
    let compared = Compared {
        base: &base,
        model: project.model.clone(),
        weights: app.settings.weights,
        candidates: vec![
            Candidate { name: "before".into(), kind: Of::Base },
            Candidate { name: format!("run {id}"), kind: Of::Adapter(Box::new(adapter)) },
        ],
        sets,
        meters,
        meter_model: None,
        num_samples: num_samples.clamp(1, 16),
        max_prompt_length: 512,
        sampling: SamplingArgs {
            temperature: 0.9,
            top_p: 0.95,
            top_k: 0,
            repetition_penalty: 1.0,
            max_new_tokens: if is_tiny { tiny::MAX_NEW_TOKENS } else { 96 },
            seed: 42,
        },
    };
    let gpu = open::gpu(&app.settings.gpu).await?;
    let report = compared.compare(&gpu, &mut Shown(job), messages).await?;
    let place = project.comparison(id);
    create(place.parent().expect("inside the project"))?;
    write_whole(&place, &serde_json::to_vec_pretty(&report).unwrap_or_default())
}

/// A comparison on the page.
struct Shown<'a>(&'a Job);

impl Watch for Shown<'_> {
    fn begin(&mut self, part: Part, total: usize) {
        let mut view = self.0.lock();
        view.part = match part {
            Part::Sampling { candidate, set } => format!("{candidate}: {set}"),
            Part::Judging => "judging".into(),
        };
        (view.done, view.total) = (0, total);
    }

    fn advance(&mut self, items: usize, _: usize) -> Result<()> {
        self.0.lock().done += items;
        if self.0.cancelled.load(Ordering::SeqCst) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn end(&mut self) {}
}
