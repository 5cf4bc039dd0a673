//! TRL's forms, the mistakes people make with them, and every file of the shared data.

use super::super::testing::shared_data;
use super::*;
use crate::data::row::common_words;
use crate::data::{Completion, Message, Prompt};

fn parse(text: &str) -> Result<Vec<Row>> {
    parse_rows(text.as_bytes(), "d.jsonl", None).map(|parsed| parsed.rows)
}

fn one(text: &str) -> Row {
    parse(text).unwrap().remove(0)
}

fn message(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn user(text: &str) -> Prompt {
    Prompt::Messages(vec![Message::new("user", text)])
}

#[test]
fn unpaired_rows_know_their_negative() {
    let text = r#"{"prompt": "Q", "completion": "A", "label": false, "id": 7, "split": "dev"}"#;
    let flagged = one(text);
    assert_eq!(flagged.negative(), Some(&Completion::Text("A".into())));
    assert_eq!(flagged.positive(), None);
    assert_eq!(flagged.raw.keys().collect::<Vec<_>>(), ["id", "split"]);
    let approved = one(r#"{"prompt": "Q", "completion": "A", "label": true}"#);
    assert_eq!((approved.negative(), approved.positive().is_some()), (None, true));
    let unlabelled = one(r#"{"prompt": "Q", "completion": "A", "label": null, "chosen": null}"#);
    assert_eq!(
        (unlabelled.label, unlabelled.negative(), unlabelled.positive().is_some()),
        (None, None, true)
    );
    assert_eq!(one(r#"{"prompt": "Q"}"#).completion, None);
}

#[test]
fn pairs_come_with_and_without_a_prompt() {
    let row = one(
        r#"{"prompt": [{"role": "user", "content": "Q"}], "chosen": [{"role": "assistant", "content": "C"}], "rejected": [{"role": "assistant", "content": "R"}]}"#,
    );
    assert_eq!(row.prompt, user("Q"));
    assert_eq!(row.positive(), Some(&Completion::assistant("C")));
    assert_eq!(row.negative(), Some(&Completion::assistant("R")));
    let whole = r#""chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "C"}], "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "R"}]}"#;
    for start in ["{", r#"{"prompt": "Q", "#, r#"{"prompt": [{"role": "user", "content": "Q"}], "#] {
        let same = one(&format!("{start}{whole}"));
        assert_eq!(
            (same.prompt, same.chosen, same.rejected),
            (row.prompt.clone(), row.chosen.clone(), row.rejected.clone())
        );
    }
}

#[test]
fn implicit_prompts_of_strings_end_at_a_word() {
    let row = one(r#"{"chosen": "The sky is blue.", "rejected": "The sky is black."}"#);
    assert_eq!(row.prompt, Prompt::Text("The sky is".into()));
    assert_eq!(row.chosen.unwrap().text(), " blue.");
    assert_eq!(row.rejected.unwrap().text(), " black.");
    // One answer is the beginning of the other.
    assert_eq!(common_words("say yes", "say yes sir"), Some(3));
    assert_eq!(common_words("é é a", "é é b"), Some(5));
    for (a, b) in [("same x", "same x"), ("ab", "cd"), (" a", " b"), ("", "")] {
        assert_eq!(common_words(a, b), None);
    }
}

#[test]
fn conversations_split_before_the_last_answer() {
    let row = one(
        r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}"#,
    );
    assert_eq!(row.prompt, Prompt::Messages(vec![Message::new("system", "S"), Message::new("user", "Q")]));
    assert_eq!(row.completion, Some(Completion::assistant("A")));
    let open = one(r#"{"messages": [{"role": "user", "content": "Q"}]}"#);
    assert_eq!((open.prompt, open.completion), (user("Q"), None));
}

#[test]
fn mistakes_name_line_and_field() {
    let ok = r#"{"prompt": "Q", "completion": "A"}"#;
    for (second, expected) in [
        (r#"{"prompt": 3}"#, "d.jsonl:2: prompt: expected a string or a list"),
        (
            r#"{"prompt": "Q", "completion": "A", "label": 0}"#,
            "d.jsonl:2: label: expected true (approved) or false (flagged), found the number 0",
        ),
        (r#"{"prompt": "Q", "completion": "A", "label": "bad"}"#, "found the text \"bad\""),
        (
            r#"{"conversations": [{"from": "narrator", "value": "Q"}]}"#,
            "d.jsonl:2: conversations: expected turns with \"from\" (human, gpt or system)",
        ),
        (r#"{"messages": [{"from": "human", "value": "Q"}]}"#, "this is ShareGPT's form"),
        (
            r#"{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}"#,
            "prompt[0].content: expected a string, or parts of the type \"text\", found a part of the type \
             \"image\"",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "Q"}], "tools": [{"type": "function"}]}"#,
            "d.jsonl:2: tools: expected no value: it is not passed to the chat template, found a list",
        ),
        (
            r#"{"prompt": "Q", "completion": "A", "label": true}"#,
            "expected no label, as in line 1, found a label",
        ),
        (
            r#"{"prompt": "Q", "chosen": "A", "rejected": "B"}"#,
            "expected no chosen and rejected, as in line 1",
        ),
        (r#"{"prompt": [{"role": "user", "content": "Q"}]}"#, "expected plain strings, as in line 1"),
        (r#"{"prompt": "Q", "chosen": "A"}"#, "found the keys chosen, prompt"),
        (r#"{"prompt": "Q", "completion": "A", "messages": [1]}"#, "expected the keys prompt + completion"),
        (r#"{"task": "Q", "output": "A"}"#, "found the keys output, task"),
        (r#"{}"#, "found no keys"),
        (r#"{"prompt": "Q", "completion": [{"role": "assistant", "content": "A"}]}"#, "of one kind"),
        (
            r#"{"prompt": [{"from": "human", "value": "Q"}]}"#,
            "prompt[0]: expected the key \"role\", found the keys from, value",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": null}]}"#,
            "prompt[0].content: expected a string, found null",
        ),
        (r#"{"prompt": ["Q"]}"#, "prompt[0]: expected a message"),
        (
            r#"{"prompt": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}"#,
            "ends before the answer",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "user", "content": "A"}]}"#,
            "found the role \"user\"",
        ),
        (
            r#"{"chosen": [{"role": "user", "content": "Q"}], "rejected": [{"role": "user", "content": "Q"}]}"#,
            "no such common beginning",
        ),
        (r#"{"chosen": "abc", "rejected": "xyz"}"#, "no such common beginning"),
        (r#"{"chosen": "abc", "rejected": [{"role": "user", "content": "Q"}]}"#, "of one kind"),
        (r#"{"messages": "Q"}"#, "messages: expected a list of messages"),
        (r#"{"prompt": "Q", "completion": "A""#, "invalid JSON"),
    ] {
        let text = message(&format!("{ok}\n{second}\n"));
        assert!(text.starts_with("d.jsonl:2") && text.contains(expected), "{second}\n{text}");
        assert!(text.contains("what to do: "), "{text}");
    }
    assert!(message("\n\n").starts_with("d.jsonl: expected at least one row, found none"));
}

#[test]
fn messages_keep_what_a_template_may_read() {
    let row = one(r#"{"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "w"}], "name": null}, {"role": "tool", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}], "tools": [], "chat_template_kwargs": null}"#
        .replace('\n', " ").as_str());
    let Prompt::Messages(messages) = row.prompt else { panic!("messages") };
    assert_eq!(messages[0].content, "ab");
    let keys: Vec<_> = messages[1].others.keys().collect();
    assert_eq!(keys, ["tool_calls"]);
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls \
                    | length }}{% endif %};{% endfor %}";
    let template =
        crate::data::ChatTemplate::new(template, &Default::default(), &Map::new(), None, "t").unwrap();
    assert_eq!(template.render(&messages, false).unwrap(), "user:ab;assistant:1;tool:c;");
}

#[test]
fn a_column_that_looks_as_if_it_mattered_is_told() {
    let text = r#"{"prompt": "Q", "completion": "A", "system": "Be kind."}"#;
    let parsed = parse_rows(text.as_bytes(), "d.jsonl", None).unwrap();
    assert!(parsed.remarks("d.jsonl")[0].starts_with("d.jsonl:1: \"system\" is not read"));
}

#[test]
fn empty_rows_are_left_out_and_told() {
    let text = r#"{"prompt": "Q", "completion": "A"}
{"prompt": "Q", "completion": " "}
{"prompt": [{"role": "user", "content": ""}], "completion": null}
{"prompt": "Q", "completion": "B"}"#;
    let parsed = parse_rows(text.as_bytes(), "d.jsonl", None).unwrap();
    assert_eq!(parsed.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(parsed.empty_lines, [2, 3]);
    assert!(parsed.remarks("d.jsonl")[0].starts_with("d.jsonl:2: left out"));
    let more = r#"{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}]}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": " "}]}]}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": [{"name": "w"}]}]}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"name": "w"}]}]}"#;
    let parsed = parse_rows(more.as_bytes(), "d.jsonl", None).unwrap();
    assert_eq!((parsed.empty_lines, parsed.rows.len()), (vec![1, 2], 2));
    let none = message(r#"{"prompt": "Q", "completion": ""}"#);
    assert!(none.contains("at least one row, found 1 whose prompt or answer is empty"), "{none}");
}

#[test]
fn a_field_filters_rows() {
    let rows = parse(
        "{\"prompt\": \"a\", \"split\": \"train\"}\n{\"prompt\": \"b\", \"split\": \"dev\", \"fold\": 2}",
    )
    .unwrap();
    let lines = |name: &str, value: &str| {
        rows_with(rows.clone(), name, value, "d.jsonl")
            .map(|rows| rows.iter().map(|r| r.line).collect::<Vec<_>>())
    };
    assert_eq!(lines("split", "dev").unwrap(), [2]);
    assert_eq!(lines("fold", "2").unwrap(), [2]);
    let text = lines("split", "test").unwrap_err().to_string();
    assert!(text.contains("found only dev, train"), "{text}");
    assert!(lines("set", "dev").unwrap_err().to_string().contains("no row with a \"set\" field"));
}

#[test]
#[ignore = "needs real data: cargo xtask test finds it"]
fn every_file_of_the_shared_data_is_read() {
    let folder = shared_data();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".jsonl.gz") {
            continue;
        }
        files += 1;
        let Parsed { rows, empty_lines, .. } =
            parse_rows(&std::fs::read(&path).unwrap(), &name, None).unwrap();
        assert_eq!(
            empty_lines,
            if name.starts_with("diasafety") { vec![3903, 7350] } else { vec![] },
            "{name}"
        );
        let negatives = rows.iter().filter(|row| row.negative().is_some()).count();
        assert!(rows.iter().all(|row| row.prompt.is_conversational()), "{name}");
        if name.starts_with("pku") || name.starts_with("hh") || name.starts_with("beavertails") {
            assert_eq!(negatives, rows.len(), "{name}");
            let dev = rows_with(rows.clone(), "split", "dev", &name).unwrap().len();
            let train = rows_with(rows.clone(), "split", "train", &name).unwrap().len();
            assert_eq!(dev + train, rows.len(), "{name}");
        }
    }
    assert!(files > 0);
}
