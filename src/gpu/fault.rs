//! Injected faults, to test how a run handles a lost device or a failed allocation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Which submits lose the device and which allocations fail. Clones share their counts, even if they are used
/// to open several devices.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Submits, counted from 1, at which the device is lost.
    lost: Vec<u64>,
    /// Allocations, counted from 1, that fail.
    full: Vec<u64>,
    submits: AtomicU64,
    allocations: AtomicU64,
}

impl Faults {
    /// Reads `device-lost@N` and `allocation@N`, separated by commas: the Nth submit and the Nth allocation
    /// from now on.
    ///
    /// # Errors
    /// [`Error::Input`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let mut inner = Inner::default();
        for one in text.split(',').filter(|one| !one.is_empty()) {
            let (kind, number) = one.split_once('@').unwrap_or((one, ""));
            let list = match kind {
                "device-lost" => Some(&mut inner.lost),
                "allocation" => Some(&mut inner.full),
                _ => None,
            };
            match (list, number.parse()) {
                (Some(list), Ok(number)) => list.push(number),
                _ => {
                    let expected = "device-lost@N or allocation@N, separated by commas";
                    return Err(Error::input("AWEIGH_FAULTS", expected, one, "unset it: it is for tests"));
                }
            }
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Counts a submit. Returns whether the device is lost at this one.
    pub(super) fn loses_device(&self) -> bool {
        let count = self.0.submits.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.lost.contains(&count)
    }

    /// Counts an allocation. Returns whether it fails.
    pub(super) fn fails_allocation(&self) -> bool {
        let count = self.0.allocations.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.full.contains(&count)
    }

    /// Submits and allocations so far.
    pub fn counted(&self) -> (u64, u64) {
        (self.0.submits.load(Ordering::Relaxed), self.0.allocations.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_of_each_kind() {
        let faults = Faults::parse("device-lost@2,allocation@1,device-lost@3").unwrap();
        let same = faults.clone();
        assert_eq!([faults.loses_device(), same.loses_device(), faults.loses_device()], [false, true, true]);
        assert_eq!([faults.fails_allocation(), same.fails_allocation()], [true, false]);
        assert_eq!(same.counted(), (3, 2));
        assert!(!Faults::default().loses_device());
        for wrong in ["device-lost", "device-lost@x", "rain@3"] {
            assert!(Faults::parse(wrong).unwrap_err().to_string().contains("AWEIGH_FAULTS"));
        }
    }
}
