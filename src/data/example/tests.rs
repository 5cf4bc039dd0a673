//! Limits on small rows, and every id of the shared data against transformers.

use super::super::LengthLimits;
use super::super::dataset::parse_rows;
use super::super::testing::{ids, letters, load, shared_data, smollm2};
use super::*;

const CHAT: &str = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}<|end|>{% endfor %}{% if \
                    add_generation_prompt %}[a]{% endif %}";

fn options(needs: Needs) -> ExampleOptions {
    ExampleOptions::plain(needs, LengthLimits::default())
}

fn build(text: &str, options: &ExampleOptions) -> Result<(Vec<Example>, LengthCounts)> {
    let tokenizer = ChatTokenizer::from_bytes(&letters(Some(CHAT))).unwrap();
    build_examples(
        &parse_rows(text.as_bytes(), "d.jsonl", None).unwrap().rows,
        "d.jsonl",
        &tokenizer,
        options,
    )
}

const LABELLED: &str = r#"{"prompt": "ask", "completion": "good one", "label": true}

{"prompt": "ask me", "completion": "bad", "label": false}"#;

#[test]
fn rows_become_the_examples_that_a_method_needs() {
    let (examples, counts) = build(LABELLED, &options(Needs::Negative)).unwrap();
    assert_eq!(examples.len(), 1);
    let example = &examples[0];
    assert_eq!((example.line, example.row), (3, 1));
    assert_eq!(example.prompt_ids, [vec![1], ids("ask me")].concat());
    assert_eq!(example.sampling_ids, example.prompt_ids);
    assert_eq!(example.negative_ids, Some([ids("bad"), vec![2]].concat()));
    assert_eq!(example.chosen_ids, None);
    assert_eq!((counts.rows, counts.kept, counts.unsuitable), (2, 1, 1));
    assert_eq!((counts.prompt_tokens, counts.completion_tokens), (7, 4));
    assert_eq!(build(LABELLED, &options(Needs::Any)).unwrap().0.len(), 2);
    assert_eq!(
        build(LABELLED, &options(Needs::Chosen)).unwrap().0[0].chosen_ids,
        Some([ids("good one"), vec![2]].concat())
    );
    let error = build(LABELLED, &options(Needs::Pair)).unwrap_err().to_string();
    assert!(error.contains("\"chosen\" and \"rejected\""), "{error}");
}

#[test]
fn long_rows_are_cut_dropped_or_refused() {
    let limits = LengthLimits { max_prompt: Some(4), max_completion: Some(3), ..LengthLimits::default() };
    let cut = ExampleOptions { limits, ..options(Needs::Any) };
    let (examples, counts) = build(LABELLED, &cut).unwrap();
    assert_eq!(examples[0].prompt_ids, [vec![1], ids("ask")].concat());
    assert_eq!(examples[1].prompt_ids, ids("k me"));
    assert_eq!(examples[1].negative_ids, Some(ids("bad"))); // without its end token
    assert_eq!((counts.prompts_cut, counts.negatives_cut, counts.chosen_cut), (1, 1, 1));
    assert_eq!((counts.longest_prompt, counts.longest_completion), (7, 9));

    let limits = LengthLimits { max_prompt: Some(4), overlong: Overlong::Drop, ..LengthLimits::default() };
    let (examples, counts) = build(LABELLED, &ExampleOptions { limits, ..options(Needs::Any) }).unwrap();
    assert_eq!((examples.len(), counts.dropped, counts.kept), (1, 1, 1));
    let limits = LengthLimits { max_prompt: Some(2), ..limits };
    let error = build(LABELLED, &ExampleOptions { limits, ..options(Needs::Any) }).unwrap_err().to_string();
    assert!(error.contains("2 dropped as too long"), "{error}");

    let limits = LengthLimits { max_prompt: Some(6), overlong: Overlong::Error, ..LengthLimits::default() };
    let error = build(LABELLED, &ExampleOptions { limits, ..options(Needs::Any) }).unwrap_err().to_string();
    assert!(error.starts_with("d.jsonl:3: expected at most 6 tokens in the prompt, found 7"), "{error}");
}

#[test]
fn a_cut_prompt_keeps_the_instruction_for_sampling() {
    let text = r#"{"prompt": [{"role": "user", "content": "abcdef"}]}"#;
    let with = |max_prompt, prompt_side| {
        let limits = LengthLimits { max_prompt, prompt_side, ..LengthLimits::default() };
        let options = ExampleOptions { instruction: Some("Be".into()), limits, ..options(Needs::Prompt) };
        build(text, &options).unwrap().0.remove(0)
    };
    let end = |text: &str| [ids(text), vec![3], ids("[a]")].concat();
    let whole = with(None, Truncation::Left);
    assert_eq!(whole.prompt_ids, end("[u]abcdef"));
    assert_eq!(whole.sampling_ids, [ids("[s]Be"), vec![3], end("[u]abcdef")].concat());
    // [u]abc is cut from both prompts.
    let cut = with(Some(7), Truncation::Left);
    assert_eq!(cut.prompt_ids, end("def"));
    assert_eq!(cut.sampling_ids, [ids("[s]Be"), vec![3], end("def")].concat());
    let cut = with(Some(7), Truncation::Right);
    assert_eq!(cut.prompt_ids, ids("[u]abcd"));
    assert_eq!(cut.sampling_ids, [ids("[s]Be"), vec![3], ids("[u]abcd")].concat());
}

