//! The error type. A message gives the place, what was expected, what was found and what to do.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether messages name settings as flags.
static AS_FLAGS: AtomicBool = AtomicBool::new(false);

/// Makes messages name settings as the program's flags (`--chat-template`). By default they have their names
/// in a settings file (`chat_template`).
pub fn name_settings_as_flags() {
    AS_FLAGS.store(true, Ordering::Relaxed);
}

/// The name of the setting `key` in messages. A key that more than one section has comes with its section.
pub(crate) fn setting(key: &str) -> String {
    match AS_FLAGS.load(Ordering::Relaxed) {
        true if key == "gpu.adapter" => "--gpu".into(),
        true if key == "gpu.backend" => "--backend".into(),
        true if key == "retain.form" => "--retain".into(),
        true if key == "anchors.choice" => "--anchors".into(),
        true if key == "negatives.choice" => "--negatives".into(),
        true => format!("--{}", key.replace(['_', '.'], "-")),
        false => key.to_owned(),
    }
}

/// The setting `key` with its value in messages: `--max-num-seqs 8` and `--offload`, or `max_num_seqs = 8`
/// and `offload = true`. Text is quoted as in a settings file.
pub(crate) fn setting_to(key: &str, value: impl Into<toml::Value>) -> String {
    let (name, value) = (setting(key), value.into());
    match (AS_FLAGS.load(Ordering::Relaxed), &value) {
        (true, toml::Value::Boolean(true)) => name,
        (true, toml::Value::String(text)) => format!("{name} {text}"),
        (true, value) => format!("{name} {value}"),
        (false, value) => format!("{name} = {value}"),
    }
}

/// Everything that can go wrong in Aweigh.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Invalid input from the user: a file, a line, a flag or a tensor.
    #[error("{place}: expected {expected}, found {found}\n  what to do: {fix}")]
    Input {
        /// The file, line, tensor or setting at fault.
        place: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do about it.
        fix: String,
    },
    /// Reading or writing failed in the operating system.
    #[error("{}: cannot {action}: {source}{}", path.display(), io_fix(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The verb, as in "cannot read".
        action: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A kernel was called with a tensor of the wrong length: a bug in the caller.
    #[error("{kernel}: {tensor}: expected {expected} elements, found {found}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// The tensor's name in the kernel's documentation.
        tensor: &'static str,
        /// The element count that its shape requires.
        expected: usize,
        /// Its actual element count.
        found: usize,
    },
    /// No usable GPU or software adapter.
    #[error("no usable GPU adapter: {found}\n  what to do: {fix}")]
    NoAdapter {
        /// What was looked for and what was found.
        found: String,
        /// How to get one.
        fix: String,
    },
    /// The GPU, its driver or wgpu reported a failure.
    #[error("GPU failure while {doing}: {message}")]
    Gpu {
        /// What the engine was doing.
        doing: String,
        /// The message that was reported.
        message: String,
    },
    /// The GPU is gone: reset by its driver or by the operating system's watchdog, or unplugged.
    #[error("the GPU was lost while {doing}: {message}")]
    DeviceLost {
        /// What the engine was doing.
        doing: String,
        /// The message that was reported.
        message: String,
    },
    /// A buffer did not fit into the GPU's memory.
    #[error(
        "out of GPU memory: cannot allocate {bytes} bytes for \"{label}\" ({purpose}); {held} bytes are \
         already allocated\n  what to do: close other programs that use the GPU; `aweigh plan` shows which \
         settings take less memory"
    )]
    OutOfMemory {
        /// The buffer's name.
        label: String,
        /// What the buffer is for.
        purpose: String,
        /// The buffer's size, in bytes.
        bytes: u64,
        /// Bytes of the buffers allocated so far.
        held: u64,
    },
    /// `aweigh eval` measured more than a limit allows.
    #[error("above the limit: {found}")]
    AboveLimit {
        /// The figures that are too large, in words.
        found: String,
    },
    /// `aweigh selftest` found results that are wrong.
    #[error(
        "{failed} of {total} checks failed on {adapter}: do not train on it\n  what to do: update the GPU's \
         driver, or choose another adapter with {} (`aweigh devices` lists them)",
        setting("gpu.adapter")
    )]
    SelfTest {
        /// Checks that failed.
        failed: usize,
        /// All checks.
        total: usize,
        /// The adapter's name and driver.
        adapter: String,
    },
    /// `--paranoid` found a kernel's result that differs from the kernel's reference.
    #[error(
        "a wrong result on {adapter}: {kernel}: {what}\n  what to do: do not trust what this run has \
         computed so far, including its checkpoints. Run `aweigh selftest`; update the GPU's driver, or \
         choose another adapter with {} (`aweigh devices` lists them)",
        setting("gpu.adapter")
    )]
    WrongResult {
        /// The kernel's variant.
        kernel: String,
        /// The wrong element, the expected value and the value found.
        what: String,
        /// The adapter's name and driver.
        adapter: String,
    },
    /// A bug in Aweigh.
    #[error(
        "a bug in Aweigh while {doing}: {message}\n  what to do: report it, with the command and this \
         message"
    )]
    Internal {
        /// What the engine was doing.
        doing: &'static str,
        /// What went wrong.
        message: String,
    },
    /// The user interrupted the run.
    #[error("interrupted")]
    Interrupted,
}

