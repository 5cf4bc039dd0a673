//! The whole run: samples the anchors, trains, and returns the state that is kept.

use super::observer::Observer;
use super::run::{Outcome, Run, Setup};
use crate::config::RunConfig;
use crate::gpu::Gpu;
use crate::{Error, Result};

/// Trains `setup.decoder` with the settings in `config`.
///
/// # Errors
/// Device errors and errors from the observer; an example that exceeds the model's context; no prompt with a
/// non-empty sample; no step with a finite loss and gradient; [`Error::Interrupted`] if the observer asks to
/// stop.
pub async fn align(
    gpu: &Gpu,
    mut setup: Setup,
    config: &RunConfig,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let resume = setup.resume.take();
    let mut run = Run::new(gpu, setup, config, observer)?;
    let (begun, drawn) = match resume {
        Some(state) if state.trained().is_none() => (None, Some(state)),
        begun => (begun, None),
    };
    if begun.is_none() {
        if let Some(drawn) = &drawn {
            run.restore_drawn(drawn)?;
        }
        let prepared = run.prepare().await;
        // Sampling takes long: anchors sampled before an interrupt or a GPU failure are saved for a resume.
        if let Err(Error::Interrupted | Error::DeviceLost { .. } | Error::OutOfMemory { .. }) = &prepared
            && let Some(drawn) = run.drawn()?
        {
            // The first error is the one to report.
            let _ = run.observer.saved(drawn);
        }
        prepared?;
    }
    run.train(begun.as_ref()).await
}