#[test]
fn a_refused_row_is_named_by_its_line() {
    let tokenizer = ChatTokenizer::from_bytes(&letters(None)).unwrap();
    let text = "\n{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}]}";
    let rows = parse_rows(text.as_bytes(), "d.jsonl", None).unwrap().rows;
    let error =
        build_examples(&rows, "d.jsonl", &tokenizer, &options(Needs::Prompt)).unwrap_err().to_string();
    assert!(error.starts_with("d.jsonl:2 (letters): expected a chat template"), "{error}");
}

/// FNV-1a over 32-bit ids, with 0xffff_ffff after each sequence.
fn digest<'a>(sequences: impl Iterator<Item = &'a Vec<u32>>) -> u64 {
    sequences
        .flat_map(|ids| ids.iter().copied().chain([u32::MAX]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, id| (hash ^ u64::from(id)).wrapping_mul(0x100_0000_01b3))
}

/// All prompts, and all answers (completion or rejected, then chosen, row by row), have the ids that
/// transformers' PreTrainedTokenizerFast gives, which follows tokenizer.json. (AutoTokenizer of transformers
/// 5 makes a GPT2Tokenizer for this model, without the pre-tokenizer's digit rule, and splits line breaks
/// before digits differently.) Two rows of diasafety_labelled have an empty answer and are left out.
#[test]
#[ignore = "needs real data: cargo xtask test finds it"]
fn smollm2_gives_all_rows_the_ids_of_transformers() {
    let (data, model) = (shared_data(), smollm2());
    let tokenizer = load(&model);
    for (name, rows, prompts, answers) in [
        ("beavertails_unsafe", 169, 0x4817_5f4d_0e5e_dece_u64, 0x5560_e3fc_8b41_00a5),
        ("benign_prompts", 507, 0x7ec3_c084_bd7d_3c72, 0xd3a9_fc26_8d66_286c),
        ("diasafety_labelled", 10_046, 0x2d51_d957_b6b9_e544, 0x8f1f_b038_9421_1668),
        ("harmful_prompts_dev", 491, 0xf392_ebb6_db3a_86ce, 0xcbf2_9ce4_8422_2325),
        ("hh_harmless_pairs", 1_906, 0x821b_9253_ee2d_81da, 0x1b49_c47c_a10e_5299),
        ("hh_helpful_pairs", 1_978, 0x01ab_dc63_9d15_e5ba, 0x1706_e5ce_7d8b_4c73),
        ("pku_saferlhf_pairs", 2_234, 0x9ffd_60e1_d812_ac08, 0x3a76_5ac6_b75a_5f1c),
    ] {
        let origin = format!("{name}.jsonl.gz");
        let bytes = std::fs::read(data.join(&origin)).unwrap();
        let parsed = parse_rows(&bytes, &origin, None).unwrap().rows;
        let (examples, counts) =
            build_examples(&parsed, &origin, &tokenizer, &options(Needs::Prompt)).unwrap();
        assert_eq!(counts.kept, rows, "{name}");
        assert_eq!(digest(examples.iter().map(|e| &e.prompt_ids)), prompts, "{name}: prompts");
        let found = digest(examples.iter().flat_map(|e| e.negative_ids.iter().chain(&e.chosen_ids)));
        assert_eq!(found, answers, "{name}: answers");
    }
}

#[test]
fn marks_become_weights_of_tokens() {
    // The tokenizer's tokens are letters.
    let row = |weights: &str| {
        format!(r#"{{"prompt": "ab", "completion": "cdef", "label": false, "weights": {weights}}}"#)
    };
    let weights = |text: &str| build(text, &options(Needs::Negative)).unwrap().0[0].negative_weights.clone();
    let marked = weights(&row("[[1, 3]]")).unwrap();
    assert!(
        marked.iter().sum::<f32>() == 2.0 && marked[0] == 0.0 && *marked.last().unwrap() == 0.0,
        "{marked:?}"
    );
    assert_eq!(weights(r#"{"prompt": "ab", "completion": "cdef", "label": false}"#), None);
    // Marks that are cut away, and marks of an answer that is not flagged.
    let limits = LengthLimits { max_completion: Some(1), ..LengthLimits::default() };
    let error = build(&row("[[1, 3]]"), &ExampleOptions { limits, ..options(Needs::Negative) }).unwrap_err();
    assert!(error.to_string().contains("a token with a weight above 0"), "{error}");
    let good = row("[[1, 3]]").replace("false", "true");
    let error = parse_rows(good.as_bytes(), "d.jsonl", None).unwrap_err().to_string();
    assert!(error.contains("d.jsonl:1: weights") && error.contains("a flagged answer"), "{error}");
}
