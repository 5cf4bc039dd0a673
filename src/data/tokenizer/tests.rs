//! Tokens against a tokenizer of single letters, and against ids that transformers 5.23 gave for real ones.

use super::super::testing::{ids, letters, load, shared_data, smollm2};
use super::*;

/// Ends turns as Phi-3 does: `<|end|>`, a line break, and at the very end the eos token.
const CHAT: &str = "{% for m in messages %}{{ '[' + m.role[0] + ']' + m.content + '<|end|>\\n' }}{% endfor \
                    %}{{ '[a]' if add_generation_prompt else eos_token }}";

fn tokenizer(template: Option<&str>) -> ChatTokenizer {
    ChatTokenizer::from_bytes(&letters(template)).unwrap()
}

fn ask(text: &str) -> Prompt {
    Prompt::Messages(vec![Message::new("user", text)])
}

/// `text` with its special tokens, as ids of the letters tokenizer.
fn with_specials(text: &str) -> Vec<u32> {
    tokenizer(None).encode_text(text, false).unwrap()
}

#[test]
fn conversations_are_rendered_and_answers_end_with_their_turn() {
    let chat = tokenizer(Some(CHAT));
    assert_eq!(chat.encode_prompt(&ask("hi"), None).unwrap(), with_specials("[u]hi<|end|>\n[a]"));
    let answer = chat.encode_completion(&ask("hi"), &Completion::assistant("oh, no")).unwrap();
    assert_eq!(answer, [ids("oh, no"), vec![3]].concat()); // neither the line break nor </s>
    let cut = Completion::sampled(&ask("hi"), "oh, no", false);
    assert_eq!(chat.encode_completion(&ask("hi"), &cut).unwrap(), ids("oh, no"));
    assert_eq!(chat.end_tokens(), [3, 2]);
    assert!(chat.accepts_system() && chat.has_template());
    assert_eq!(
        chat.encode_prompt(&ask("hi"), Some("Be kind.")).unwrap(),
        with_specials("[s]Be kind.<|end|>\n[u]hi<|end|>\n[a]")
    );
}

#[test]
fn texts_get_the_tokenizers_frame_and_answers_the_eos_token() {
    let plain = tokenizer(None);
    let prompt = Prompt::Text("one two".into());
    // This tokenizer.json asks for truncation to 5 tokens and padding to 9; neither is applied.
    assert_eq!(plain.encode_prompt(&prompt, None).unwrap(), [vec![1], ids("one two")].concat());
    assert_eq!(plain.encode_prompt(&prompt, Some("A")).unwrap(), [vec![1], ids("A\n\none two")].concat());
    let answer = plain.encode_completion(&prompt, &Completion::Text(" six".into())).unwrap();
    assert_eq!(answer, [ids(" six"), vec![2]].concat());
    let ended = plain.encode_completion(&prompt, &Completion::Text("six</s>".into())).unwrap();
    assert_eq!(ended, [ids("six"), vec![2]].concat()); // the end token once
    assert_eq!(plain.decode(&answer, true).unwrap(), " six");
    assert_eq!(plain.decode(&answer, false).unwrap(), " six</s>");
    assert_eq!(plain.token_text(2).as_deref(), Some("</s>"));
    assert_eq!(
        (plain.token_text(9999), plain.vocab_size()),
        (None, 4 + super::super::testing::ALPHABET.len())
    );
}

#[test]
fn a_template_without_system_role_gets_the_instruction_in_the_first_question() {
    let refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% \
                    endif %}[{{ m.content }}]{% endfor %}";
    let silent = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.content }}]{% endif %}{% endfor %}";
    for template in [refusing, silent] {
        let chat = tokenizer(Some(template));
        assert!(!chat.accepts_system());
        assert_eq!(chat.prompt_text(&ask("hi"), Some("Be kind.")).unwrap(), "[Be kind.\n\nhi]");
    }
}

#[test]
fn an_end_token_is_added_where_the_template_writes_none() {
    let chat = tokenizer(Some(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt \
         %}assistant:{% endif %}",
    ));
    let answer = chat.encode_completion(&ask("hi"), &Completion::assistant("yes")).unwrap();
    assert_eq!(answer, [ids(" yes"), vec![2]].concat());
    let mut files = letters(Some("{{ messages[0].content }}"));
    files.tokenizer_config = None;
    let endless = ChatTokenizer::from_bytes(&files).unwrap();
    assert!(endless.end_tokens().is_empty());
    let error = endless.encode_completion(&ask("hi"), &Completion::assistant("yes")).unwrap_err().to_string();
    assert!(error.contains("eos_token"), "{error}");
}

