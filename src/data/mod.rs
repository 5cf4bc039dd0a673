//! Data: preference rows from files, chat templates, tokens.
//!
//! How a row is processed: [`dataset::parse_rows`] turns bytes into [`Row`]s; its errors name the line.
//! [`ChatTokenizer`] renders a prompt with the model's own chat template and encodes it into the same token
//! ids as Hugging Face's transformers. [`example::build_examples`] does this for a whole set, applies the
//! length limits, and counts the rows that it cut or dropped. Nothing here opens a file: everything is passed
//! in as bytes, with a name for messages.

pub mod clock;
pub mod dataset;
pub mod example;
pub mod forms;
pub mod jsonl;
pub mod lengths;
mod marks;
pub mod objects;
pub mod ordinary;
pub mod packing;
#[cfg(feature = "parquet")]
mod parquet;
pub mod python_json;
pub mod remarks;
mod row;
mod rule;
pub mod template;
pub mod tokenizer;
pub mod tokenizer_files;
mod variety;
mod worked;

pub use dataset::{Parsed, check_splits, parse_rows, rows_with};
pub use example::{Example, ExampleOptions, Needs, build_examples};
pub use forms::{Label, RowForm};
pub use lengths::{LengthCounts, LengthLimits, Overlong, Truncation, limit};
pub use marks::Marks;
pub use ordinary::ORDINARY;
pub use packing::{Group, Packed};
pub use remarks::{remarks, row_remarks, token_remarks};
pub use row::Row;
pub use rule::Rule;
pub use template::ChatTemplate;
pub use tokenizer::ChatTokenizer;
pub(crate) use tokenizer_files::TokenizerFacts;
pub use tokenizer_files::TokenizerFiles;
pub use variety::{distinct, repetition};
pub use worked::{REFUSALS, parse_worked_examples};

use serde::{Deserialize, Serialize};

/// One turn of a conversation. Chat templates see the fields in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The speaker: `system`, `user`, `assistant`, or another role that the model's template knows.
    pub role: String,
    /// The text of the turn.
    pub content: String,
    /// The message's other fields, such as `tool_calls` or `name`, for chat templates that read them.
    #[serde(flatten)]
    pub others: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message of a role and a content, without other fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), others: serde_json::Map::new() }
    }
}

/// A prompt. As JSON: a string, or a list of `{"role", "content"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Plain text that the model continues, without a chat template.
    Text(String),
    /// A conversation that ends before the assistant's answer; rendered with the chat template.
    Messages(Vec<Message>),
}

impl Prompt {
    /// True for a list of messages, which needs a chat template.
    pub fn is_conversational(&self) -> bool {
        matches!(self, Self::Messages(_))
    }

    /// The question as a person would read it: the text, or the content of the last message.
    pub fn last_text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Messages(messages) => messages.last().map_or("", |message| message.content.as_str()),
        }
    }

    /// The prompt with `examples`, earlier turns of the same conversation: after a system message that opens
    /// the prompt, before everything else. A text has no turns and stays as it is.
    pub fn with_examples(&self, examples: &[Message]) -> Self {
        let Self::Messages(messages) = self else { return self.clone() };
        let opens = usize::from(messages.first().is_some_and(|first| first.role == "system"));
        let (system, rest) = messages.split_at(opens);
        Self::Messages([system, examples, rest].concat())
    }

    /// The prompt with a system `instruction` in front of it.
    ///
    /// - Text: the instruction, a blank line, the text.
    /// - Messages that open with a system message: the instruction, a blank line, that message's own content.
    /// - Other messages: a new system message when `system_role` says that the template takes one, otherwise
    ///   the instruction and a blank line in front of the first user message (or, without one, of the first
    ///   message).
    pub fn with_instruction(&self, instruction: &str, system_role: bool) -> Self {
        let merged = |content: &str| format!("{instruction}\n\n{content}");
        match self {
            Self::Text(text) => Self::Text(merged(text)),
            Self::Messages(messages) => {
                let mut messages = messages.clone();
                let opens_with_system = messages.first().is_some_and(|first| first.role == "system");
                if system_role && !opens_with_system {
                    messages.insert(0, Message::new("system", instruction));
                } else {
                    let user = messages.iter().position(|message| message.role == "user").unwrap_or(0);
                    let target = if opens_with_system { 0 } else { user };
                    if let Some(message) = messages.get_mut(target) {
                        message.content = merged(&message.content);
                    }
                }
                Self::Messages(messages)
            }
        }
    }
}

