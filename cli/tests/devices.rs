//! `aweigh devices`, kernel choices it measures, and what every command says without a GPU.

use std::fs;

use serde_json::Value;

use super::room::{Room, TRAIN, is_wine, texts};

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
    for line in lines.iter().filter(|_| !is_wine()) {
        let mut command = room.command();
        // Two names of the same setting, for newer and older Vulkan loaders; the third excludes other
        // systems' drivers.
        let none = room.path("no-driver.json");
        command.env("VK_DRIVER_FILES", &none).env("VK_ICD_FILENAMES", &none).env("WGPU_BACKEND", "vulkan");
        command.env_remove("AWEIGH_GPU").args(*line);
        room.refused(
            &mut command,
            &[
                "no usable GPU adapter: none found with WGPU_BACKEND=vulkan",
                "what to do: leave out WGPU_BACKEND=vulkan, or install a Vulkan driver",
            ],
        );
    }
    room.refuses(
        &["selftest", "--gpu", "no such card"],
        &["no adapter matches \"no such card\"", "`aweigh devices`"],
    );
}

/// OpenGL is used if it is asked for. Without an API on this machine, the message names the flag.
#[test]
fn backends() {
    let room = Room::new();
    let all = room.json(&["devices"]);
    let first = all["devices"][0]["backend"].as_str().unwrap().to_lowercase();
    let of = |backend: &str| {
        let output = room.run(&["devices", "--backend", backend, "--json"]);
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (code, found) = of(&first);
    assert_eq!((code, &found["devices"][0]["name"]), (Some(0), &all["devices"][0]["name"]));
    for backend in ["vulkan", "metal", "dx12", "gl"].into_iter().filter(|&backend| backend != first) {
        let (code, found) = of(backend);
        if code == Some(0) {
            let devices = found["devices"].as_array().unwrap();
            assert!(devices.iter().all(|one| one["backend"].as_str().unwrap().to_lowercase() == backend));
        } else {
            let message = found["error"]["message"].as_str().unwrap();
            assert!(code == Some(2) && message.contains("none found with --backend "), "{message}");
            assert!(message.contains("leave out --backend "), "{message}");
        }
    }
    if of("gl").0 != Some(0) {
        eprintln!("no OpenGL (EGL) on this machine: its answers are not compared");
    } else {
        let answer = ["generate", "--model", "tiny", "--prompt", "Hello", "--max-new-tokens", "8"];
        let text =
            |more: &[&str]| room.json(&[&answer[..], more].concat())["answers"][0]["completion"].clone();
        assert_eq!(text(&["--temperature", "0", "--backend", "gl"]), text(&["--temperature", "0"]));
    }
}

/// A note on stderr says which GPU is used and why; a named one needs no reason.
#[test]
fn the_choice_is_explained() {
    let room = Room::new();
    let said = |more: &[&str]| {
        let mut command = room.command();
        let answer = ["generate", "--model", "tiny", "--prompt", "Hello", "--max-new-tokens", "1"];
        texts(&command.env_remove("AWEIGH_GPU").args(answer).args(more).output().unwrap()).1
    };
    let devices = room.json(&["devices"]);
    let first = &devices["devices"][0];
    if first["kind"] == "Cpu" {
        let expected = format!(", {} (software: no GPU was found", first["backend"].as_str().unwrap());
        assert!(said(&[]).contains(&expected), "{}", said(&[]));
    }
    assert!(!said(&["--gpu", "0"]).contains("was found"));
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
