//! Injected faults, to test how a run handles a lost device or a failed allocation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Which submits lose the device or do not run, and which allocations fail. Clones share their counts, even
/// if they are used to open several devices.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Submits, counted from 1, at which the device is lost.
    lost: Vec<u64>,
    /// Submits, counted from 1, that the device does not run, without telling anybody.
    dropped: Vec<u64>,
    /// Allocations, counted from 1, that fail.
    full: Vec<u64>,
    submits: AtomicU64,
    allocations: AtomicU64,
}

impl Faults {
    /// Reads `device-lost@N`, `dropped@N` and `allocation@N`, separated by commas: the Nth submit and the Nth
    /// allocation from now on.
    ///
    /// # Errors
    /// [`Error::Input`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let mut inner = Inner::default();
        for one in text.split(',').filter(|one| !one.is_empty()) {
            let (kind, number) = one.split_once('@').unwrap_or((one, ""));
            let list = match kind {
                "device-lost" => Some(&mut inner.lost),
                "dropped" => Some(&mut inner.dropped),
                "allocation" => Some(&mut inner.full),
                _ => None,
            };
            match (list, number.parse()) {
                (Some(list), Ok(number)) => list.push(number),
                _ => {
                    let expected = "device-lost@N, dropped@N or allocation@N, separated by commas";
                    return Err(Error::input("AWEIGH_FAULTS", expected, one, "unset it: it is for tests"));
                }
            }
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Counts a submit. Returns whether the device is lost at this one, and whether it drops it.
    pub(super) fn of_submit(&self) -> (bool, bool) {
        let count = self.0.submits.fetch_add(1, Ordering::Relaxed) + 1;
        (self.0.lost.contains(&count), self.0.dropped.contains(&count))
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
        let faults = Faults::parse("device-lost@2,allocation@1,dropped@3").unwrap();
        let same = faults.clone();
        let submits = [faults.of_submit(), same.of_submit(), faults.of_submit()];
        assert_eq!(submits, [(false, false), (true, false), (false, true)]);
        assert_eq!([faults.fails_allocation(), same.fails_allocation()], [true, false]);
        assert_eq!(same.counted(), (3, 2));
        assert_eq!(Faults::default().of_submit(), (false, false));
        for wrong in ["device-lost", "device-lost@x", "rain@3"] {
            assert!(Faults::parse(wrong).unwrap_err().to_string().contains("AWEIGH_FAULTS"));
        }
    }
}
