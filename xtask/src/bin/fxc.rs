//! `fxc DLL FOLDER`: compiles each HLSL file of FOLDER with Microsoft's FXC, as wgpu does where there is no
//! DXC, and prints a table. A program for Windows, or for Wine; `cargo xtask fxc` runs it.

use std::process::ExitCode;

#[cfg(windows)]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, folder] = &arguments[..] else {
        eprintln!("usage: fxc DLL FOLDER");
        return ExitCode::from(2);
    };
    match windows::compile_all(library, folder) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("fxc: {message}");
            ExitCode::from(2)
        }
    }
}

#[cfg(not(windows))]
fn main() -> ExitCode {
    eprintln!("fxc is a program for Windows: `cargo xtask fxc` builds it and runs it with Wine");
    ExitCode::from(2)
}

#[cfg(windows)]
mod windows {
    use std::collections::BTreeMap;
    use std::ffi::{CString, c_char, c_void};
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    /// `D3DCOMPILE_ENABLE_STRICTNESS`, the only flag that wgpu sets in a release build.
    const STRICT: u32 = 1 << 11;

    unsafe extern "system" {
        fn LoadLibraryA(name: *const c_char) -> *mut c_void;
        fn GetProcAddress(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    /// `ID3DBlob`, whose first field is the table of its functions.
    #[repr(C)]
    struct Blob {
        table: *const BlobTable,
    }

    #[repr(C)]
    struct BlobTable {
        query_interface: *const c_void,
        add_ref: *const c_void,
        release: unsafe extern "system" fn(*mut Blob) -> u32,
        pointer: unsafe extern "system" fn(*mut Blob) -> *const u8,
        size: unsafe extern "system" fn(*mut Blob) -> usize,
    }

    type D3DCompile = unsafe extern "system" fn(
        source: *const u8,
        length: usize,
        name: *const c_char,
        defines: *const c_void,
        include: *const c_void,
        entry: *const c_char,
        target: *const c_char,
        flags: u32,
        effect_flags: u32,
        code: *mut *mut Blob,
        messages: *mut *mut Blob,
    ) -> i32;

    fn text(text: &str) -> Result<CString, String> {
        CString::new(text).map_err(|error| error.to_string())
    }

    fn load(library: &str) -> Result<D3DCompile, String> {
        let (name, function) = (text(library)?, text("D3DCompile")?);
        // SAFETY: both names end with a zero. A library that is loaded stays loaded.
        let address = unsafe {
            let library = LoadLibraryA(name.as_ptr());
            if library.is_null() { library } else { GetProcAddress(library, function.as_ptr()) }
        };
        match address.is_null() {
            true => Err(format!("{library}: expected d3dcompiler_47.dll with D3DCompile")),
            // SAFETY: this is the function's documented signature.
            false => Ok(unsafe { std::mem::transmute::<*mut c_void, D3DCompile>(address) }),
        }
    }

    /// The bytes of a blob, which is released.
    fn take(blob: *mut Blob) -> Vec<u8> {
        if blob.is_null() {
            return Vec::new();
        }
        // SAFETY: a blob that D3DCompile returned, used once.
        unsafe {
            let table = &*(*blob).table;
            let bytes = std::slice::from_raw_parts((table.pointer)(blob), (table.size)(blob)).to_vec();
            (table.release)(blob);
            bytes
        }
    }

    /// Compiles one text for shader model 5.1. The error is the compiler's.
    fn compile(function: D3DCompile, source: &[u8], name: &str) -> Result<usize, String> {
        let (name, entry, target) = (text(name)?, text("main")?, text("cs_5_1")?);
        let (mut code, mut messages) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the pointers are valid for the call, and null where null is allowed.
        let result = unsafe {
            function(
                source.as_ptr(),
                source.len(),
                name.as_ptr(),
                std::ptr::null(),
                std::ptr::null(),
                entry.as_ptr(),
                target.as_ptr(),
                STRICT,
                0,
                &mut code,
                &mut messages,
            )
        };
        let (code, messages) = (take(code), take(messages));
        match result < 0 {
            true => Err(format!("{result:#x}\n{}", String::from_utf8_lossy(&messages))),
            false => Ok(code.len()),
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

    /// Compiles all files; `false` if one failed.
    pub fn compile_all(library: &str, folder: &str) -> Result<bool, String> {
        let function = load(library)?;
        let entries = fs::read_dir(folder).map_err(|error| format!("{folder}: {error}"))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|end| end == "hlsl"));
        paths.sort();
        let (next, rows) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<String, Row>::new()));
        let work = || {
            while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let source = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
                let begun = Instant::now();
                let result = compile(function, &source, &name);
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
}
