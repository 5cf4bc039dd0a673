//! Runs that are cut off and resumed: killed, interrupted, with a damaged checkpoint, on a full disk, with a
//! lost GPU.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::room::{Room, interrupt, is_wine, texts};

/// A run that takes some seconds.
const RUN: [&str; 18] = [
    "align",
    "--model",
    "model",
    "--train",
    "flagged.jsonl",
    "--num-samples",
    "2",
    "--max-new-tokens",
    "8",
    "--safety-instruction=",
    "--lora-dropout",
    "0.1",
    "--learning-rate",
    "1e-3",
    "--eval-steps",
    "5",
    "--no-stop",
    "--output-dir",
];

/// A checkpoint after every step.
const SAVED: [&str; 2] = ["--save-steps", "1"];

/// The command line of a run of `steps` steps into `folder`.
fn line<'a>(folder: &'a str, steps: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&RUN[..], &[folder, "--max-steps", steps, "--quiet"], more].concat()
}

/// Runs `line`, expects success, and returns stderr.
fn succeed(room: &Room, line: &[&str]) -> String {
    let output = room.run(line);
    let (_, stderr) = texts(&output);
    assert!(output.status.success(), "{line:?}: {stderr}");
    stderr
}

/// A run's adapter, and its log lines without the speed.
fn result(room: &Room, folder: &str) -> (Vec<u8>, [Vec<Value>; 3]) {
    let lines = |name: &str| -> Vec<Value> {
        let text = fs::read_to_string(room.path(folder).join(name)).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines {
            line.as_object_mut().unwrap().remove("tokens_per_second");
        }
        lines
    };
    let adapter = fs::read(room.path(folder).join("adapter/adapter_model.safetensors")).unwrap();
    (adapter, ["metrics.jsonl", "samples.jsonl", "completions.jsonl"].map(lines))
}

/// Names in a folder; the time is left out of the names of event files.
fn names(folder: &Path) -> BTreeSet<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let short = |name: String| if name.starts_with("events.") { "events".into() } else { name };
    fs::read_dir(folder).unwrap().map(name).map(short).collect()
}

/// Both folders have the same files with the same content.
fn assert_same(room: &Room, folder: &str, whole: &str) {
    let (a, b) = (result(room, folder), result(room, whole));
    assert_eq!(a.1, b.1, "what was logged");
    assert!(a.0 == b.0, "the adapters differ");
    for inside in [".", "adapter"] {
        assert_eq!(names(&room.path(folder).join(inside)), names(&room.path(whole).join(inside)));
    }
}

