//! `fxc DLL FOLDER [checked]`: compiles each HLSL file of FOLDER with Microsoft's FXC, as wgpu does where
//! there is no DXC, and prints a table; with `checked` as in a debug build. A program for Windows, or for
//! Wine; `cargo xtask fxc` runs it.

use std::process::ExitCode;

#[cfg(windows)]
#[path = "../table.rs"]
mod table;

#[cfg(windows)]
fn main() -> ExitCode {
    table::main("fxc", |library, checked| {
        let flags = if checked { windows::DEBUG } else { windows::STRICT };
        let function = windows::load(library)?;
        Ok(move |text: &str, name: &str| windows::compile(function, flags, text.as_bytes(), name))
    })
}

#[cfg(not(windows))]
fn main() -> ExitCode {
    eprintln!("fxc is a program for Windows: `cargo xtask fxc` builds it and runs it with Wine");
    ExitCode::from(2)
}

#[cfg(windows)]
mod windows {
    use std::ffi::{CString, c_char, c_void};

    /// `D3DCOMPILE_ENABLE_STRICTNESS`, the only flag that wgpu sets in a release build.
    pub const STRICT: u32 = 1 << 11;

    /// The flags of a debug build: also `D3DCOMPILE_DEBUG` and `D3DCOMPILE_SKIP_OPTIMIZATION`.
    pub const DEBUG: u32 = STRICT | 1 | 1 << 2;

    unsafe extern "system" {
        fn LoadLibraryA(name: *const c_char) -> *mut c_void;
        fn GetProcAddress(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    /// `ID3DBlob`, whose first field is the table of its functions.
    #[repr(C)]
    pub struct Blob {
        table: *const BlobTable,
    }

    #[repr(C)]
    pub struct BlobTable {
        query_interface: *const c_void,
        add_ref: *const c_void,
        release: unsafe extern "system" fn(*mut Blob) -> u32,
        pointer: unsafe extern "system" fn(*mut Blob) -> *const u8,
        size: unsafe extern "system" fn(*mut Blob) -> usize,
    }

    pub type D3DCompile = unsafe extern "system" fn(
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

    pub fn load(library: &str) -> Result<D3DCompile, String> {
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
    pub fn compile(function: D3DCompile, flags: u32, source: &[u8], name: &str) -> Result<usize, String> {
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
                flags,
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
}
