//! The Python package's native module, `aweigh._aweigh`. It passes flags and JSON texts; the functions that
//! people call are in `aweigh/__init__.py`.

mod model;
mod watch;

use std::ffi::OsString;
use std::sync::{Mutex, PoisonError};

use aweigh::RunConfig;
use aweigh::error::Error;
use aweigh::files::{RunFolder, Source};
use aweigh::run::{self, Place, RunFiles};
use aweigh_cli::commands::align as command;
use aweigh_cli::open;
use aweigh_cli::program;
use aweigh_cli::terminal::interrupt;
use aweigh_cli::terminal::output::Output;
use clap::FromArgMatches;
use clap::error::ErrorKind;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt, PyTypeError};
use pyo3::prelude::*;

use watch::Watch;

pyo3::create_exception!(
    aweigh,
    AweighError,
    PyException,
    "Invalid settings or files, or a failure of the GPU.\n\n`exit_code` is that of the program: 2 for what \
     the caller can mend, 1 otherwise. For invalid settings, files and tensors `place`, `expected`, `found` \
     and `fix` are the parts of the message; otherwise they are None."
);

/// The exception that a signal's handler raised, such as KeyboardInterrupt.
static INTERRUPT: Mutex<Option<PyErr>> = Mutex::new(None);

/// Has Python handle signals. Whether a handler raised an exception, which [`raised`] raises.
fn interrupted() -> bool {
    match Python::attach(|py| py.check_signals()) {
        Ok(()) => false,
        Err(error) => {
            *INTERRUPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            true
        }
    }
}

/// The exception for an error. Flags in it are named as Python's arguments.
fn raised(py: Python<'_>, error: &Error) -> PyErr {
    let renamed = match error {
        Error::Interrupted => {
            let raised = INTERRUPT.lock().unwrap_or_else(PoisonError::into_inner).take();
            return raised.unwrap_or_else(|| PyKeyboardInterrupt::new_err("interrupted"));
        }
        Error::Input { place, expected, found, fix } => {
            // A command line stays as it is.
            let fix = if fix.contains("aweigh ") { fix.clone() } else { as_arguments(fix) };
            Some(Error::input(as_arguments(place), as_arguments(expected), as_arguments(found), fix))
        }
        _ => None,
    };
    let error = renamed.as_ref().unwrap_or(error);
    let json = error.to_json();
    let raised = AweighError::new_err(error.to_string());
    let value = raised.value(py);
    let set = |name: &str| value.setattr(name, json["error"][name].as_str());
    let parts = ["place", "expected", "found", "fix"].into_iter().try_for_each(set);
    match parts.and_then(|()| value.setattr("exit_code", error.exit_code())) {
        Ok(()) => raised,
        Err(failed) => failed,
    }
}

/// Parses `flags` as those of a command.
fn parsed<A: clap::Args + FromArgMatches>(py: Python<'_>, flags: Vec<String>) -> PyResult<A> {
    let command = A::augment_args(clap::Command::new("aweigh").no_binary_name(true).disable_help_flag(true));
    let matches = command.try_get_matches_from(flags);
    matches.and_then(|matches| A::from_arg_matches(&matches)).map_err(|error| {
        let wrong = matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation);
        let text = error.render().to_string();
        // Without clap's usage, which is that of a command line.
        let text = text.split("\n\nUsage:").next().unwrap_or_default().trim_start_matches("error: ");
        let text = as_arguments(text.trim_end());
        if !wrong {
            return PyTypeError::new_err(text);
        }
        let raised = AweighError::new_err(text);
        match raised.value(py).setattr("exit_code", 2) {
            Ok(()) => raised,
            Err(failed) => failed,
        }
    })
}

/// Names flags as Python's arguments: `--max-steps` becomes `max_steps`.
fn as_arguments(text: &str) -> String {
    let mut parts = text.split("--");
    let mut named = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(part.len());
        named += &part[..end].replace('-', "_");
        named += &part[end..];
    }
    named
}

/// The output of commands that are called from Python: warnings on stderr.
fn output() -> Output {
    Output::new(false, true)
}

/// Runs the program with these arguments, the first of which is its name, and returns its exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| program::main(arguments))
}

/// Aligns a model, with the flags of `aweigh align`. Calls `callback` with events as JSON texts. Returns
/// summary.json's content, with the folder of the result.
#[pyfunction]
fn align(py: Python<'_>, flags: Vec<String>, callback: Option<Py<PyAny>>) -> PyResult<String> {
    let args: command::Args = parsed(py, flags)?;
    let mut watch = Watch::new(callback);
    let done = py.detach(|| aligned(args, &mut watch));
    if let Some(error) = watch.failed.take() {
        return Err(error);
    }
    done.map_err(|error| raised(py, &error))
}

/// Checks the settings of [`align`] and that its folder can be made, and writes nothing.
#[pyfunction]
fn check(py: Python<'_>, flags: Vec<String>) -> PyResult<()> {
    let args: command::Args = parsed(py, flags)?;
    if args.resume.is_some() {
        return Ok(());
    }
    py.detach(|| new_run(&args)).map(|_| ()).map_err(|error| raised(py, &error))
}

/// The settings of a new run, whose folder can be made.
fn new_run(args: &command::Args) -> aweigh::Result<RunConfig> {
    let settings = args.settings.clone();
    let config = command::settings(Default::default(), args.preset, args.config.as_deref(), settings)?;
    RunFolder::check(&config.output.output_dir, "output_dir", args.overwrite)?;
    Ok(config)
}

fn aligned(args: command::Args, watch: &mut Watch) -> aweigh::Result<String> {
    let (place, config) = match &args.resume {
        Some(folder) => (
            Place::Resume(RunFolder::resume(folder, "resume")?),
            command::settings_of(folder, args.settings.clone())?,
        ),
        None => (Place::New { overwrite: args.overwrite }, new_run(&args)?),
    };
    let train = Source::read(&config.data.train, "train")?;
    let model = open::model(&config.model.model, true, &output())?;
    let files = aweigh_app::meters::anchors::with_meter(RunFiles::with(&config, train, model)?, &config)?;
    let finished = run::run(&files, config, place, watch)?;
    let mut summary = serde_json::to_value(&finished.summary).unwrap_or_default();
    if let Some(folder) = &finished.folder {
        let result = if finished.config.lora.enabled { "adapter" } else { "model" };
        summary["output_dir"] = folder.path().display().to_string().into();
        summary[result] = folder.path().join(result).display().to_string().into();
    }
    Ok(summary.to_string())
}

/// The adapters of this machine, as the JSON of `aweigh devices --json`.
#[pyfunction]
fn devices(py: Python<'_>) -> PyResult<String> {
    let found = py.detach(|| pollster::block_on(aweigh::gpu::list_adapters(None)));
    let found = found.map_err(|error| raised(py, &error))?;
    Ok(serde_json::to_string(&found).unwrap_or_default())
}

/// The native part of the package aweigh.
#[pymodule]
fn _aweigh(module: &Bound<'_, PyModule>) -> PyResult<()> {
    interrupt::ask_instead(interrupted);
    module.add("AweighError", module.py().get_type::<AweighError>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<model::Model>()?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(align, module)?)?;
    module.add_function(wrap_pyfunction!(check, module)?)?;
    module.add_function(wrap_pyfunction!(devices, module)?)
}
