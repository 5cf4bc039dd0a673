//! Aweigh in a browser's tab: the app, as functions that a worker calls. Results are JSON.
//!
//! [`disk`] keeps files in the browser's storage, [`page`] answers the page as `aweigh app` does over HTTP,
//! and [`selftest`] checks the GPU.

// There is nothing of it without a browser.
#![cfg(target_arch = "wasm32")]

mod disk;
mod page;
mod selftest;

use wasm_bindgen::prelude::*;

/// This program's version, with commit, target and wgpu's version.
const VERSION: &str = env!("AWEIGH_VERSION");

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console)]
    fn warn(text: &str);
}

/// Warnings and errors go to the browser's console.
struct Console;

impl log::Log for Console {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record) {
        // wgpu's warnings are for developers.
        if self.enabled(record.metadata()) && record.target().starts_with("aweigh") {
            warn(&record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Shows panics and warnings in the browser's console.
#[wasm_bindgen(start)]
fn start() {
    console_error_panic_hook::set_once();
    // A second module in the same worker has one already.
    let _ = log::set_logger(&Console).map(|()| log::set_max_level(log::LevelFilter::Warn));
}

/// Says that the worker asks for subgroups wherever a device is opened.
#[wasm_bindgen]
pub fn subgroups_are_asked_for() {
    aweigh::gpu::subgroups_are_asked_for();
}

/// An error as JavaScript gets it: its message.
fn thrown(error: aweigh::Error) -> JsValue {
    js_sys::Error::new(&error.to_string()).into()
}
