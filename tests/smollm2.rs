//! Real models against transformers: log-probs of given answers, and greedy answers.
//!
//! stories260K comes with the shared data (AWEIGH_DATA, or ../shared/data). SmolLM2-135M-Instruct is read
//! from AWEIGH_SMOLLM2 or ../models/smollm2/hf. `cargo xtask test` runs these tests if it finds the files.

mod common;

use std::path::{Path, PathBuf};

use aweigh::data::{
    ChatTokenizer, ExampleOptions, Group, LengthLimits, Message, Needs, Prompt, build_examples, parse_rows,
};
use aweigh::files::{Model, Source};
use aweigh::model::{Decoder, Training};
use aweigh::reference::compare::compare;
use aweigh::sample::{self, Request, SamplingParams};
use aweigh::score::{Scored, score};
use common::*;
use pollster::block_on;

/// Nats per token. PyTorch and Aweigh sum f32 in different orders: on llvmpipe they differ by up to 1e-5.
const PER_TOKEN: f64 = 1e-4;

/// A folder of real files.
fn folder(variable: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(variable)
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(default), PathBuf::from);
    assert!(path.is_dir(), "{} is not there: set {variable} to its place", path.display());
    path
}

fn shared_data() -> PathBuf {
    folder("AWEIGH_DATA", "../shared/data")
}

fn smollm2() -> PathBuf {
    folder("AWEIGH_SMOLLM2", "../models/smollm2/hf")
}

fn open(folder: &Path) -> (ChatTokenizer, Decoder) {
    let model = Model::open(&folder.display().to_string()).unwrap_or_else(|error| panic!("{error}"));
    let files = model.bytes();
    let decoder = files.decoder(gpu(), Training::None).unwrap_or_else(|error| panic!("{error}"));
    (files.tokenizer().unwrap_or_else(|error| panic!("{error}")), decoder)
}

/// Log-probs of the responses of each group.
fn scores(decoder: &Decoder, groups: &[Group]) -> Vec<Vec<Scored>> {
    block_on(score(gpu(), decoder, decoder.policy(), groups, 2048, &mut |_, _| Ok(()))).expect("scores")
}

/// Greedy answers to `prompts`, 64 tokens at most.
fn greedy(decoder: &Decoder, tokenizer: &ChatTokenizer, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let settings = SamplingParams {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        max_new_tokens: 64,
        seed: 0,
        ends: tokenizer.end_tokens().to_vec(),
    };
    let requests: Vec<Request> = (0..)
        .zip(prompts)
        .map(|(index, prompt)| Request { prompt, first_sample: 0, samples: 1, index })
        .collect();
    let answers = block_on(sample::generate(
        gpu(),
        decoder,
        decoder.policy(),
        &requests,
        &settings,
        &mut |_, _| Ok(()),
    ));
    answers.expect("answers").into_iter().flatten().map(|answer| answer.ids).collect()
}

#[test]
#[ignore = "needs real data: cargo xtask test finds it"]
fn stories260k_of_the_shared_data_equals_transformers() {
    let data = shared_data();
    let (tokenizer, decoder) = open(&data.join("stories260K"));
    let golden = golden_json("stories260k.json");
    let text = golden["prompt"].as_str().expect("a prompt");
    let prompt = tokenizer.encode_prompt(&Prompt::Text(text.into()), None).expect("ids");
    assert_eq!(prompt, ids(&golden["prompt_ids"]));
    let answer = greedy(&decoder, &tokenizer, std::slice::from_ref(&prompt)).remove(0);
    assert_eq!(answer, ids(&golden["token_ids"]));
    assert_eq!(tokenizer.decode_answer(&prompt, &answer).expect("text"), golden["text"]);
    let groups = [
        Group { prompt: &prompt[..1], responses: vec![&prompt[1..]] },
        Group { prompt: &prompt, responses: vec![&answer] },
    ];
    for (scored, name) in scores(&decoder, &groups).iter().zip(["prompt", "greedy"]) {
        let expected = numbers(&golden[format!("{name}_token_logps")]);
        compare(&scored[0].token_logps, &expected, 2e-5, 2e-4).unwrap_or_else(|m| panic!("{name}: {m}"));
        let sum = golden[format!("{name}_logp")].as_f64().expect("a number");
        compare(&[scored[0].logp], &[sum], 1e-4, 1e-5).unwrap_or_else(|m| panic!("{name}: {m}"));
    }
}

/// The golden rows that are scored here: two pairs, a benign answer, and one whose ids depend on splitting
/// digits.
const SCORED: [(&str, u64); 4] = [
    ("pku_saferlhf_pairs.jsonl.gz", 7),
    ("pku_saferlhf_pairs.jsonl.gz", 13),
    ("benign_prompts.jsonl.gz", 5),
    ("pku_saferlhf_pairs.jsonl.gz", 94),
];