/// The message's "what to do" line for an error of the operating system; empty if there is no advice.
fn io_fix(error: &std::io::Error) -> String {
    use std::io::ErrorKind::*;
    let fix = match error.kind() {
        PermissionDenied => "choose a location that you may read and write, or change its permissions",
        ReadOnlyFilesystem => "choose a location on a file system that is not read-only",
        StorageFull | QuotaExceeded => "free some space there, or choose another location",
        NotFound => "check the path; relative paths start at the current folder",
        IsADirectory => "give a file: this is a folder",
        // The second is what Windows says.
        NotADirectory | AlreadyExists => "check the path: a part of it is a file instead of a folder",
        _ => return String::new(),
    };
    format!("\n  what to do: {fix}")
}

/// `std::result::Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Input`] from anything printable.
    pub fn input(
        place: impl std::fmt::Display,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
        fix: impl std::fmt::Display,
    ) -> Self {
        Self::Input {
            place: place.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
            fix: fix.to_string(),
        }
    }

    /// The [`Error::Input`] of a model that gives NaN or infinities for `what`.
    pub fn not_finite(place: impl std::fmt::Display, what: &str) -> Self {
        let fix = "run `aweigh selftest` to check the GPU; if it passes, the model's numbers overflow: use \
                   another checkpoint or adapter, or one that was trained at a lower learning rate";
        Self::input(place, format!("finite {what}"), "NaN or infinity", fix)
    }

    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), action, source }
    }

    /// The [`Error::NoAdapter`] of a machine without any adapter. `limit` is what limited the graphics APIs
    /// that were asked, if anything did; `refused` are adapters that cannot be used, a name and a reason
    /// each.
    pub(crate) fn no_gpu(limit: Option<String>, refused: &[String]) -> Self {
        let with = limit.as_ref().map(|limit| format!(" with {limit}")).unwrap_or_default();
        let but = match refused {
            [] => String::new(),
            _ => format!(", except for those that cannot be used: {}", refused.join("; ")),
        };
        let install = if cfg!(target_arch = "wasm32") {
            "update the browser or the GPU's driver, or use the program, which runs on more GPUs"
        } else if cfg!(target_os = "linux") && !refused.is_empty() {
            "install a newer driver (of Mesa 22.3 or newer), or one for OpenGL (on Debian and Ubuntu: \
             apt-get install libegl1 libgl1-mesa-dri)"
        } else if cfg!(windows) {
            "install the driver of the GPU's maker"
        } else if cfg!(target_os = "macos") {
            "use a machine with Metal"
        } else {
            "install a Vulkan driver (on Debian and Ubuntu: apt-get install mesa-vulkan-drivers, which also \
             installs a software adapter)"
        };
        let fix = match limit {
            Some(limit) => format!("leave out {limit}, or {install}"),
            None => install.into(),
        };
        Self::NoAdapter { found: format!("none found{with}{but}"), fix }
    }

    /// The error as JSON, for programs: its `message` and `exit_code`; for wrong input also `place`,
    /// `expected`, `found` and `fix`.
    pub fn to_json(&self) -> serde_json::Value {
        let mut error = serde_json::json!({ "message": self.to_string(), "exit_code": self.exit_code() });
        if let Self::Input { place, expected, found, fix } = self {
            let parts = [("place", place), ("expected", expected), ("found", found), ("fix", fix)];
            parts.into_iter().for_each(|(name, text)| error[name] = text.as_str().into());
        }
        serde_json::json!({ "error": error })
    }

    /// The process's exit code: 2 for errors that the user can fix, 130 for an interrupt, 1 for all others.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } | Self::Io { .. } | Self::NoAdapter { .. } => 2,
            Self::Interrupted => 130,
            Self::Shape { .. }
            | Self::Internal { .. }
            | Self::Gpu { .. }
            | Self::DeviceLost { .. }
            | Self::OutOfMemory { .. }
            | Self::SelfTest { .. }
            | Self::AboveLimit { .. }
            | Self::WrongResult { .. } => 1,
        }
    }
}