fn spawn(room: &Room, line: &[&str]) -> Child {
    room.process().args(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The highest step with a complete checkpoint: one that has its manifest, which is written last.
fn last_checkpoint(folder: &Path) -> Option<usize> {
    let step = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let step = name.strip_prefix("checkpoint-")?.parse().ok()?;
        entry.path().join("checkpoint.json").exists().then_some(step)
    };
    fs::read_dir(folder).ok()?.flatten().filter_map(step).max()
}

/// `AWEIGH_KILLS` sets the number of kills, for a longer test.
#[test]
fn a_run_killed_again_and_again_ends_as_if_it_never_was() {
    let kills: usize = std::env::var("AWEIGH_KILLS").map_or(4, |n| n.parse().expect("a number"));
    let room = Room::new();
    let steps = (6 * kills).max(24).to_string();
    let started = Instant::now();
    succeed(&room, &line("whole", &steps, &SAVED));
    let length = started.elapsed();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let (mut killed, mut writing, mut finished, mut farthest) = (0, 0, 0, None);
    let cut = room.path("cut");
    while killed < kills {
        let mut child = if cut.join("config.toml").exists() {
            spawn(&room, &["align", "--resume", "cut"])
        } else {
            let _ = fs::remove_dir_all(&cut);
            spawn(&room, &line("cut", &steps, &SAVED))
        };
        // The run is killed at a random time, from before its first file to well into its steps.
        let share = random.random_range(0.05..1.5) * 3.0 / kills.max(3) as f64;
        std::thread::sleep(length.mul_f64(share).max(Duration::from_millis(300)));
        if child.try_wait().unwrap().is_some() {
            // The run ended before it was killed: it starts again.
            assert_same(&room, "cut", "whole");
            fs::remove_dir_all(&cut).unwrap();
            (finished, farthest) = (finished + 1, None);
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
        let last = last_checkpoint(&cut);
        // A run that has its result removes its checkpoints, and may be killed before its process ends.
        let done = cut.join("summary.json").exists();
        assert!(done || last >= farthest, "checkpoint {farthest:?} is gone, {last:?} is there");
        farthest = last;
        let half = |name: &String| name.starts_with(".aweigh-");
        writing += usize::from(cut.exists() && names(&cut).iter().any(half));
    }
    match cut.join("config.toml").exists() {
        true => succeed(&room, &["align", "--resume", "cut"]),
        false => succeed(&room, &line("cut", &steps, &[&SAVED[..], &["--overwrite"]].concat())),
    };
    assert_same(&room, "cut", "whole");
    eprintln!(
        "{killed} kills, {writing} of them in the middle of writing, {finished} runs that ended between them"
    );
}

#[test]
fn an_interrupt_keeps_the_step_and_the_run_goes_on() {
    if is_wine() {
        return;
    }
    let room = Room::new();
    succeed(&room, &line("whole", "40", &[]));
    for signal in ["INT", "TERM"] {
        // No checkpoint is due yet, by time.
        let mut child = room
            .process()
            .args(line("cut", "40", &[]).iter().filter(|flag| **flag != "--quiet"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let logged =
            || fs::read_to_string(room.path("cut/metrics.jsonl")).map_or(0, |text| text.lines().count());
        while logged() < 3 {
            assert!(child.try_wait().unwrap().is_none(), "{signal}: it ended by itself");
            std::thread::sleep(Duration::from_millis(10));
        }
        interrupt(&child, signal);
        let output = child.wait_with_output().unwrap();
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(130), "{signal}: {stderr}");
        let step = last_checkpoint(&room.path("cut")).expect("a checkpoint");
        assert!(
            stderr.contains(&format!("stopped after step {step}; resume with: aweigh align --resume cut")),
            "{stderr}"
        );
        assert!((1..40).contains(&step), "{step}");
        let said = succeed(&room, &["align", "--resume", "cut"]);
        assert!(said.contains(&format!("resuming after step {step}")), "{said}");
        assert_same(&room, "cut", "whole");
        fs::remove_dir_all(room.path("cut")).unwrap();
    }
}

/// The numbers of submits and allocations of a run, from its log.
fn counts(room: &Room, line: &[&str]) -> (u64, u64) {
    let output = room.command().args(line).env("RUST_LOG", "aweigh=info").output().unwrap();
    let (_, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    let numbers = |line: &str| {
        let (submits, rest) = line.split_once(" submits, ")?;
        let submits = submits.rsplit(' ').next()?.parse().ok()?;
        Some((submits, rest.strip_suffix(" allocations")?.parse().ok()?))
    };
    stderr.lines().find_map(numbers).expect("counts")
}

/// `most` numbers spread over 1 to `all`; `AWEIGH_FAULTS_AT` sets how many.
fn spread(all: u64, most: u64) -> impl Iterator<Item = u64> {
    let most: u64 = std::env::var("AWEIGH_FAULTS_AT").map_or(most, |n| n.parse().expect("a number")).min(all);
    (0..most).map(move |i| 1 + i * (all - 1) / (most - 1).max(1))
}

#[test]
fn a_lost_gpu_is_opened_again_and_the_result_is_the_same() {
    let room = Room::new();
    let (submits, _) = counts(&room, &line("whole", "12", &SAVED));
    let faulty = |faults: &str, line: &[&str]| {
        let _ = fs::remove_dir_all(room.path("cut"));
        let output = room.command().args(line).env("AWEIGH_FAULTS", faults).output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    // The work in a submit depends on measured time, so the next run may have fewer submits.
    for at in spread(submits * 3 / 4, 4) {
        let (code, stderr) = faulty(&format!("device-lost@{at}"), &line("cut", "12", &SAVED));
        assert_eq!(code, Some(0), "at submit {at}: {stderr}");
        assert!(stderr.contains("reopening it") && !stderr.contains("panicked"), "{stderr}");
        assert_same(&room, "cut", "whole");
    }
    // The driver drops a submit and says nothing: the next results that are read show it.
    for at in spread(submits * 3 / 4, 2).map(|at| at + 2) {
        let (code, stderr) = faulty(&format!("dropped@{at}"), &line("cut", "12", &SAVED));
        assert_eq!(code, Some(0), "at submit {at}: {stderr}");
        assert!(
            stderr.contains("did not run, and no error was reported") && stderr.contains("reopening"),
            "{stderr}"
        );
        assert_same(&room, "cut", "whole");
    }
    // The GPU is lost at the first submit each time: the run gives up, and can be resumed.
    let at = submits / 2;
    let often: Vec<String> = (at..at + 400).map(|at| format!("device-lost@{at}")).collect();
    let (code, stderr) = faulty(&often.join(","), &line("cut", "12", &SAVED));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("error: the GPU was lost while"), "{stderr}");
    succeed(&room, &["align", "--resume", "cut", "--quiet"]);
    assert_same(&room, "cut", "whole");
}

/// A run whose GPU is lost again and again while it samples anchors ends and keeps the anchors that it has.
/// It resumes with them.
#[test]
fn anchors_that_were_drawn_are_not_lost_with_the_gpu() {
    let room = Room::new();
    // One prompt at a time.
    let few = ["--max-num-seqs", "2"];
    let (submits, _) = counts(&room, &line("whole", "1", &few));
    let often: Vec<String> = (submits / 2..submits / 2 + 400).map(|at| format!("device-lost@{at}")).collect();
    let faulty = room.command().args(line("cut", "1", &few)).env("AWEIGH_FAULTS", often.join(",")).output();
    let faulty = faulty.unwrap();
    assert_eq!(faulty.status.code(), Some(1), "{}", texts(&faulty).1);
    let mut entries = fs::read_dir(room.path("cut")).unwrap().map(|entry| entry.unwrap().path());
    let folder = entries.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("anchors-"));
    let folder = folder.expect("the anchors that were drawn");
    let drawn: Value = serde_json::from_slice(&fs::read(folder.join("trainer_state.json")).unwrap()).unwrap();
    let pools = drawn["pools"].as_array().unwrap();
    let done = pools.iter().filter(|pool| pool["rounds"].as_u64() > Some(0)).count();
    assert!(done > 0 && done < pools.len(), "{done} of {} drawn", pools.len());
    assert!(folder.ends_with(format!("anchors-{done}")), "{folder:?}");
    let said = succeed(&room, &["align", "--resume", "cut"]);
    assert!(said.contains("resuming with the anchors sampled so far"), "{said}");
    assert_same(&room, "cut", "whole");
}

/// The weights are read again when a lost GPU is opened again, so a file that was written to in place is an
/// error then. Without a lost GPU it is a warning.
#[test]
fn a_model_that_is_written_to_during_a_run_is_noticed() {
    let room = Room::new();
    let weights = room.path("model/model.safetensors");
    let before = fs::read(&weights).unwrap();
    let (submits, _) = counts(&room, &line("whole", "30", &SAVED));
    let run = |faults: &str| {
        let _ = fs::remove_dir_all(room.path("cut"));
        fs::write(&weights, &before).unwrap();
        let mut command = room.process();
        command.args(line("cut", "30", &SAVED)).env("AWEIGH_FAULTS", faults);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        while last_checkpoint(&room.path("cut")).is_none() {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut file = fs::OpenOptions::new().append(true).open(&weights).unwrap();
        file.write_all(&[0]).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    let expected =
        "model.safetensors: expected a file that has not changed since it was opened, found a changed file";
    let (code, stderr) = run(&format!("device-lost@{}", submits * 3 / 4));
    assert!(code == Some(2) && stderr.contains(&format!("error: model/{expected}")), "{code:?} {stderr}");
    let (code, stderr) = run("");
    assert!(code == Some(0) && stderr.contains(&format!("warning: model/{expected}")), "{code:?} {stderr}");
    assert_same(&room, "cut", "whole");
}

#[test]
fn an_allocation_that_fails_ends_a_run_cleanly() {
    let room = Room::new();
    let (_, allocations) = counts(&room, &line("whole", "2", &[]));
    for at in spread(allocations, 6) {
        let _ = fs::remove_dir_all(room.path("cut"));
        let faults = format!("allocation@{at}");
        let output =
            room.command().args(line("cut", "2", &[])).env("AWEIGH_FAULTS", &faults).output().unwrap();
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{faults}: {stderr}");
        assert_eq!(stderr.matches("error: out of GPU memory: cannot ").count(), 1, "{faults}: {stderr}");
        assert!(!stderr.contains("panicked"), "{faults}: {stderr}");
        // Either nothing was written, or it can be resumed.
        if room.path("cut").exists() {
            succeed(&room, &["align", "--resume", "cut", "--quiet"]);
            assert_same(&room, "cut", "whole");
        }
    }
    // With --fit, which lets it change settings, the run tries again by itself.
    let fit = line("cut", "2", &["--memory", "1GB", "--fit", "--overwrite"]);
    let faults = format!("allocation@{}", allocations - 40);
    let output = room.command().args(fit).env("AWEIGH_FAULTS", faults).output().unwrap();
    let (_, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("did not fit: trying again with --"), "{stderr}");
}

/// Interrupts a run after its first steps, so that `cut` can be resumed.
fn interrupted(room: &Room) {
    let mut child = spawn(room, &line("cut", "400", &SAVED));
    while last_checkpoint(&room.path("cut")).is_none_or(|step| step < 2) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(10));
    }
    interrupt(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn what_a_run_does_not_go_on_with() {
    if is_wine() {
        return;
    }
    let room = Room::new();
    room.refuses(
        &["align", "--resume", "cut"],
        &["--resume: expected the folder of an unfinished run", "found no folder at cut"],
    );
    room.refuses(&["align", "--resume", "model"], &["found a folder without config.toml at model"]);
    interrupted(&room);
    room.refuses(
        &["align", "--resume", "cut", "--learning-rate", "1e-4", "--max-steps", "9"],
        &["--resume: expected no other settings", "found --learning-rate, --max-steps", "start a new run"],
    );
    room.refuses(
        &line("cut", "24", &[]),
        &["--output-dir: expected a folder that does not exist yet", "align --resume cut"],
    );
    let text = fs::read_to_string(room.path("cut/config.toml")).unwrap();
    room.edit("cut/config.toml", "learning_rate = 0.001", "learning_rate = 0.002");
    room.refuses(
        &["align", "--resume", "cut"],
        &["cut/config.toml: expected the settings that the run was started with"],
    );
    room.write("cut/config.toml", &text);
    let rows = fs::read(room.path("flagged.jsonl")).unwrap();
    room.write(
        "flagged.jsonl",
        [&rows[..], b"\n", &rows[..rows.iter().position(|b| *b == b'\n').unwrap()]].concat(),
    );
    room.refuses(
        &["align", "--resume", "cut"],
        &["--train, as when the run was started: expected", "bytes, CRC-32 ", "restore what"],
    );
    room.write("flagged.jsonl", &rows);
    let weights = fs::read(room.path("model/model.safetensors")).unwrap();
    let mut changed = weights.clone();
    *changed.last_mut().unwrap() ^= 1;
    room.write("model/model.safetensors", &changed);
    room.refuses(&["align", "--resume", "cut"], &["--model, as when the run was started: expected"]);
    room.write("model/model.safetensors", &weights);
    // A damaged checkpoint is skipped; if all are damaged, the run starts over.
    let last = last_checkpoint(&room.path("cut")).unwrap();
    let place = room.path(&format!("cut/checkpoint-{last}/state.safetensors"));
    let mut bytes = fs::read(&place).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&place, bytes).unwrap();
    let mut child = room.process().args(["align", "--resume", "cut"]).stderr(Stdio::piped()).spawn().unwrap();
    let before = fs::metadata(room.path("cut")).unwrap().modified().unwrap();
    while fs::metadata(room.path("cut")).unwrap().modified().unwrap() == before {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(10));
    }
    // While it runs, no other run may use the folder.
    let output = room.run(&["align", "--resume", "cut"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(texts(&output).1.contains("which another run is writing to"), "{}", texts(&output).1);
    interrupt(&child, "INT");
    let (_, stderr) = texts(&child.wait_with_output().unwrap());
    assert!(stderr.contains(&format!("checkpoint-{last}: state.safetensors is damaged")), "{stderr}");
    assert!(stderr.contains(&format!("resuming after step {}", last - 1)), "{stderr}");
}

/// A disk of a given size, if this process may make one.
#[cfg(target_os = "linux")]
struct Disk(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Disk {
    fn new(room: &Room, size: &str) -> Option<Self> {
        let path = room.path("disk");
        fs::create_dir(&path).unwrap();
        let size = format!("size={size}");
        let made = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .output();
        let made = made.is_ok_and(|output| output.status.success());
        if !made {
            eprintln!("skipped: no right to make a small disk");
        }
        made.then_some(Self(path))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A checkpoint takes about 3.5 MB here: the first one fits on the disk, a second one does not.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_costs_the_run_nothing_but_what_it_could_not_take() {
    let room = Room::new();
    let Some(_disk) = Disk::new(&room, "6m") else { return };
    succeed(&room, &line("whole", "12", &[]));
    let said = succeed(&room, &line("disk/run", "12", &SAVED));
    assert!(said.contains("cannot write") && said.contains("No space left"), "{said}");
    assert!(said.contains("the run continues without this checkpoint"), "{said}");
    assert_same(&room, "disk/run", "whole");
    // The disk is so full that not even a line of figures fits. The run continues, and can be resumed from
    // its last checkpoint.
    fs::remove_dir_all(room.path("disk/run")).unwrap();
    let mut child = spawn(&room, &line("disk/run", "4000", &SAVED));
    while last_checkpoint(&room.path("disk/run")).is_none() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = fs::write(room.path("disk/filler"), vec![0u8; 8 << 20]);
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none(), "a full disk ended the run");
    interrupt(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(last_checkpoint(&room.path("disk/run")).is_some());
    // A disk that cannot be written to at all.
    let mount = ["-o", "remount,ro"];
    let remounted = std::process::Command::new("mount").args(mount).arg(room.path("disk")).status();
    assert!(remounted.unwrap().success());
    room.refused(
        room.command().args(line("disk/other", "12", &[])),
        &["disk/other: cannot ", "Read-only file system"],
    );
    room.refused(
        room.command().args(["align", "--resume", "disk/run"]),
        &["disk/run/.lock: cannot lock", "Read-only file system"],
    );
}

#[test]
fn runs_in_the_background_and_paranoid_ones_have_the_same_result() {
    let room = Room::new();
    succeed(&room, &line("whole", "6", &[]));
    succeed(&room, &line("behind", "6", &["--background"]));
    assert_same(&room, "behind", "whole");
    succeed(&room, &line("checked", "6", &["--paranoid"]));
    let summary: Value =
        serde_json::from_slice(&fs::read(room.path("checked/summary.json")).unwrap()).unwrap();
    let (checks, planned) = (summary["checks"].as_str().unwrap(), &summary["memory_planned"]);
    assert!(checks.ends_with("compared with their references: all agree"), "{checks}");
    assert!(summary["memory_peak"].as_u64() <= planned.as_u64(), "{summary}");
    assert_same(&room, "checked", "whole");
}

#[test]
#[cfg(unix)]
fn a_folder_that_goes_is_made_again() {
    let room = Room::new();
    succeed(&room, &line("whole", "40", &[]));
    let mut child = spawn(&room, &line("cut", "40", &SAVED));
    while last_checkpoint(&room.path("cut")).is_none_or(|step| step < 2) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::rename(room.path("cut"), room.path("elsewhere")).unwrap();
    assert!(child.wait().unwrap().success());
    let adapter =
        |folder: &str| fs::read(room.path(folder).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("cut") == adapter("whole"), "the adapters differ");
}