#[test]
#[ignore = "needs real data: cargo xtask test finds it"]
fn smollm2_equals_transformers() {
    let (data, folder) = (shared_data(), smollm2());
    let (tokenizer, decoder) = open(&folder);
    assert_eq!(decoder.config().parameters(), 134_515_008);
    for (file, line) in SCORED {
        answers_of_a_row(&data, &tokenizer, &decoder, file, line);
    }
    let golden = golden_json("smollm2_greedy.json");
    let golden = golden["answers"].as_array().expect("answers");
    let prompts: Vec<Vec<u32>> = golden
        .iter()
        .map(|answer| {
            let text = answer["prompt"].as_str().expect("a prompt");
            let prompt = Prompt::Messages(vec![Message::new("user", text)]);
            tokenizer.encode_prompt(&prompt, None).expect("ids")
        })
        .collect();
    let answers = greedy(&decoder, &tokenizer, &prompts);
    for ((expected, prompt), answer) in golden.iter().zip(&prompts).zip(&answers) {
        assert_eq!(*prompt, ids(&expected["prompt_ids"]));
        assert_eq!(*answer, ids(&expected["token_ids"]));
    }
}

/// The same model from its GGUF file gives the same ids for texts and the same greedy answers.
#[test]
#[ignore = "needs real data: cargo xtask test finds it"]
fn smollm2_from_its_gguf_file() {
    let (data, folder) = (shared_data(), smollm2());
    let file = folder.with_file_name("SmolLM2-135M-Instruct.Q4_1.gguf");
    let (tokenizer, decoder) = open(&file);
    let (expected, _) = open(&folder);
    let play = std::fs::read_to_string(data.join("tinyshakespeare.txt")).expect("a play");
    let odd = "  12345 6.7\n\n\tI'VE naïve e\u{301} 日本語 🚀 <|im_start|>user\nhi<|im_end|>\u{a0}x ";
    for text in play.lines().filter(|line| !line.is_empty()).step_by(29).chain([odd]) {
        let ids = |tokenizer: &ChatTokenizer| {
            tokenizer.encode_prompt(&Prompt::Text(text.into()), None).expect("ids")
        };
        assert_eq!(ids(&tokenizer), ids(&expected), "{text:?}");
    }
    let golden = golden_json("smollm2_greedy.json");
    for answer in golden["answers"].as_array().expect("answers") {
        let text = answer["prompt"].as_str().expect("a prompt");
        let prompt =
            tokenizer.encode_prompt(&Prompt::Messages(vec![Message::new("user", text)]), None).expect("ids");
        assert_eq!(prompt, ids(&answer["prompt_ids"]));
        let found = greedy(&decoder, &tokenizer, std::slice::from_ref(&prompt)).remove(0);
        assert_eq!(found, ids(&answer["token_ids"]), "{text:?}");
        assert_eq!(
            tokenizer.decode_answer(&prompt, &found).expect("text"),
            expected.decode_answer(&prompt, &ids(&answer["token_ids"])).expect("text")
        );
    }
}

/// Compares the log-probs of the answers in one line of a file with the golden ones.
fn answers_of_a_row(data: &Path, tokenizer: &ChatTokenizer, decoder: &Decoder, file: &str, line: u64) {
    let source = Source::read(&data.join(file), "--data").unwrap_or_else(|error| panic!("{error}"));
    let mut rows = parse_rows(&source.bytes, file, None).unwrap_or_else(|error| panic!("{error}")).rows;
    rows.retain(|row| row.line as u64 == line);
    let options = ExampleOptions::plain(Needs::Any, LengthLimits::default());
    let (examples, _) = build_examples(&rows, file, tokenizer, &options).expect("an example");
    let example = &examples[0];
    let answers: Vec<&[u32]> =
        [&example.chosen_ids, &example.negative_ids].into_iter().flatten().map(Vec::as_slice).collect();
    let group = Group { prompt: &example.prompt_ids, responses: answers.clone() };
    let scored = scores(decoder, &[group]).remove(0);
    let golden = golden_json("smollm2_score.json");
    let golden = golden["rows"].as_array().expect("rows");
    let golden: Vec<_> = golden.iter().filter(|row| row["file"] == file && row["line"] == line).collect();
    assert!(!golden.is_empty(), "{file}:{line} has no golden row");
    for expected in golden {
        // A row has its chosen answer (or its only one) first.
        let which = usize::from(expected["field"] == "rejected");
        let tokens = answers[which].len();
        assert_eq!(example.prompt_ids.len() as u64, expected["prompt_tokens"], "{file}:{line}");
        assert_eq!(tokens as u64, expected["num_tokens"], "{file}:{line}");
        let logp = expected["logp"].as_f64().expect("a number");
        let field = &expected["field"];
        println!(
            "{file}:{line} {field}: {} tokens, expected {logp:.4}, found {:.4}",
            tokens, scored[which].logp
        );
        compare(&[scored[which].logp], &[logp], PER_TOKEN * tokens as f64, 0.0)
            .unwrap_or_else(|m| panic!("{file}:{line} {field}: {m}"));
    }
}
