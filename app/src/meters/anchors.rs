//! A meter of a run's anchors.

use std::sync::Arc;

use aweigh::config::{AnchorChoice, RunConfig};
use aweigh::data::Prompt;
use aweigh::error::{Error, Result};
use aweigh::files::read_text;
use aweigh::gpu::Gpu;
use aweigh::run::RunFiles;
use aweigh::train::{Meter as AnchorMeter, Scores};

use super::judge::Judge;
use super::{Meter, Spec};
use crate::messages::Logged;

/// Gives a run's files the meter that its settings name for the anchors, if they name one.
///
/// # Errors
/// [`Error::Input`] for an unknown meter, one that needs a model's name, or one whose file or judge is
/// missing or invalid.
pub fn with_meter(files: RunFiles, config: &RunConfig) -> Result<RunFiles> {
    let AnchorChoice::Meter(text) = &config.anchors.choice else { return Ok(files) };
    let place = "--anchors";
    let spec: Spec = text.parse().map_err(|expected| {
        Error::input(place, expected, format!("{text:?}"), "name a meter of aweigh eval")
    })?;
    match &spec {
        Spec::Lexicon(Some(file)) => drop(read_text(file, place)?),
        Spec::Judge(folder) => drop(Judge::open(folder, None, place, &Logged)?),
        Spec::Http(_) => {
            let fix = "use command:LINE, with a program that asks the model";
            return Err(Error::input(place, "a meter that needs no model's name", text, fix));
        }
        _ => {}
    }
    Ok(files.with_meter(Arc::new(OnDemand(spec))))
}

/// A meter that is opened when it is asked, and closed afterwards: it takes no memory during the training.
#[derive(Debug)]
struct OnDemand(Spec);

impl AnchorMeter for OnDemand {
    fn scores<'a>(&'a self, gpu: &'a Gpu, answers: &'a [(&'a Prompt, &'a str)]) -> Scores<'a> {
        Box::pin(async move {
            let meter = Meter::open(&self.0, None, gpu, &Logged)?;
            meter.score(gpu, answers, &mut |_, _| Ok(())).await
        })
    }
}
