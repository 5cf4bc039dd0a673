//! Aweigh in a browser's tab: the library, as functions that a worker calls. Results are JSON.

mod selftest;

use wasm_bindgen::prelude::*;

/// This program's version, with commit, target and wgpu's version.
const VERSION: &str = env!("AWEIGH_VERSION");

/// Shows panics in the browser's console.
#[wasm_bindgen(start)]
fn start() {
    console_error_panic_hook::set_once();
}

/// An error as JavaScript gets it: its message.
fn thrown(error: aweigh::Error) -> JsValue {
    js_sys::Error::new(&error.to_string()).into()
}
