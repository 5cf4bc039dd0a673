//! `aweigh selftest`.

use super::room::{Room, texts};

#[test]
fn selftest_gives_a_verdict() {
    let room = Room::new();
    let figures = room.json(&["selftest", "--quick"]);
    assert_eq!((&figures["exact"], &figures["failed"]), (&true.into(), &0.into()), "{figures}");
    assert!(figures["checks"].as_array().unwrap().iter().any(|check| check["name"] == "model_gradients"));
    let output = room.run(&["selftest", "--quick", "--quiet"]);
    let (stdout, stderr) = texts(&output);
    assert!(stdout.starts_with("All ") && stdout.contains(" checks passed on "), "{stdout}");
    assert_eq!(stderr, "");
}

/// A report can be attached to an issue: what was measured and on what, shown before it is written.
#[test]
fn a_report_names_the_machine_and_nothing_private() {
    let room = Room::new();
    let output = room.run(&["selftest", "--quick", "--report", "report.json"]);
    let written = String::from_utf8(room.read("report.json")).unwrap();
    assert!(texts(&output).1.contains(&written), "shown first");
    let report: serde_json::Value = serde_json::from_str(&written).unwrap();
    for key in ["version", "machine", "gpu", "checks", "exact"] {
        assert!(!report[key].is_null(), "{key} in {written}");
    }
    assert!(report["version"].as_str().unwrap().contains("wgpu "), "{written}");
    let home = std::env::var("HOME").unwrap_or_default();
    for private in [&*room.path("").to_string_lossy(), &home] {
        assert!(private.len() < 2 || !written.contains(private), "{written}");
    }
    room.refuses(
        &["selftest", "--quick", "--report", "report.json"],
        &["--report: expected a file that does not exist yet", "what to do: give another name"],
    );
    // Of a model's path, only the last part.
    let line = ["bench", "matmul", "--size", "64", "--runs", "1", "--report", "bench.json", "--model"];
    let model = room.path("model");
    assert!(room.run(&[&line[..], &[model.to_str().unwrap()]].concat()).status.success());
    let report: serde_json::Value = serde_json::from_slice(&room.read("bench.json")).unwrap();
    assert_eq!(report["model"], "model");
}
