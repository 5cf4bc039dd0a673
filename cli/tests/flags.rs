//! The command line of all commands: flags, settings files, errors as JSON.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::room::{Room, TRAIN, texts};

#[test]
fn settings_that_do_not_exist_or_fit() {
    let room = Room::new();
    room.write("run.toml", "# a comment\n[train]\nlearnin_rate = 1e-5\n");
    let key = "run.toml:3: train.learnin_rate: expected a key of [train]";
    room.align_refuses("tiny", &["--config", "run.toml"], &[key, "did you mean \"learning_rate\"?"]);
    room.write("run.toml", "[trian]\nseed = 1\n");
    room.align_refuses(
        "tiny",
        &["--config", "run.toml"],
        &["run.toml:1", "\"trian\", which is not a section", "[train]"],
    );
    room.write("run.toml", "[train]\nseed = \"x\"\n");
    room.align_refuses("tiny", &["--config", "run.toml"], &["run.toml:2: train.seed", "found the text"]);
    room.align_refuses(
        "tiny",
        &["--config", "none.toml"],
        &["--config: expected a file at none.toml, found nothing"],
    );
    for (flag, value, expected) in [
        ("--num-samples", "0", "expected a whole number from 1 to 1024, found 0"),
        ("--learning-rate", "-1", "expected a number above 0, found -1"),
        ("--top-p", "2", "expected a number above 0 and up to 1, found 2"),
        ("--temperature", "0", "expected a number above 0, found 0, which gives 2 copies"),
        ("--max-steps", "0", "expected a whole number of at least 1, found 0"),
        ("--lora-dropout", "1", "expected a number from 0 to below 1, found 1"),
    ] {
        room.align_refuses("tiny", &[flag, value], &[flag, expected]);
    }
    let generate = ["generate", "--model", "tiny", "--prompt", "hi"];
    room.refuses(
        &[&generate[..], &["--top-p", "2"]].concat(),
        &["--top-p: expected a number above 0 and up to 1"],
    );
    room.refuses(
        &["align", "--model", "tiny", "--train", "flagged.jsonl"],
        &["--output-dir: expected a folder"],
    );
    let unknown = ["no_such_proj, which matches none", "such as q_proj"];
    room.align_refuses("tiny", &["--target-modules", "no_such_proj"], &unknown);
}

/// clap refuses these, and its messages have another form.
#[test]
fn flags_that_cannot_be_parsed() {
    let room = Room::new();
    for (flag, value) in [
        ("--num-samples", "-1"),
        ("--learning-rate", "fast"),
        ("--method", "ppo"),
        ("--reference-positive", "yesterday"),
        ("--anchor-filter", "refuses"),
        ("--anchor-filter", "match:("),
        ("--no-such-flag", "1"),
    ] {
        let mut command = room.command();
        command.args(["align", "--model", "tiny"]).args(TRAIN).args([flag, value]);
        let output = command.output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(flag), "{stderr}");
    }
    assert!(!room.path("out").exists());
}

#[test]
fn words_of_the_command_line() {
    let room = Room::new();
    room.align_refuses("tiny", &["--learning-rate", "-3e-5"], &["expected a number above 0, found -0.00003"]);
    room.align_refuses(
        "SmolLM2-135M-Instruct",
        &[],
        &["a model on the Hugging Face Hub is named owner/name"],
    );
    let missing = "--train, --output-dir: expected a JSONL file of examples, a folder for the run";
    room.refuses(&["align", "--model", "tiny"], &[missing]);
    // Mesa prints an error if there is no desktop session; it must not appear.
    let mut plan = room.command();
    plan.args(["plan", "--model", "tiny", "--train", "flagged.jsonl", "-q"]).env_remove("XDG_RUNTIME_DIR");
    let plan = plan.output().unwrap();
    assert!(plan.status.success() && plan.stderr.is_empty(), "{}", texts(&plan).1);
    // A result that cannot be saved is refused before it is measured.
    room.write("taken", "");
    let started = Instant::now();
    let tune = room
        .command()
        .args(["devices", "--tune", "--model", "tiny"])
        .env("AWEIGH_CACHE_DIR", room.path("taken"))
        .output();
    let tune = tune.unwrap();
    assert_eq!(tune.status.code(), Some(2));
    assert!(texts(&tune).1.contains("what to do: "), "{}", texts(&tune).1);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let room = Room::new();
    let error = |line: &[&str]| -> Value {
        let done = room.run(line);
        assert_eq!(done.status.code(), Some(2));
        serde_json::from_str::<Value>(&texts(&done).0).unwrap()["error"].clone()
    };
    let found = error(&["score", "--model", "none", "--data", "a.jsonl", "--json", "--output", "b.jsonl"]);
    assert!(found["place"].is_string() && found["fix"].is_string() && found["exit_code"] == 2, "{found}");
    assert!(
        error(&["score", "--no-such-flag", "--json"])["message"].as_str().unwrap().contains("--no-such-flag")
    );
}

/// A report of a fault needs the exact version: commit, target and wgpu's version.
#[test]
fn the_version_names_commit_target_and_wgpu() {
    let text = texts(&Room::new().run(&["--version"])).0;
    let version = text.strip_prefix(concat!("aweigh ", env!("CARGO_PKG_VERSION"), " (")).unwrap();
    let parts: Vec<&str> = version.trim_end().strip_suffix(')').unwrap().split(", ").collect();
    let [target, wgpu] = parts[parts.len() - 2..] else { panic!("{text}") };
    assert!(target.contains(std::env::consts::ARCH), "{text}");
    assert!(wgpu.strip_prefix("wgpu ").is_some_and(|version| version.split('.').count() == 3), "{text}");
    // A checkout has a commit, with a + if a file was changed.
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let top = git(&["rev-parse", "--show-toplevel"]).and_then(|top| std::fs::canonicalize(top).ok());
    if top.is_some() && top == std::fs::canonicalize("..").ok() {
        assert_eq!(Some(parts[0].trim_end_matches('+')), git(&["rev-parse", "--short=9", "HEAD"]).as_deref());
    }
}

#[test]
fn completions_and_manual_pages() {
    let room = Room::new();
    for (shell, word) in
        [("bash", "complete -F _aweigh"), ("zsh", "#compdef aweigh"), ("fish", "complete -c aweigh")]
    {
        let text = texts(&room.run(&["completions", shell])).0;
        assert!(text.contains(word) && text.contains("learning-rate"), "{shell}: {text}");
    }
    assert_eq!(room.run(&["completions", "cmd.exe"]).status.code(), Some(2));
    assert!(room.run(&["man", "--output-dir", "man/man1"]).status.success());
    let pages = room.listing();
    for name in ["aweigh.1", "aweigh-align.1", "aweigh-judge-train.1"] {
        assert!(pages.contains_key(&room.path("man/man1").join(name)), "{name}: {pages:?}");
    }
    let page = String::from_utf8(room.read("man/man1/aweigh-align.1")).unwrap();
    assert!(page.contains("learning\\-rate"), "{page}");
}
