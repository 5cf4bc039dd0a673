//! The compilers of other systems, on all translated kernels: Microsoft's for DX12 (with Wine where this is
//! not Windows), clang in place of Apple's for Metal, and Chromium's for browsers.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::python::{program, zig};
use crate::tools::{cargo, done, npm, run};
use crate::windows::{TARGET, wine};

/// Chromium's WebGPU for node, with Tint, its compiler of WGSL. Its folder for Windows also has FXC and DXC.
const WEBGPU: &str = "webgpu@0.6.2";

/// What building programs for Windows needs.
const CROSS: &str =
    "rustup target add x86_64-pc-windows-gnu; on Debian also apt-get install gcc-mingw-w64-x86-64";

/// Vector types of Metal, whose constructors clang has to be helped with.
const VECTORS: [&str; 15] = [
    "float2", "float3", "float4", "half2", "half3", "half4", "int2", "int3", "int4", "uint2", "uint3",
    "uint4", "bool2", "bool3", "bool4",
];

/// Has the test `name` of tests/shaders.rs write its translations, and returns their folder.
fn translations(name: &str, compiler: &str) -> Result<PathBuf, String> {
    let folder = env::current_dir().map_err(|error| error.to_string())?.join("target/translated");
    let _ = fs::remove_dir_all(&folder);
    let mut write = cargo();
    write.args(["test", "--package", "aweigh", "--test", "shaders", name]);
    done(write.env("AWEIGH_TRANSLATED", &folder).env("AWEIGH_HLSL_FOR", compiler))?;
    Ok(folder)
}

/// The library of Microsoft's that the first argument names, or else `name` of the package for node.
pub fn library(name: &str, argument: Option<&String>) -> Result<PathBuf, String> {
    match argument {
        Some(path) => fs::canonicalize(path).map_err(|error| {
            format!("{path}: {error}\n  what to do: give the path of {name}, or none to download it with npm")
        }),
        None => Ok(npm(WEBGPU, "webgpu")?.join("dist/win32-x64").join(name)),
    }
}

/// Compiles all kernels with FXC (those that need no feature beyond shader model 5.1).
pub fn fxc(arguments: &[String]) -> Result<ExitCode, String> {
    microsoft("fxc", "d3dcompiler_47.dll", arguments)
}

/// Compiles all kernels with DXC.
pub fn dxc(arguments: &[String]) -> Result<ExitCode, String> {
    microsoft("dxc", "dxcompiler.dll", arguments)
}

/// Compiles all kernels with the program `compiler` and a library, with Wine where this is not Windows.
/// `--checked` compiles them as in a debug build.
fn microsoft(compiler: &str, name: &str, arguments: &[String]) -> Result<ExitCode, String> {
    let (flags, paths): (Vec<_>, Vec<_>) = arguments.iter().partition(|argument| argument.starts_with("--"));
    let checked = match flags[..] {
        [] => None,
        [flag] if flag == "--checked" => Some("checked"),
        _ => return Err(format!("{compiler} has one flag, --checked")),
    };
    let library = library(name, paths.first().copied())?;
    let folder = translations(
        "variants_translate_to_hlsl",
        format!("{compiler} {}", checked.unwrap_or_default()).trim_end(),
    )?;
    let target = (!cfg!(windows)).then_some(TARGET);
    let mut build = cargo();
    build.args(["build", "--package", "xtask", "--bin", compiler]);
    build.args(target.map(|target| format!("--target={target}")));
    done(&mut build).map_err(|error| format!("{error}\n  what to do: {CROSS}"))?;
    let program = Path::new("target").join(target.unwrap_or_default()).join(format!("debug/{compiler}.exe"));
    let program = fs::canonicalize(&program).map_err(|error| format!("{}: {error}", program.display()))?;
    let mut command = if target.is_some() { wine() } else { Command::new(&program) };
    // Wine would take its own compiler, which cannot compile these texts.
    command.env("WINEDLLOVERRIDES", "d3dcompiler_47=n");
    command.args(target.map(|_| &program)).arg(library).arg(folder).args(checked);
    Ok(run(&mut command))
}

/// Checks the kernels' Metal with clang and declarations of Apple's library (xtask/metal/shim.hpp): names,
/// types, address spaces. Apple's compiler runs on macOS alone.
pub fn metal() -> Result<(), String> {
    let folder = translations("variants_translate_to_metal", "")?;
    let told = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).map_err(told)?.flatten().map(|e| e.path()).collect();
    paths.sort();
    // One file, so that clang starts once: each kernel in a namespace of its own.
    let mut all = String::new();
    for (number, path) in paths.iter().enumerate() {
        let text = fs::read_to_string(path).map_err(told)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        all += &format!("namespace kernel{number} {{\n#line 1 \"{name}\"\n");
        for line in text.lines().filter(|line| !line.starts_with("#include")) {
            all += &(with_constructors(line) + "\n");
        }
        all += "}\n";
    }
    let file = folder.join("all.cpp");
    fs::write(&file, all).map_err(told)?;
    let mut clang = Command::new(program(&zig(&[])?, "python"));
    clang.args(["-m", "ziglang", "clang", "-fsyntax-only", "-target", "x86_64-linux-gnu", "-x", "c++"]);
    clang.args(["-std=c++17", "-nostdinc", "-nostdinc++", "-w", "-ferror-limit=0"]);
    // Metal has no double.
    clang.args(["-cl-single-precision-constant", "-include", "xtask/metal/shim.hpp"]).arg(file);
    done(&mut clang)?;
    println!("{} kernels compile as Metal with clang", paths.len());
    Ok(())
}

/// A line of Metal with calls of `metal::make<T>` for vectors made by `T(...)` or a cast.
fn with_constructors(line: &str) -> String {
    let mut line = line.to_owned();
    for name in VECTORS {
        let cast = format!("metal::{name}>(");
        line = line.replace(&format!("static_cast<{cast}"), &format!("metal::make<{cast}"));
        let call = format!("{name}(");
        let mut from = 0;
        while let Some(at) = line[from..].find(&call).map(|at| from + at) {
            let start = if line[..at].ends_with("metal::") { at - "metal::".len() } else { at };
            let inside = line[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if inside {
                from = at + call.len();
                continue;
            }
            let made = format!("metal::make<metal::{name}>(");
            line.replace_range(start..at + call.len(), &made);
            from = start + made.len();
        }
    }
    line
}

/// Compiles the kernels' WGSL with Tint, as Chromium does, on a device of no hardware.
pub fn tint() -> Result<(), String> {
    let package = npm(WEBGPU, "webgpu")?;
    let folder = translations("variants_translate_to_wgsl", "")?;
    done(Command::new("node").arg("xtask/tint.mjs").arg(package).arg(folder))
}

#[cfg(test)]
mod tests {
    use super::with_constructors;

    #[test]
    fn vectors_are_made_by_calls() {
        let made = |line| with_constructors(line);
        assert_eq!(made("a = metal::float4(b);"), "a = metal::make<metal::float4>(b);");
        let inner = "metal::make<metal::float2>(metal::make<metal::half2>(c))";
        assert_eq!(made("float2(static_cast<metal::half2>(c))"), inner);
        for same in ["metal::uint2 a = as_uint2(d);", "static_cast<float>(x) + metal::float2 {}"] {
            assert_eq!(made(same), same);
        }
    }
}