/// The key of a message that tells why its answer ended, and what it is for one that was cut at a length
/// limit. Both words are those of OpenAI's protocol.
const FINISH_REASON: &str = "finish_reason";
const CUT: &str = "length";

/// An answer. As JSON: a string, or a list of one message, the assistant's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Completion {
    /// Plain text that follows a text prompt.
    Text(String),
    /// The assistant's message (a list of one, as TRL writes it) that follows a conversation.
    Messages(Vec<Message>),
}

impl Completion {
    /// An assistant's answer to a conversation.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::Messages(vec![Message::new("assistant", content)])
    }

    /// The answer's text, without template or end token.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Messages(messages) => messages.last().map_or("", |message| message.content.as_str()),
        }
    }

    /// Turns a sampled `text` into a completion of the form of `prompt`: a message or plain text.
    pub fn for_prompt(prompt: &Prompt, text: impl Into<String>) -> Self {
        if prompt.is_conversational() { Self::assistant(text) } else { Self::Text(text.into()) }
    }

    /// As [`Completion::for_prompt`], for an answer that `ended` by itself or [was cut](Completion::is_cut).
    pub fn sampled(prompt: &Prompt, text: impl Into<String>, ended: bool) -> Self {
        let mut completion = Self::for_prompt(prompt, text);
        if let (Self::Messages(messages), false) = (&mut completion, ended) {
            messages[0].others.insert(FINISH_REASON.into(), CUT.into());
        }
        completion
    }

    /// Whether the answer was cut at a length limit, by its message's `"finish_reason": "length"`. No end
    /// token belongs to it. Plain text cannot say so.
    pub fn is_cut(&self) -> bool {
        let Self::Messages(messages) = self else { return false };
        let reason = messages.last().and_then(|message| message.others.get(FINISH_REASON));
        reason.is_some_and(|reason| reason == CUT)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Where tests find the shared data and models, and a small tokenizer for tests.

    use std::path::PathBuf;

    use super::{ChatTokenizer, TokenizerFiles};

    fn folder(variable: &str, default: &str) -> PathBuf {
        let path = std::env::var_os(variable)
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(default), PathBuf::from);
        assert!(path.is_dir(), "{} is not there: set {variable} to its place", path.display());
        path
    }

    /// The folder of real data.
    pub fn shared_data() -> PathBuf {
        folder("AWEIGH_DATA", "../shared/data")
    }

    /// SmolLM2-135M-Instruct in Hugging Face's layout.
    pub fn smollm2() -> PathBuf {
        folder("AWEIGH_SMOLLM2", "../models/smollm2/hf")
    }

    /// The tokenizer of a model folder.
    pub fn load(folder: &std::path::Path) -> ChatTokenizer {
        let read = |name: &str| std::fs::read(folder.join(name)).ok();
        let files = TokenizerFiles {
            origin: folder.file_name().unwrap().to_string_lossy().into_owned(),
            tokenizer: read("tokenizer.json").expect("tokenizer.json"),
            tokenizer_config: read("tokenizer_config.json"),
            special_tokens_map: read("special_tokens_map.json"),
            generation_config: read("generation_config.json"),
            config: read("config.json"),
            ..TokenizerFiles::default()
        };
        ChatTokenizer::from_bytes(&files).unwrap()
    }

    /// A tokenizer of single letters: ids 0 `<pad>`, 1 `<s>`, 2 `</s>`, 3 `<|end|>` and from 4 on the
    /// characters of `ALPHABET`. It has no merges, so each character is one token.
    pub fn letters(template: Option<&str>) -> TokenizerFiles {
        let mut vocab = serde_json::Map::new();
        for (id, token) in ["<pad>", "<s>", "</s>", "<|end|>"].into_iter().enumerate() {
            vocab.insert(token.into(), id.into());
        }
        for (index, letter) in ALPHABET.chars().enumerate() {
            vocab.insert(letter.to_string(), (index + 4).into());
        }
        let added: Vec<_> = ["<pad>", "<s>", "</s>", "<|end|>"]
            .into_iter()
            .enumerate()
            .map(|(id, content)| {
                serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let tokenizer = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
            "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": vocab, "merges": []}
        });
        TokenizerFiles {
            origin: "letters".into(),
            tokenizer: tokenizer.to_string().into_bytes(),
            tokenizer_config: Some(
                br#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true}"#.to_vec(),
            ),
            chat_template: template.map(str::to_owned),
            ..TokenizerFiles::default()
        }
    }

    /// `bytes` in gzip's format.
    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// The characters of [`letters`], in the order of their ids.
    pub const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:!?[]\n'";

    /// The ids that [`letters`] gives a text without special tokens in it.
    pub fn ids(text: &str) -> Vec<u32> {
        text.chars().map(|c| ALPHABET.chars().position(|a| a == c).unwrap() as u32 + 4).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_goes_where_the_template_can_take_it() {
        let ask = Prompt::Messages(vec![Message::new("user", "hi")]);
        assert_eq!(
            ask.with_instruction("Be kind.", true),
            Prompt::Messages(vec![Message::new("system", "Be kind."), Message::new("user", "hi")])
        );
        assert_eq!(
            ask.with_instruction("Be kind.", false),
            Prompt::Messages(vec![Message::new("user", "Be kind.\n\nhi")])
        );
        let with_system =
            Prompt::Messages(vec![Message::new("system", "Pirate."), Message::new("user", "hi")]);
        assert_eq!(
            with_system.with_instruction("Be kind.", true),
            Prompt::Messages(vec![Message::new("system", "Be kind.\n\nPirate."), Message::new("user", "hi")])
        );
        assert_eq!(
            Prompt::Text("hi".into()).with_instruction("Be kind.", true),
            Prompt::Text("Be kind.\n\nhi".into())
        );
        assert_eq!(Prompt::Messages(vec![]).with_instruction("x", false), Prompt::Messages(vec![]));
    }

    #[test]
    fn examples_go_between_a_system_message_and_the_rest() {
        let examples = [Message::new("user", "bad?"), Message::new("assistant", "No.")];
        let roles = |prompt: &Prompt| match prompt.with_examples(&examples) {
            Prompt::Messages(all) => all.into_iter().map(|m| m.content).collect::<Vec<_>>().join("|"),
            Prompt::Text(text) => text,
        };
        let ask = Message::new("user", "hi");
        assert_eq!(roles(&Prompt::Messages(vec![ask.clone()])), "bad?|No.|hi");
        let with_system = Prompt::Messages(vec![Message::new("system", "Pirate."), ask]);
        assert_eq!(roles(&with_system), "Pirate.|bad?|No.|hi");
        assert_eq!(roles(&Prompt::Text("hi".into())), "hi");
    }

    #[test]
    fn prompts_and_completions_read_and_write_trl_json() {
        let text = r#"[{"role":"user","content":"hi"}]"#;
        let prompt: Prompt = serde_json::from_str(text).unwrap();
        assert_eq!(prompt, Prompt::Messages(vec![Message::new("user", "hi")]));
        assert_eq!(serde_json::to_string(&prompt).unwrap(), text);
        assert_eq!(serde_json::to_string(&Completion::Text("a".into())).unwrap(), r#""a""#);
        assert_eq!(Completion::for_prompt(&prompt, "yes"), Completion::assistant("yes"));
    }
}
