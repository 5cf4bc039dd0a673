//! Wishes of an observer: to finish a run now, or to stop it so that it can be resumed. Also in a whole run
//! with its folder, on its own thread.

use std::fs;
use std::path::Path;

use aweigh::files::{AdapterFiles, RunFolder};
use aweigh::run::{Finished, Place, RunFiles};
use aweigh::tiny;
use aweigh::train::{Observer, StopReason, Wish, align};
use aweigh::{Error, Result, RunConfig, Watcher};
use pollster::block_on;

use super::{bytes, config, examples, gpu, setup};

#[test]
fn a_run_that_is_asked_to_finish_keeps_its_best_state() {
    let mut watcher = super::Watcher { wish_at: Some((3, Wish::Finish)), ..Default::default() };
    let begun = super::Setup { eval: examples(2, 20), ..setup() };
    let outcome = block_on(align(gpu(), begun, &config(), &mut watcher)).expect("an outcome");
    assert_eq!((outcome.reason, outcome.steps), (StopReason::Requested, 3));
    // It is evaluated after its last step, like a run that took all steps.
    let evaluated: Vec<_> = watcher.evaluations.iter().map(|m| m.get("global_step")).collect();
    assert_eq!(evaluated, [Some(0.0), Some(1.0), Some(2.0), Some(3.0)]);
    assert_eq!(outcome.after.and_then(|m| m.get("global_step")), Some(outcome.kept_step as f64));
}

#[test]
fn a_run_that_is_asked_to_stop_gives_its_state_and_goes_on_to_the_same_bits() {
    let whole =
        block_on(align(gpu(), setup(), &config(), &mut super::Watcher::default())).expect("an outcome");
    let mut watcher = super::Watcher { wish_at: Some((2, Wish::Stop)), ..Default::default() };
    let stopped = block_on(align(gpu(), setup(), &config(), &mut watcher));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let state = watcher.taken.pop().expect("a state");
    assert_eq!(state.trained(), Some(2));
    let rest = super::Setup { resume: Some(state), ..setup() };
    let rest = block_on(align(gpu(), rest, &config(), &mut super::Watcher::default())).expect("an outcome");
    assert_eq!(bytes(&rest), bytes(&whole));
}

/// Has a wish after this many steps.
struct Asks(usize, Wish);

impl Observer for Asks {
    fn step(&mut self, _: &aweigh::train::Metrics) -> Result<()> {
        self.0 = self.0.saturating_sub(1);
        Ok(())
    }

    fn wish(&mut self) -> Wish {
        if self.0 == 0 { self.1 } else { Wish::GoOn }
    }
}

impl Watcher for Asks {}

fn whole_run(folder: &Path, name: &str, place: Option<Place>, mut asks: Asks) -> Result<Finished> {
    let mut config = RunConfig::default();
    config.model.model = "tiny".into();
    config.data.train = folder.join("negatives.jsonl.gz");
    fs::write(&config.data.train, tiny::NEGATIVES.1).expect("written");
    config.data.max_samples = Some(12);
    config.output.output_dir = folder.join(name);
    (config.method.num_samples, config.anchors.max_new_tokens) = (2, 8);
    (config.train.max_steps, config.stop.eval_steps) = (Some(6), 2);
    config.output.num_completions = 0;
    config.gpu.adapter = std::env::var("AWEIGH_GPU").ok();
    let files = RunFiles::open(&config)?;
    let place = place.unwrap_or(Place::New { overwrite: false });
    let thread = std::thread::spawn(move || aweigh::run(&files, config, place, &mut asks));
    thread.join().expect("no panic")
}

#[test]
fn a_whole_run_on_a_thread_is_finished_stopped_and_resumed() {
    let room = tempfile::tempdir().expect("a folder");
    let finished = whole_run(room.path(), "finished", None, Asks(2, Wish::Finish)).expect("a run");
    assert_eq!(finished.summary.reason, StopReason::Requested);
    assert!((2..=4).contains(&finished.summary.steps), "{}", finished.summary.steps);
    let adapter = AdapterFiles::open(&room.path().join("finished/adapter"), "adapter").expect("PEFT's files");
    assert_eq!(adapter.bytes().parse().expect("an adapter").spec.r, 16);
    for name in ["config.toml", "metrics.jsonl", "samples.jsonl", "summary.json"] {
        assert!(room.path().join("finished").join(name).is_file(), "{name}");
    }
    drop(finished);

    let never = || Asks(usize::MAX, Wish::GoOn);
    drop(whole_run(room.path(), "whole", None, never()).expect("a run"));
    let stopped = whole_run(room.path(), "stopped", None, Asks(2, Wish::Stop));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let place = Place::Resume(RunFolder::resume(&room.path().join("stopped"), "folder").expect("a run"));
    drop(whole_run(room.path(), "stopped", Some(place), never()).expect("a run"));
    let weights = |name: &str| fs::read(room.path().join(name).join("adapter/adapter_model.safetensors"));
    assert_eq!(weights("stopped").expect("weights"), weights("whole").expect("weights"));
}

#[test]
fn settings_of_library_use_are_checked() {
    let room = tempfile::tempdir().expect("a folder");
    let mut config = RunConfig::default();
    config.model.model = "tiny".into();
    config.data.train = room.path().join("negatives.jsonl.gz");
    fs::write(&config.data.train, tiny::NEGATIVES.1).expect("written");
    config.stop.eval_steps = 0;
    let files = RunFiles::open(&config).expect("files");
    let error =
        aweigh::run(&files, config, Place::Nothing, &mut aweigh::train::Unwatched).err().expect("an error");
    assert!(
        error.to_string().starts_with("stop.eval_steps: expected a whole number of at least 1"),
        "{error}"
    );
}
