//! On macOS a plain `cargo build` needs flags to leave Python's functions to the process that loads the
//! library.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
