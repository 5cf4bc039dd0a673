//! Invalid inputs and their messages: the table in docs/bad-inputs.md.

use std::fmt::Write as _;

use super::room::{Room, TRAIN, of_repository, texts};

/// An invalid input: its description, a function that makes it in a room, flags of `align`, and a part of its
/// message.
struct Case {
    what: &'static str,
    make: fn(&Room),
    flags: &'static [&'static str],
    message: &'static str,
}

const ROW: &str = "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": false}\n";

const fn flags(what: &'static str, flags: &'static [&'static str], message: &'static str) -> Case {
    Case { what, make: |_| {}, flags, message }
}

const fn made(what: &'static str, make: fn(&Room), message: &'static str) -> Case {
    Case { what, make, flags: &[], message }
}

fn cases() -> Vec<Case> {
    let data = |what, make, message| made(what, make, message);
    vec![
        flags("K = 0", &["--num-samples", "0"], "expected a whole number from 1 to 1024, found 0"),
        flags("a negative learning rate", &["--learning-rate", "-1"], "expected a number above 0, found -1"),
        flags(
            "a learning rate that is NaN",
            &["--learning-rate", "NaN"],
            "expected a number above 0, found NaN",
        ),
        flags(
            "an infinite learning rate",
            &["--learning-rate", "inf"],
            "expected a number above 0, found inf",
        ),
        flags("a beta that is NaN", &["--beta", "NaN"], "expected a number of at least 0, found NaN"),
        flags(
            "both loss weights 0",
            &["--alpha", "0", "--beta", "0"],
            "expected alpha or beta above 0, found both 0",
        ),
        flags(
            "a batch size that is too large",
            &["--per-device-train-batch-size", "18446744073709551615"],
            "expected a whole number from 1 to 65536",
        ),
        flags(
            "greedy sampling of several anchors",
            &["--temperature", "0"],
            "expected a number above 0, found 0, which gives 2 copies",
        ),
        flags(
            "worked examples that are not messages",
            &["--anchor-examples", "model/config.json"],
            "model/config.json: expected a JSON list of messages, found an object",
        ),
        flags(
            "answers longer than the context",
            &["--max-new-tokens", "999999999"],
            "expected at most 512 tokens, the model's context",
        ),
        flags("zero steps", &["--max-steps", "0"], "expected a whole number of at least 1, found 0"),
        flags(
            "a checkpoint every 0 steps",
            &["--save-steps", "0"],
            "expected a whole number of at least 1, found 0",
        ),
        flags(
            "a negative checkpoint interval",
            &["--save-minutes", "-1"],
            "expected a number of at least 0, found -1",
        ),
        flags("--fit without a memory limit", &["--fit"], "expected gpu.memory to be set, found none"),
        flags(
            "held-out rows that are trained on",
            &["--eval-split", "dev"],
            "--split: expected a split other than that of --eval-split, found none",
        ),
        flags(
            "layers that do not exist",
            &["--target-modules", "no_such_proj"],
            "no_such_proj, which matches none",
        ),
        flags(
            "a method that needs good answers, with flagged answers only",
            &["--method", "sft"],
            "expected rows with a good answer, found none",
        ),
        data(
            "a missing file",
            |room| std::fs::remove_file(room.path("flagged.jsonl")).unwrap(),
            "expected a file at flagged.jsonl, found nothing",
        ),
        data(
            "an empty file",
            |room| room.write("flagged.jsonl", ""),
            "expected at least one row, found none",
        ),
        data(
            "a truncated row",
            |room| room.write("flagged.jsonl", format!("{ROW}{}", &ROW[..30])),
            "flagged.jsonl:2: expected one JSON object, found invalid JSON",
        ),
        data(
            "text that is not UTF-8",
            |room| room.write("flagged.jsonl", [ROW.as_bytes(), b"{\"prompt\": \"\xff\xfe\"}\n"].concat()),
            "flagged.jsonl:2: expected UTF-8 text, found an invalid byte at column 13",
        ),
        data(
            "rows in two different forms",
            |room| {
                room.write(
                    "flagged.jsonl",
                    format!("{ROW}{{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}}\n"),
                )
            },
            "flagged.jsonl:2: expected no chosen and rejected, as in line 1",
        ),
        data(
            "a line of more than 100 MB",
            |room| room.write("flagged.jsonl", format!("{{\"prompt\": \"{}\"}}\n", "a".repeat(100_000_001))),
            "flagged.jsonl:1: expected a line of at most 100000000 bytes",
        ),
        data(
            "a number instead of a text",
            |room| room.write("flagged.jsonl", ROW.replace("\"b\"", "3")),
            "flagged.jsonl:1: completion: expected a string",
        ),
        data(
            "anchors that are not a list",
            |room| room.write("flagged.jsonl", ROW.replace("\"b\"", "\"b\", \"anchors\": \"c\"")),
            "flagged.jsonl:1: anchors: expected a list of answers, found a string",
        ),
        data(
            "unknown keys",
            |room| room.write("flagged.jsonl", "{\"question\": \"a\"}\n"),
            "flagged.jsonl:1: expected the keys",
        ),
        data(
            "a truncated gzip file",
            |room| room.write("flagged.jsonl", [0x1f, 0x8b, 8, 0, 0]),
            "flagged.jsonl:1: expected readable data",
        ),
        data(
            "a truncated weights file",
            |room| {
                let path = room.path("model/model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(path, &bytes[..3000]).unwrap();
            },
            "expected a complete safetensors file",
        ),
        data(
            "weights in a pickle",
            |room| {
                std::fs::rename(room.path("model/model.safetensors"), room.path("model/pytorch_model.bin"))
                    .unwrap()
            },
            "expected model.safetensors in it",
        ),
        data(
            "an unknown architecture",
            |room| room.edit("model/config.json", "LlamaForCausalLM", "MambaForCausalLM"),
            "MambaForCausalLM",
        ),
        data(
            "a truncated config.json",
            |room| room.write("model/config.json", "{"),
            "found EOF while parsing",
        ),
        data(
            "an output folder with other files in it",
            |room| {
                std::fs::create_dir(room.path("out")).unwrap();
                room.write("out/thesis.tex", "");
            },
            "expected a folder that does not exist yet",
        ),
    ]
}

fn line(flags: &[&'static str]) -> Vec<&'static str> {
    [&["align", "--model", "model"], &TRAIN[..], flags].concat()
}

#[test]
fn every_line_of_the_table() {
    let mut table = String::from("| input | message | exit code |\n|---|---|---|\n");
    for case in cases() {
        let room = Room::new();
        (case.make)(&room);
        room.refuses(&line(case.flags), &[case.message]);
        let output = room.run(&line(case.flags));
        let (_, stderr) = texts(&output);
        let message = &stderr[stderr.find("error: ").expect("a message") + 7..];
        let message = message.trim_end().replace("\n  what to do: ", "; ").replace('|', "\\|");
        let input = match case.flags {
            [] => case.what.to_string(),
            flags => format!("{}: `{}`", case.what, flags.join(" ")),
        };
        writeln!(table, "| {input} | {message} | {} |", output.status.code().expect("a code")).unwrap();
    }
    let path = of_repository("docs/bad-inputs.md");
    if std::env::var_os("AWEIGH_WRITE_DOCS").is_some() {
        let head = "# Bad inputs\n\nThe error message of `aweigh align --model model --train flagged.jsonl \
                    --output-dir out` for each invalid input. Nothing is written to the output folder. \
                    `cargo test --test cli inputs` checks every line; `cargo xtask docs` writes this \
                    file.\n\n";
        std::fs::write(&path, format!("{head}{table}")).unwrap();
    }
    let text = std::fs::read_to_string(&path).expect("docs/bad-inputs.md");
    for line in table.lines() {
        assert!(text.contains(line), "docs/bad-inputs.md lacks: {line}");
    }
}
