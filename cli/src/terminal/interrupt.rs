//! Ctrl-C: the first one asks the command to stop cleanly, the second one ends the process at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use aweigh::error::{Error, Result};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Asks another owner of this process's signals.
static OTHER: OnceLock<fn() -> bool> = OnceLock::new();

/// Instead of [`install`], where something else handles signals, such as Python: `asked` says whether that
/// has been asked to stop.
pub fn ask_instead(asked: fn() -> bool) {
    let _ = OTHER.set(asked);
}

/// Installs the handler for Ctrl-C (on Unix also for SIGTERM and SIGHUP). Call it once.
pub fn install() {
    let installed = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(Error::Interrupted.exit_code()));
        }
        crate::terminal::text::to_stderr("\nstopping after this step; press Ctrl-C again to stop at once");
    });
    if let Err(error) = installed {
        log::warn!("Ctrl-C cannot be caught: {error}");
    }
}

/// Whether the user has asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst) || OTHER.get().is_some_and(|other| other())
}

/// Call it between steps.
///
/// # Errors
/// [`Error::Interrupted`] once the user has asked to stop.
pub fn check() -> Result<()> {
    if asked() { Err(Error::Interrupted) } else { Ok(()) }
}