#[test]
fn an_answer_survives_a_template_that_rewrites_the_prompt_once_answered() {
    // Opens a thinking block in the generation prompt and never closes it, as reasoning models do.
    let thinking = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}</s>{% endfor %}{% if \
                    add_generation_prompt %}[a]think{% endif %}";
    let chat = tokenizer(Some(thinking));
    let answer = chat.encode_completion(&ask("hi"), &Completion::assistant("yes")).unwrap();
    assert_eq!(answer, [ids("yes"), vec![2]].concat());
    // Shows the system message in the last question only, and a space before each answer, as Mistral's does.
    let moving = "{% for m in messages %}{% if m.role == 'user' %}[{% if loop.last and messages[0].role == \
                  'system' %}{{ messages[0].content }} {% endif %}{{ m.content }}]{% elif m.role == \
                  'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}";
    let chat = tokenizer(Some(moving));
    let prompt = Prompt::Messages(vec![Message::new("system", "sys"), Message::new("user", "hi")]);
    assert_eq!(chat.prompt_text(&prompt, None).unwrap(), "[sys hi]");
    for prompt in [prompt, ask("hi")] {
        let answer = chat.encode_completion(&prompt, &Completion::assistant("yes")).unwrap();
        assert_eq!(answer, [ids(" yes"), vec![2]].concat());
    }
}

/// The generation prompt opens a thinking block, and answers without such a block get an empty one.
#[test]
fn a_thought_is_closed_once() {
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}[a]{% if '!' in m.content %}{{ \
                    m.content }}{% else %}?\n!\n{{ m.content }}{% endif %}</s>{% else %}[u]{{ m.content }}{% \
                    endif %}{% endfor %}{% if add_generation_prompt %}[a]?\n{% endif %}";
    let chat = tokenizer(Some(template));
    assert!(chat.remarks().is_empty());
    for (said, learned) in
        [("hi", "!\nhi"), ("so\n!\nhi", "so\n!\nhi"), ("?so!hi", "so!hi"), ("?\nso!hi", "so!hi")]
    {
        let answer = chat.encode_completion(&ask("hi"), &Completion::assistant(said)).unwrap();
        assert_eq!(answer, [ids(learned), vec![2]].concat(), "{said}");
    }
}

#[test]
fn plain_added_tokens_end_no_turn() {
    let mut files = letters(Some(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}[end]\n</s>{% endfor %}{% if \
         add_generation_prompt %}assistant: {% endif %}",
    ));
    let mut json: serde_json::Value = serde_json::from_slice(&files.tokenizer).unwrap();
    let id = 4 + super::super::testing::ALPHABET.len();
    json["model"]["vocab"]["[end]"] = id.into();
    let line = serde_json::json!({"id": id, "content": "[end]", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false,
        "special": false});
    json["added_tokens"].as_array_mut().unwrap().push(line);
    files.tokenizer = json.to_string().into_bytes();
    let chat = ChatTokenizer::from_bytes(&files).unwrap();
    assert_eq!(chat.end_tokens(), [2]);
    // Without a special token it does: some tokenizers do not mark their end-of-turn token as special.
    files.chat_template = files.chat_template.map(|template| template.replace("</s>", ""));
    assert_eq!(ChatTokenizer::from_bytes(&files).unwrap().end_tokens(), [id as u32, 2]);
}

#[test]
fn a_frame_that_ends_a_text_does_not_end_a_prompt() {
    let mut files = letters(None);
    let mut json: serde_json::Value = serde_json::from_slice(&files.tokenizer).unwrap();
    let end = serde_json::json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    json["post_processor"]["single"].as_array_mut().unwrap().push(end);
    json["post_processor"]["special_tokens"]["</s>"] =
        serde_json::json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    files.tokenizer = json.to_string().into_bytes();
    let framed = ChatTokenizer::from_bytes(&files).unwrap();
    assert_eq!(
        framed.encode_prompt(&Prompt::Text("one".into()), None).unwrap(),
        [vec![1], ids("one")].concat()
    );
    // An end token in the text itself stays.
    assert_eq!(
        framed.encode_prompt(&Prompt::Text("one</s>".into()), None).unwrap(),
        [vec![1], ids("one"), vec![2]].concat()
    );
}

