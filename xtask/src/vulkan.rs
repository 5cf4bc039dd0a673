//! Installs a software Vulkan driver if there is no driver that can work.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools::{is_on_path, path_list};

/// The Vulkan loader and Mesa's drivers, which include llvmpipe.
const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

/// Installs a software Vulkan driver on Linux if there is no driver that can work.
pub fn ensure_vulkan() -> Result<(), String> {
    let Some(missing) = missing_vulkan().filter(|_| cfg!(target_os = "linux")) else { return Ok(()) };
    eprintln!("xtask: {missing}; installing {}", PACKAGES.join(" and "));
    install(&PACKAGES).map_err(|reason| {
        format!(
            "{missing}, and installing one failed: {reason}\n  what to do: install a Vulkan driver by hand; \
             for a machine without a GPU, Mesa's llvmpipe (Debian, Ubuntu: {}; Fedora: mesa-vulkan-drivers; \
             Arch: vulkan-swrast)",
            PACKAGES.join(" ")
        )
    })?;
    match missing_vulkan() {
        None => Ok(()),
        Some(still) => Err(format!("{} are installed, but {still}", PACKAGES.join(" and "))),
    }
}

/// Why there can be no adapter here; `None` if there can be one.
fn missing_vulkan() -> Option<String> {
    if !has_loader() {
        return Some("there is no Vulkan loader (libvulkan.so.1)".into());
    }
    let drivers = drivers();
    if drivers.is_empty() {
        return Some("there is no Vulkan driver".into());
    }
    // Packages also install drivers for GPUs that are not present: without a GPU, only a software one works.
    (!has_gpu() && !drivers.iter().any(|driver| is_software(driver)))
        .then(|| "there is no GPU, and no software Vulkan driver".into())
}

/// Whether the dynamic linker can find the Vulkan loader.
fn has_loader() -> bool {
    let name = "libvulkan.so.1";
    let cached = |program: &str| {
        let output = Command::new(program).arg("-p").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(name))
    };
    let mut folders: Vec<PathBuf> = path_list("LD_LIBRARY_PATH");
    folders.extend(["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib"].map(PathBuf::from));
    folders.push(format!("/usr/lib/{}-linux-gnu", env::consts::ARCH).into());
    cached("ldconfig") || cached("/sbin/ldconfig") || folders.iter().any(|folder| folder.join(name).exists())
}

/// The driver manifests that the loader reads.
fn drivers() -> Vec<PathBuf> {
    let named: Vec<PathBuf> =
        ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().flat_map(|name| path_list(name)).collect();
    // Either variable replaces the default search. An entry is a file or a folder.
    let places = if named.is_empty() { default_places() } else { named };
    places.iter().flat_map(|place| manifests(place)).collect()
}

fn default_places() -> Vec<PathBuf> {
    let mut bases =
        vec![PathBuf::from("/etc"), "/usr/local/etc".into(), "/usr/share".into(), "/usr/local/share".into()];
    bases.extend(path_list("XDG_DATA_DIRS"));
    bases.extend(env::var_os("XDG_DATA_HOME").map(PathBuf::from));
    if let Some(home) = env::var_os("HOME").map(PathBuf::from) {
        bases.extend([home.join(".local/share"), home.join(".config")]);
    }
    bases.into_iter().map(|base| base.join("vulkan/icd.d")).collect()
}

fn manifests(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.into()];
    }
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect()
}

/// llvmpipe's ("lvp") or SwiftShader's manifest.
fn is_software(driver: &Path) -> bool {
    let name = driver.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    ["lvp", "swiftshader", "llvmpipe"].iter().any(|part| name.contains(part))
}

/// Whether the system shows a device that a hardware driver could open (the last is WSL's).
fn has_gpu() -> bool {
    let render = fs::read_dir("/dev/dri").into_iter().flatten().flatten();
    render.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("renderD"))
        || ["/dev/nvidia0", "/dev/dxg"].iter().any(|device| Path::new(device).exists())
}

/// `apt-get install`, through sudo if the user is not root.
fn install(packages: &[&str]) -> Result<(), String> {
    if !is_on_path("apt-get") {
        return Err("this system has no apt-get".into());
    }
    // If the list of packages cannot be updated, the old list is often new enough: this failure alone is no
    // reason to give up.
    if let Err(reason) = apt_get(&["update", "--quiet"]) {
        eprintln!("xtask: {reason}; going on");
    }
    let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    arguments.extend(packages);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let mut command = if is_root() {
        Command::new("apt-get")
    } else if is_on_path("sudo") {
        let mut command = Command::new("sudo");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command
    } else {
        return Err("it needs root, and there is no sudo".into());
    };
    let shown = format!("apt-get {}", arguments.join(" "));
    let status = command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` ended with {status}")),
        Err(error) => Err(format!("`{shown}` did not start: {error}")),
    }
}

/// From `id -u`: the standard library has no function for it.
fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
