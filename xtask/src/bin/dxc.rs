//! `dxc DLL FOLDER [checked]`: compiles each HLSL file of FOLDER with Microsoft's DXC for shader model 6.2,
//! with wgpu's flags, and prints a table; with `checked` as in a debug build. A program for Windows, or for
//! Wine; `cargo xtask dxc` runs it.

use std::process::ExitCode;

#[cfg(windows)]
#[path = "../table.rs"]
mod table;

#[cfg(windows)]
fn main() -> ExitCode {
    table::main("dxc", |library, checked| {
        let create = direct3d::load(library)?;
        Ok(move |text: &str, _: &str| direct3d::compile(create, checked, text))
    })
}

#[cfg(not(windows))]
fn main() -> ExitCode {
    eprintln!("dxc is a program for Windows: `cargo xtask dxc` builds it and runs it with Wine");
    ExitCode::from(2)
}

#[cfg(windows)]
mod direct3d {
    use windows::Win32::Graphics::Direct3D::Dxc::{
        CLSID_DxcCompiler, DXC_CP_UTF8, DXC_OUT_ERRORS, DXC_OUT_OBJECT, DxcBuffer, IDxcBlob, IDxcBlobUtf8,
        IDxcCompiler3, IDxcResult,
    };
    use windows::Win32::System::LibraryLoader::{GetProcAddress, LoadLibraryW};
    use windows::core::{GUID, HRESULT, HSTRING, Interface, PCWSTR, s};

    /// wgpu's flags; in a debug build it adds [`DEBUG`].
    const FLAGS: [&str; 8] =
        ["-E", "main", "-T", "cs_6_2", "-HV", "2018", "-no-warnings", "-enable-16bit-types"];

    const DEBUG: [&str; 2] = ["-Zi", "-Od"];

    /// The function that makes DXC's objects.
    type Create = unsafe extern "system" fn(*const GUID, *const GUID, *mut *mut core::ffi::c_void) -> HRESULT;

    pub fn load(library: &str) -> Result<Create, String> {
        let told = |error: windows::core::Error| format!("{library}: {error}");
        // SAFETY: the name is a path. A library that is loaded stays loaded.
        let handle = unsafe { LoadLibraryW(&HSTRING::from(library)) }.map_err(told)?;
        // SAFETY: the handle is valid.
        let address = unsafe { GetProcAddress(handle, s!("DxcCreateInstance")) };
        let address =
            address.ok_or_else(|| format!("{library}: expected DXC, found no DxcCreateInstance"))?;
        // SAFETY: this is the function's documented signature.
        Ok(unsafe { std::mem::transmute::<unsafe extern "system" fn() -> isize, Create>(address) })
    }

    /// Compiles one text. Returns the size of the compiled shader, or the compiler's messages.
    pub fn compile(create: Create, checked: bool, text: &str) -> Result<usize, String> {
        compiled(create, checked, text).unwrap_or_else(|error| Err(error.to_string()))
    }

    fn compiled(create: Create, checked: bool, text: &str) -> windows::core::Result<Result<usize, String>> {
        let flags: Vec<HSTRING> =
            FLAGS.into_iter().chain(DEBUG.into_iter().filter(|_| checked)).map(HSTRING::from).collect();
        let flags: Vec<PCWSTR> = flags.iter().map(|flag| PCWSTR(flag.as_ptr())).collect();
        let source = DxcBuffer { Ptr: text.as_ptr().cast(), Size: text.len(), Encoding: DXC_CP_UTF8.0 };
        let mut compiler: Option<IDxcCompiler3> = None;
        // SAFETY: the pointers are valid for the calls, and the objects are of the asked types.
        unsafe {
            create(&CLSID_DxcCompiler, &IDxcCompiler3::IID, std::ptr::from_mut(&mut compiler).cast()).ok()?;
            let Some(compiler) = compiler else { return Ok(Err("no compiler".into())) };
            let result: IDxcResult = compiler.Compile(&source, Some(&flags), None)?;
            if result.GetStatus()?.is_err() {
                let mut messages: Option<IDxcBlobUtf8> = None;
                result.GetOutput(DXC_OUT_ERRORS, &mut None, &mut messages)?;
                let Some(messages) = messages else { return Ok(Err("no message".into())) };
                let (start, length) = (messages.GetStringPointer().0, messages.GetStringLength());
                let bytes = std::slice::from_raw_parts(start, length);
                return Ok(Err(String::from_utf8_lossy(bytes).into_owned()));
            }
            let mut object: Option<IDxcBlob> = None;
            result.GetOutput(DXC_OUT_OBJECT, &mut None, &mut object)?;
            Ok(Ok(object.map_or(0, |object| object.GetBufferSize())))
        }
    }
}
