//! A compiler's verdict on the kernels, for the programs fxc and dxc.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The program `name LIBRARY FOLDER [checked]`: compiles FOLDER with what `load` makes of the library, and of
/// whether to compile as in a debug build.
pub fn main<C>(name: &str, load: impl FnOnce(&str, bool) -> Result<C, String>) -> ExitCode
where
    C: Fn(&str, &str) -> Result<usize, String> + Sync,
{
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (library, folder, checked) = match &arguments[..] {
        [library, folder] => (library, folder, false),
        [library, folder, checked] if checked == "checked" => (library, folder, true),
        _ => {
            eprintln!("usage: {name} LIBRARY FOLDER [checked]");
            return ExitCode::from(2);
        }
    };
    match load(library, checked).and_then(|compile| compile_all(folder, compile)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{name}: {message}");
            ExitCode::from(2)
        }
    }
}

/// What became of a shader's variants.
#[derive(Default)]
struct Row {
    variants: usize,
    failed: usize,
    /// The largest compiled variant, in bytes.
    bytes: usize,
    /// The time of all, and the slowest with its name.
    time: Duration,
    slowest: (Duration, String),
}

/// Compiles all HLSL files of `folder` on all cores and prints a table; `false` if one failed. `compile` gets
/// a text and its name, and returns the size of the compiled shader or the compiler's messages.
fn compile_all(
    folder: &str,
    compile: impl Fn(&str, &str) -> Result<usize, String> + Sync,
) -> Result<bool, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{folder}: {error}"))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "hlsl"));
    paths.sort();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<String, Row>::new()));
    let work = || {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let source = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let begun = Instant::now();
            let result = compile(&source, &name);
            let took = begun.elapsed();
            let mut rows = rows.lock().map_err(|error| error.to_string())?;
            let row = rows.entry(name.split(' ').next().unwrap_or_default().to_owned()).or_default();
            row.variants += 1;
            row.time += took;
            row.slowest = row.slowest.clone().max((took, name.clone()));
            match result {
                Ok(bytes) => row.bytes = row.bytes.max(bytes),
                Err(message) => {
                    row.failed += 1;
                    println!("FAILED {name}");
                    message.lines().for_each(|line| println!("  {line}"));
                }
            }
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| -> Result<(), String> {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    let rows = rows.into_inner().map_err(|error| error.to_string())?;
    println!(
        "| shader | variants | failed | mean, s | slowest, s | largest, KB |\n|---|---|---|---|---|---|"
    );
    for (shader, row) in &rows {
        let mean = row.time.as_secs_f64() / row.variants as f64;
        let (slowest, name) = (row.slowest.0.as_secs_f64(), &row.slowest.1);
        let flags = name.split_once(' ').map_or("", |(_, flags)| flags);
        let (variants, failed, bytes) = (row.variants, row.failed, row.bytes / 1000);
        println!("| `{shader}` | {variants} | {failed} | {mean:.2} | {slowest:.1} ({flags}) | {bytes} |");
    }
    let failed: usize = rows.values().map(|row| row.failed).sum();
    println!("{} variants, {failed} failed", rows.values().map(|row| row.variants).sum::<usize>());
    Ok(failed == 0)
}
