//! A folder for each test, and the real program run in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use assert_cmd::Command;
use flate2::read::GzDecoder;
use serde_json::Value;
use tempfile::TempDir;

/// Flags that `align` needs besides a model.
pub const TRAIN: [&str; 4] = ["--train", "flagged.jsonl", "--output-dir", "out"];

/// Flags of a short evaluation.
pub const SHORT: [&str; 6] = ["--max-new-tokens", "8", "--seed", "3", "--max-samples", "6"];

/// Flags of a small run that goes through all phases.
pub const SMALL: [&str; 10] = [
    "--max-samples",
    "10",
    "--max-steps",
    "2",
    "--num-samples",
    "2",
    "--max-new-tokens",
    "8",
    "--train",
    "flagged.jsonl",
];

/// A path in the repository.
pub fn of_repository(path: &str) -> PathBuf {
    // With its drive: under Wine the folder is on another one than the temporary folders.
    std::path::absolute(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// Whether this is Wine, which passes no variables to Vulkan's loader, whose symbolic links lead nowhere, and
/// where no process can send Ctrl-Break to another.
pub fn is_wine() -> bool {
    let wine = std::env::var_os("WINELOADER").is_some();
    if wine {
        eprintln!("Wine: part of this test is left out");
    }
    wine
}

pub fn assets() -> PathBuf {
    of_repository("assets/tiny")
}

/// A folder to work in: `flagged.jsonl` and a copy of the built-in model in `model/`.
pub struct Room(pub TempDir);

impl Room {
    pub fn new() -> Self {
        let room = Self(tempfile::tempdir().unwrap());
        fs::create_dir(room.path("model")).unwrap();
        for name in [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            fs::copy(assets().join(name), room.path("model").join(name)).unwrap();
        }
        let packed = fs::File::open(assets().join("negatives.jsonl.gz")).unwrap();
        let text = std::io::read_to_string(GzDecoder::new(packed)).unwrap();
        let lines: Vec<&str> = text.lines().take(20).collect();
        room.write("flagged.jsonl", lines.join("\n"));
        room
    }

    /// A room with pairs of answers of the built-in model too: 60 in `train.jsonl`, 12 in `held.jsonl`.
    pub fn with_pairs() -> Self {
        let room = Self::new();
        let packed = fs::File::open(assets().join("heldout.jsonl.gz")).unwrap();
        let text = std::io::read_to_string(GzDecoder::new(packed)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        room.write("train.jsonl", lines[..60].join("\n"));
        room.write("held.jsonl", lines[60..72].join("\n"));
        room
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The objects of a JSONL file.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Replaces a piece of a text file.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from}");
        self.write(name, text.replace(from, to));
    }

    /// Every file with its size, and every folder.
    pub fn listing(&self) -> BTreeMap<PathBuf, Option<u64>> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, Option<u64>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let (path, data) = entry.map(|e| (e.path(), e.metadata().unwrap())).unwrap();
                if data.is_dir() {
                    walk(&path, found);
                }
                found.insert(path, data.is_file().then_some(data.len()));
            }
        }
        let mut found = BTreeMap::new();
        walk(self.0.path(), &mut found);
        found
    }

    pub fn command(&self) -> Command {
        Command::from_std(self.process())
    }

    /// Like [`Room::command`], as a process that a test can watch while it runs, and [`interrupt`].
    pub fn process(&self) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_aweigh"));
        #[cfg(windows)]
        interrupts::prepare(&mut command);
        // Mesa's Wayland layer complains on stderr where there is no such folder.
        command.current_dir(self.0.path()).env_remove("RUST_LOG").env("XDG_RUNTIME_DIR", self.0.path());
        // A cache of its own, with what is measured of a device at its first product.
        let cache = self.path("cache");
        if !cache.exists() {
            let folder = cache.join("operands");
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in operands() {
                fs::write(folder.join(name), text).unwrap();
            }
        }
        command.env("AWEIGH_CACHE_DIR", cache);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// Runs, expects success, and returns the one JSON object on stdout.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        assert_eq!(stdout.lines().count(), 1, "{arguments:?}: {stdout}");
        serde_json::from_str(&stdout).unwrap()
    }

    /// A command line that must be refused with a message that has all of `parts`; no file may change.
    pub fn refuses(&self, arguments: &[&str], parts: &[&str]) {
        self.refused(self.command().args(arguments), &[parts, &["what to do: "]].concat());
    }

    pub fn refused(&self, command: &mut Command, parts: &[&str]) {
        let before = self.listing();
        let output = command.output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {stderr}");
        if format!("{command:?}").contains("\"--json\"") {
            let error: Value = serde_json::from_str(&stdout).unwrap();
            assert_eq!(error["error"]["exit_code"], 2, "{command:?}: {stdout}");
            let message = with_slashes(error["error"]["message"].as_str().unwrap().to_owned());
            assert!(stderr.contains(&message), "{command:?}: {stdout}");
        } else {
            assert_eq!(stdout, "", "{command:?}");
        }
        assert_eq!(
            stderr.lines().filter(|line| line.starts_with("error: ")).count(),
            1,
            "{command:?}: one message: {stderr}"
        );
        assert!(!stderr.contains("panicked"), "{stderr}");
        // The lines before the error are notes on what runs where.
        let message = &stderr[stderr.find("error: ").unwrap()..];
        assert!(message.lines().count() <= 3, "{command:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{command:?}: no {part:?} in: {message}");
        }
        assert_eq!(self.listing(), before, "{command:?}: the files have changed");
    }

    /// Like [`Room::refuses`], for `align` with a model and more flags.
    pub fn align_refuses(&self, model: &str, flags: &[&str], parts: &[&str]) {
        self.refuses(&[&["align", "--model", model], &TRAIN[..], flags].concat(), parts);
    }
}

