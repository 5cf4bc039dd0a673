//! Where notes and warnings go: to the terminal, or to the log.

use std::fmt::Display;

/// What is told of a download: the file's name, its bytes so far and all its bytes.
pub type Progress<'a> = dyn FnMut(&str, u64, u64) + 'a;

/// Takes messages for the user.
pub trait Messages: Send + Sync {
    /// A message that can be turned off.
    fn note(&self, text: &dyn Display);
    /// A warning.
    fn warn(&self, text: &dyn Display);
    /// What is told of downloads.
    fn downloads(&self) -> Box<Progress<'_>> {
        Box::new(|_, _, _| {})
    }
}

/// Messages go to the log.
#[derive(Debug, Clone, Copy)]
pub struct Logged;

impl Messages for Logged {
    fn note(&self, text: &dyn Display) {
        log::info!("{text}");
    }

    fn warn(&self, text: &dyn Display) {
        log::warn!("{text}");
    }
}
