//! Commands about speed: they measure what they say and keep the result. No test checks how fast anything is.

use std::fs;

use serde_json::Value;

use crate::room::{Room, texts};

#[test]
fn bench_measures_what_it_is_asked_to() {
    let room = Room::new();
    room.refuses(
        &["bench", "step", "--model", "tiny", "--tokens", "1"],
        &["--tokens: expected at least 2, found 1"],
    );
    room.refuses(&["bench", "--model", "nowhere"], &["nowhere"]);
    let all = ["bench", "matmul", "attention", "step", "step-full", "group", "sample"];
    let small = ["--model", "tiny", "--tokens", "16", "--size", "20", "--runs", "1", "--profile"];
    let figures = room.json(&[&all[..], &small].concat());
    let positive = |value: &Value| value.as_f64().is_some_and(|v| v > 0.0 && v.is_finite());
    assert!(positive(&figures["peak"]["gflops"][0]), "{figures}");
    let rates = figures["rates"].as_array().unwrap();
    assert!(rates.len() >= 12 && rates.iter().all(|rate| positive(&rate["gflops"])), "{figures}");
    for step in ["step", "step_full"] {
        let step = &figures[step];
        assert!(positive(&step["loss"]) && positive(&step["seconds"][0]), "{figures}");
        if let Some(kernels) = step["kernels"].as_array() {
            let name = |kernel: &Value| kernel["kernel"].as_str().unwrap().starts_with("matmul");
            assert!(kernels.iter().any(|kernel| name(kernel) && positive(&kernel["seconds"])), "{figures}");
        }
    }
    assert_eq!(figures["step_full"]["trainable_parameters"], 1_115_520);
    // LoRA starts as the model itself.
    let loss = |step: &str| figures[step]["loss"].as_f64().unwrap();
    assert!((loss("step") - loss("step_full")).abs() < 1e-4, "{figures}");
    assert!(figures["group"]["gradient_difference"].as_f64().unwrap() < 1e-4, "{figures}");
    assert!(positive(&figures["sample"]["together"][0]) && positive(&figures["sample"]["one_by_one"][0]));
}

/// Memory does not grow with the number of steps: buffers do not grow by a byte, and the process grows by no
/// more than allocators keep.
#[test]
fn two_hundred_steps_hold_what_one_holds() {
    let room = Room::new();
    let figures = room.json(&["bench", "step", "--model", "tiny", "--tokens", "24", "--runs", "200"]);
    let held = figures["step"]["held"].as_array().unwrap();
    assert_eq!(held[0]["device"], held[1]["device"], "{held:?}");
    if let (Some(first), Some(last)) = (held[0]["process"].as_u64(), held[1]["process"].as_u64()) {
        assert!(last < first + (16 << 20), "{held:?}");
    }
    assert!(figures["memory_peak_bytes"]["step"].as_u64() >= held[1]["device"].as_u64(), "{figures}");
}

#[test]
fn measured_kernels_are_kept_and_change_no_result() {
    let room = Room::new();
    let found = room.json(&["devices", "--tune", "--model", "tiny"]);
    let choices = found["choices"].as_object().unwrap();
    // The embedded model is stored in f16.
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
        texts(&output).1.contains("measured kernel choices: taken")
    };
    assert!(taken(&[]) && !taken(&["--no-tuning"]));

    // Choices of another driver, or a damaged file, are no error: they are ignored.
    fs::write(file, found.to_string().replace("\"driver\":\"", "\"driver\":\"another ")).unwrap();
    assert!(!taken(&[]));
    fs::write(file, "half a file").unwrap();
    assert!(!taken(&[]));
}
