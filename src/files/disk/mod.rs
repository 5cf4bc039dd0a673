//! The disk, with the same functions everywhere: the operating system's, or in a browser's tab the files that
//! the tab keeps for this page (`store`).

#[cfg(any(test, target_arch = "wasm32"))]
mod index;
#[cfg(any(test, target_arch = "wasm32"))]
pub mod slots;
#[cfg(any(test, target_arch = "wasm32"))]
pub mod store;
#[cfg(not(target_arch = "wasm32"))]
mod system;
#[cfg(target_arch = "wasm32")]
mod tab;

#[cfg(not(target_arch = "wasm32"))]
pub use system::*;
#[cfg(target_arch = "wasm32")]
pub use tab::*;

/// Prefix of temporary names.
pub(super) const PART: &str = ".aweigh-";