#[test]
fn what_is_odd_about_a_tokenizer_is_told() {
    let remarks = |template: &str, config: &str| {
        let mut files = letters(Some(template));
        files.tokenizer_config = Some(config.into());
        ChatTokenizer::from_bytes(&files).unwrap().remarks().join(" ")
    };
    let plain = r#"{"eos_token": "</s>"}"#;
    let open = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}</s>{% endfor %}";
    assert!(remarks(open, plain).contains("has no generation prompt"));
    let whole = format!("{open}{{% if add_generation_prompt %}}[a]{{% endif %}}");
    assert_eq!(remarks(&whole, plain), "");
    let added = r#"{"eos_token": "</s>", "added_tokens_decoder":
        {"2": {"content": "</s>"}, "9": {"content": "<|im_end|>"}}}"#;
    assert!(
        remarks(&whole, added).contains("token 9 is \"<|im_end|>\", and tokenizer.json has no such token")
    );
}

#[test]
fn a_missing_template_says_what_to_do() {
    let error = tokenizer(None).encode_prompt(&ask("hi"), None).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja") && error.contains("plain strings"), "{error}");
    let mut files = letters(None);
    files.tokenizer = b"{\"version\": \"1.0\"".to_vec();
    let error = ChatTokenizer::from_bytes(&files).unwrap_err().to_string();
    assert!(error.starts_with("letters/tokenizer.json: expected a tokenizer"), "{error}");
}

#[test]
#[ignore = "needs real data: cargo xtask test finds it"]
fn smollm2_equals_transformers() {
    let folder = smollm2();
    let chat = load(&folder);
    let prompt = ask("What is the capital of France?");
    assert_eq!(
        chat.encode_prompt(&prompt, None).unwrap(),
        [
            1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
            19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531,
            198
        ]
    );
    assert_eq!(
        chat.prompt_text(&prompt, Some("You are kind.")).unwrap(),
        "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\nWhat is the capital of \
         France?<|im_end|>\n<|im_start|>assistant\n"
    );
    let answer = chat.encode_completion(&prompt, &Completion::assistant("Paris is the capital.")).unwrap();
    assert_eq!(answer, [38634, 314, 260, 3575, 30, 2]);
    assert_eq!(chat.decode(&answer, true).unwrap(), "Paris is the capital.");
    assert_eq!((chat.end_tokens(), chat.vocab_size()), ([2].as_slice(), 49_152));
    assert_eq!(chat.encode_prompt(&Prompt::Text("a".into()), None).unwrap(), [81]); // no <s> in front
}

#[test]
#[ignore = "needs real data: cargo xtask test finds it"]
fn a_story_of_the_shared_data_goes_on_without_a_stray_space() {
    let folder = shared_data();
    let plain = load(&folder.join("stories260K"));
    let prompt = Prompt::Text("Once upon a time".into());
    assert_eq!(plain.encode_prompt(&prompt, None).unwrap(), [1, 403, 407, 261, 378]);
    let answer = plain.encode_completion(&prompt, &Completion::Text(", there was a cat.".into())).unwrap();
    assert_eq!(answer, [432, 383, 286, 261, 280, 294, 426, 2]); // what follows the prompt in the whole text
    assert_eq!((plain.vocab_size(), plain.end_tokens(), plain.has_template()), (512, [2].as_slice(), false));
    let whole = [plain.encode_prompt(&prompt, None).unwrap(), answer].concat();
    assert_eq!(plain.decode(&whole, true).unwrap(), "Once upon a time, there was a cat.");
}

#[test]
fn an_answer_is_decoded_without_its_end() {
    let tokenizer = tokenizer(None);
    let prompt = tokenizer.encode_prompt(&Prompt::Text("ask".into()), None).unwrap();
    for (answer, text) in
        [(ids("yes"), "yes"), ([ids(" no"), vec![2]].concat(), " no"), (vec![2], ""), (vec![], "")]
    {
        assert_eq!(tokenizer.decode_answer(&prompt, &answer).unwrap(), text);
    }
}
