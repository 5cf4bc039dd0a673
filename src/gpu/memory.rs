//! The memory ledger: every buffer is made through it, with a purpose, so that peaks are known and can be compared with a plan.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Frozen weights, as loaded.
    Weights,
    /// Trainable parameters: adapters, or all weights in full fine-tuning.
    Trainable,
    /// Adapter snapshots that serve as references.
    References,
    /// Gradients of trainable parameters.
    Gradients,
    /// AdamW's two moments.
    Moments,
    /// What the forward pass keeps for the backward pass, and scratch space.
    Activations,
    /// One chunk of logits.
    Logits,
    /// Keys and values of a sampler.
    KvCache,
    /// Token tables, uniforms, reduction partials and readback copies.
    Staging,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::Trainable => "trainable",
            Self::References => "references",
            Self::Gradients => "gradients",
            Self::Moments => "moments",
            Self::Activations => "activations",
            Self::Logits => "logits chunk",
            Self::KvCache => "KV cache",
            Self::Staging => "staging",
        })
    }
}

/// Bytes held now and at the highest point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Bytes held now.
    pub now: u64,
    /// The most bytes ever held at once.
    pub peak: u64,
}

#[derive(Default)]
struct Book {
    total: Usage,
    by_purpose: BTreeMap<Purpose, Usage>,
}

/// Counts the bytes of all live buffers of one device.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters `bytes`; the entry is struck out when the returned guard drops.
    pub(super) fn enter(&self, purpose: Purpose, bytes: u64) -> Entry {
        let mut book = self.book();
        let book = &mut *book;
        for usage in [&mut book.total, book.by_purpose.entry(purpose).or_default()] {
            usage.now += bytes;
            usage.peak = usage.peak.max(usage.now);
        }
        Entry { ledger: self.clone(), purpose, bytes }
    }

    /// All buffers together.
    pub fn total(&self) -> Usage {
        self.book().total
    }

    /// Begins the peaks anew, at what is held now.
    pub fn restart_peaks(&self) {
        let mut book = self.book();
        let book = &mut *book;
        for usage in std::iter::once(&mut book.total).chain(book.by_purpose.values_mut()) {
            usage.peak = usage.now;
        }
    }

    /// Each purpose by itself; the peaks need not have occurred together.
    pub fn by_purpose(&self) -> BTreeMap<Purpose, Usage> {
        self.book().by_purpose.clone()
    }
}

/// One live buffer in the ledger.
pub(super) struct Entry {
    ledger: Ledger,
    purpose: Purpose,
    bytes: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut book = self.ledger.book();
        book.total.now -= self.bytes;
        if let Some(usage) = book.by_purpose.get_mut(&self.purpose) {
            usage.now -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_stay_and_entries_leave() {
        let ledger = Ledger::default();
        let first = ledger.enter(Purpose::Weights, 100);
        drop(ledger.enter(Purpose::Logits, 50));
        assert_eq!(ledger.total(), Usage { now: 100, peak: 150 });
        drop(first);
        assert_eq!(ledger.total(), Usage { now: 0, peak: 150 });
        assert_eq!(ledger.by_purpose()[&Purpose::Logits], Usage { now: 0, peak: 50 });
        ledger.restart_peaks();
        assert_eq!(ledger.total(), Usage::default());
    }
}
