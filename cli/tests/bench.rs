//! `aweigh bench`: what it measures. No test checks how fast anything is.

use serde_json::Value;

use super::room::Room;

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
    let machine = &figures["machine"];
    assert!(machine["cores"].as_u64().unwrap() > 0, "{machine}");
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        assert_ne!(machine["processor"], "unknown");
    }
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

/// Nothing runs for a roofline, and the cards are those of the documents.
#[test]
fn a_roofline_is_on_paper() {
    let room = Room::new();
    let figures = room.json(&["bench", "roofline", "--model", "tiny", "--tokens", "16"]);
    assert!(figures["memory_peak_bytes"].as_object().unwrap().is_empty(), "{figures}");
    let kernels = |step: &str| figures["roofline"][step]["kernels"].as_u64().unwrap();
    assert!(kernels("LoRA") > kernels("all weights") && kernels("all weights") > 50, "{figures}");
    for step in ["LoRA", "all weights"] {
        let seconds = |bound: &Value| bound["seconds"].as_f64().unwrap();
        let bounds = figures["roofline"][step]["bounds"].as_array().unwrap();
        // From the slowest card to the fastest, which has more of everything.
        assert!(bounds.len() == 5 && seconds(&bounds[0]) > seconds(&bounds[4]), "{figures}");
        assert!(bounds.iter().all(|bound| seconds(bound) > 0.0 && bound["memory"].as_f64() <= Some(1.0)));
    }
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
        // Where operands are copied into textures, the driver takes up to 17 MiB in the first few steps.
        assert!(last < first + (32 << 20), "{held:?}");
    }
    assert!(figures["memory_peak_bytes"]["step"].as_u64() >= held[1]["device"].as_u64(), "{figures}");
}
