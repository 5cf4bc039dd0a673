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
