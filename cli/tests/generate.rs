//! `aweigh generate`: chat templates and prompts.

use std::fs;

use serde_json::Value;

use super::room::{Room, texts};

#[test]
fn prompts_longer_than_the_context() {
    let room = Room::new();
    let long = "my printer is broken and ".repeat(200);
    let row = |prompt: &str| {
        format!(
            "{{\"prompt\": [{{\"role\": \"user\", \"content\": \"{prompt}\"}}], \"completion\": [{{\"role\": \
             \"assistant\", \"content\": \"no\"}}], \"label\": false}}\n"
        )
    };
    room.write("flagged.jsonl", row("help") + &row(&long));
    let parts =
        ["flagged.jsonl:2: prompt and answer: expected at most 512 tokens, the model's context, found"];
    room.align_refuses(
        "tiny",
        &["--max-prompt-length", "4000"],
        &[&parts[..], &["lower max_prompt_length"]].concat(),
    );
    let parts = ["flagged.jsonl:1: prompt (bare, or with an instruction and the worked examples) plus \
         max_new_tokens: expected at most 512 tokens"];
    room.align_refuses("tiny", &["--max-new-tokens", "600"], &parts);
    let sample = ["sample", "--model", "tiny", "--data", "flagged.jsonl", "--output", "answers.jsonl"];
    let parts = ["flagged.jsonl:2: expected at most 512 tokens, the model's context", "--max-new-tokens"];
    room.refuses(&[&sample[..], &["--max-prompt-length", "4000"]].concat(), &parts);
    let score = ["score", "--model", "tiny", "--data", "flagged.jsonl", "--output", "scored.jsonl"];
    room.refuses(&score, &["flagged.jsonl:2: expected at most 512 tokens", "of the prompt and"]);
    room.refuses(
        &["generate", "--model", "tiny", "--prompt", &long],
        &["the prompt: expected 1 to 511 tokens", "found"],
    );
}

#[test]
fn a_chat_template_of_the_users_own() {
    let room = Room::new();
    let text = fs::read_to_string(room.path("model/tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let template = config.as_object_mut().unwrap().remove("chat_template").unwrap();
    room.write("model/tokenizer_config.json", config.to_string());
    room.write("own.jinja", template.as_str().unwrap());
    let answer = |model: &[&str]| {
        let prompt = ["--prompt", "My printer is broken.", "--temperature", "0", "--max-new-tokens", "8"];
        [&["generate", "--model"], model, &prompt].concat().into_iter().map(String::from).collect::<Vec<_>>()
    };
    fn strings(words: &[String]) -> Vec<&str> {
        words.iter().map(String::as_str).collect()
    }
    room.refuses(&strings(&answer(&["model"])), &["a model with a chat template", "--chat-template"]);
    room.align_refuses(
        "model",
        &[],
        &["a chat template, as the prompts are conversations", "--chat-template"],
    );
    let found = room.json(&strings(&answer(&["model", "--chat-template", "own.jinja"])));
    let expected = room.json(&strings(&answer(&["tiny"])));
    assert_eq!(found["answers"][0]["completion"], expected["answers"][0]["completion"]);
    let figures = room.json(&["inspect", "--model", "model", "--chat-template", "own.jinja"]);
    assert_eq!(figures["tokenizer"]["chat_template"], true);
    room.write("own.jinja", "{% for m in messages %}");
    room.refuses(
        &strings(&answer(&["model", "--chat-template", "own.jinja"])),
        &["own.jinja: chat template", "line 1"],
    );
    room.refuses(
        &strings(&answer(&["model", "--chat-template", "none.jinja"])),
        &["--chat-template", "none.jinja"],
    );
}

/// All commands prepend the instruction to the first user message, and say so once.
#[test]
fn a_template_without_a_system_role() {
    let room = Room::new();
    room.write(
        "t.jinja",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ \
         m.content }}{% endfor %}{% if add_generation_prompt %} {% endif %}",
    );
    room.write("ask.jsonl", r#"{"prompt": [{"role": "user", "content": "a"}]}"#);
    let flag = r#"{"prompt": [{"role": "user", "content": "a"}], "label": false,
        "completion": [{"role": "assistant", "content": "b"}]}"#
        .replace('\n', " ");
    room.write("flag.jsonl", flag);
    let template = ["--model", "model", "--chat-template", "t.jinja", "--max-new-tokens", "4"];
    let lines: [&[&str]; 3] = [
        &["generate", "--system", "Be kind.", "--prompt", "a"],
        &["sample", "--safety-instruction", "Be kind.", "--data", "ask.jsonl", "--output", "o.jsonl"],
        &[
            "align",
            "--train",
            "flag.jsonl",
            "--output-dir",
            "out",
            "--num-samples",
            "1",
            "--max-steps",
            "1",
            "--no-stop",
            "--safety-instruction",
            "Be kind.",
        ],
    ];
    for line in lines {
        let done = room.run(&[line, &template].concat());
        let (_, stderr) = texts(&done);
        assert!(done.status.success(), "{stderr}");
        let note = "the chat template takes no system message: it is prepended to the first user message";
        assert_eq!(stderr.matches(note).count(), 1, "{stderr}");
    }
}
