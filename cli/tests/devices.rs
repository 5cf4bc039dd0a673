//! `aweigh devices`, kernel choices it measures, and what every command says without a GPU.

use std::fs;

use serde_json::Value;

use super::room::{Room, TRAIN, texts};

#[test]
fn no_adapter() {
    let room = Room::new();
    let lines = [
        &[&["align", "--model", "tiny"], &TRAIN[..]].concat()[..],
        &["devices"],
        &["generate", "--model", "tiny", "--prompt", "hi"],
        &["score", "--model", "tiny", "--data", "flagged.jsonl", "--output", "scored.jsonl"],
        &["sample", "--model", "tiny", "--data", "flagged.jsonl", "--output", "answers.jsonl"],
        &["selftest"],
    ];
    for line in lines {
        let mut command = room.command();
        // Two names of the same setting, for newer and older Vulkan loaders; the third excludes other
        // systems' drivers.
        let none = room.path("no-driver.json");
        command.env("VK_DRIVER_FILES", &none).env("VK_ICD_FILENAMES", &none).env("WGPU_BACKEND", "vulkan");
        command.env_remove("AWEIGH_GPU").args(line);
        room.refused(
            &mut command,
            &["no usable GPU adapter: none found", "what to do: install a Vulkan driver"],
        );
    }
    room.refuses(
        &["selftest", "--gpu", "no such card"],
        &["no adapter matches \"no such card\"", "`aweigh devices`"],
    );
}

#[test]
fn measured_kernels_are_kept_and_change_no_result() {
    let room = Room::new();
    let found = room.json(&["devices", "--tune", "--model", "tiny"]);
    let choices = found["choices"].as_object().unwrap();
    // The built-in model is stored in f16.
    assert!(choices.contains_key("NT PACKED F16 m=16 n=128 k=128"), "{:?}", choices.keys());
    for choice in choices.values() {
        let of = |name: &str| choice["seconds"][choice[name].as_str().unwrap()].as_f64().unwrap();
        assert!(of("variant") > 0.0 && of("variant") <= of("guess"), "{choice}");
    }
    let files: Vec<_> = fs::read_dir(room.path("cache/tuning")).unwrap().map(|e| e.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(file).unwrap()).unwrap(), found);

    // The slowest kernel of every class is chosen: all commands use it, and the answer is the same.
    let mut slow = found.clone();
    for choice in slow["choices"].as_object_mut().unwrap().values_mut() {
        let seconds = choice["seconds"].as_object().unwrap();
        let worst = seconds.iter().max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap()));
        choice["variant"] = worst.unwrap().0.clone().into();
    }
    fs::write(file, slow.to_string()).unwrap();
    let answer =
        ["generate", "--model", "tiny", "--prompt", "My printer is broken.", "--max-new-tokens", "20"];
    let text = |more: &[&str]| room.json(&[&answer[..], more].concat())["answers"][0]["completion"].clone();
    assert_eq!(text(&[]), text(&["--no-tuning"]));
    let taken = |more: &[&str]| {
        let output = room.command().args(answer).args(more).env("RUST_LOG", "aweigh=info").output().unwrap();
        texts(&output).1.contains("measured kernel choices: used")
    };
    assert!(taken(&[]) && !taken(&["--no-tuning"]));

    // Choices of another driver, or a damaged file, are no error: they are ignored.
    fs::write(file, found.to_string().replace("\"driver\":\"", "\"driver\":\"another ")).unwrap();
    assert!(!taken(&[]));
    fs::write(file, "half a file").unwrap();
    assert!(!taken(&[]));
}