/// Sends a signal, INT (Ctrl-C) or TERM, to a process of [`Room::process`]. On Windows it is always
/// Ctrl-Break, which can be sent to one process.
pub fn interrupt(child: &std::process::Child, signal: &str) {
    #[cfg(windows)]
    let sent = interrupts::send(child);
    #[cfg(not(windows))]
    let sent = {
        let mut kill = std::process::Command::new("kill");
        kill.args(["-s", signal, &child.id().to_string()]).status().unwrap().success()
    };
    assert!(sent, "{signal} was not sent");
}

#[cfg(windows)]
#[allow(unsafe_code)]
mod interrupts {
    use std::os::windows::process::CommandExt;
    use std::process::{Child, Command};

    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    const CTRL_BREAK_EVENT: u32 = 1;

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn AllocConsole() -> i32;
        fn GenerateConsoleCtrlEvent(event: u32, group: u32) -> i32;
    }

    /// A group of its own, so that the event goes to this process alone; and a console, without which there
    /// are no such events.
    pub fn prepare(command: &mut Command) {
        // SAFETY: it only fails where there is a console.
        unsafe { AllocConsole() };
        command.creation_flags(CREATE_NEW_PROCESS_GROUP);
    }

    pub fn send(child: &Child) -> bool {
        // SAFETY: a call with two numbers.
        unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, child.id()) != 0 }
    }
}

/// What a process wrote to stdout and stderr; paths in stderr with `/`, also on Windows.
pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), with_slashes(text(&output.stderr)))
}

fn with_slashes(text: String) -> String {
    if cfg!(windows) { text.replace('\\', "/") } else { text }
}

/// The files that say how this machine's adapters read operands fastest, measured once for all rooms.
fn operands() -> &'static [(String, Vec<u8>)] {
    static OPERANDS: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    OPERANDS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_aweigh"));
        command.args(["bench", "matmul", "--size", "16", "--runs", "1"]).env_remove("RUST_LOG");
        let output = command.env("AWEIGH_CACHE_DIR", folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", texts(&output).1);
        let Ok(entries) = fs::read_dir(folder.path().join("operands")) else { return Vec::new() };
        let paths = entries.map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        paths.map(|path| (name(&path), fs::read(&path).unwrap())).collect()
    })
}
