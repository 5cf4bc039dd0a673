//! A run, from anchors to the state it keeps.

use super::observer::Observer;
use super::run::{Outcome, Run, Setup};
use crate::config::RunConfig;
use crate::gpu::Gpu;
use crate::{Error, Result};

/// Trains `setup.decoder` as `config` says.
///
/// # Errors
/// Whatever the device reports; what the observer returns; examples without what the method needs.
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
        // Drawing takes long: it need not be done again for an interrupt or a GPU that gave up, as long as it
        // was right.
        if let Err(Error::Interrupted | Error::DeviceLost { .. } | Error::OutOfMemory { .. }) = &prepared
            && let Some(drawn) = run.drawn()?
        {
            // What went wrong first is told.
            let _ = run.observer.saved(drawn);
        }
        prepared?;
    }
    run.train(begun.as_ref()).await
}
