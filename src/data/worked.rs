//! Worked examples: turns that are placed before a prompt when anchors are sampled, to show what is wanted.

use serde_json::{Map, Value};

use super::row::Fields;
use super::{Message, Prompt};
use crate::error::{Error, Result};

/// The built-in examples: refusals of harmful requests of many kinds, with the name that messages show.
pub const REFUSALS: (&str, &[u8]) = ("the built-in refusals", include_bytes!("../../assets/refusals.json"));

/// Parses worked examples: a JSON list of messages, a user's and an assistant's in turn. `origin` is the
/// file's name.
///
/// # Errors
/// [`Error::Input`] for bytes that are not such a list.
pub fn parse_worked_examples(bytes: &[u8], origin: &str) -> Result<Vec<Message>> {
    let fix =
        "write [{\"role\": \"user\", \"content\": ...}, {\"role\": \"assistant\", \"content\": ...}, ...]";
    let wrong = |found: String| Error::input(origin, "a JSON list of messages", found, fix);
    let value: Value = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    if !value.is_array() {
        return Err(wrong(super::jsonl::kind(&value).into()));
    }
    let map = Map::from_iter([("messages".to_owned(), value)]);
    let Prompt::Messages(messages) = (Fields { map, place: origin, line: 1 }).turns("messages")? else {
        return Err(wrong("a string".into()));
    };
    for (i, message) in messages.iter().enumerate() {
        let expected = ["user", "assistant"][i % 2];
        if message.role != expected {
            let place = format!("{origin}: messages[{i}].role");
            let fix = match message.role.as_str() {
                "system" => "give a system message as the safety_instruction instead",
                _ => "let the roles user and assistant alternate, from a user's message on",
            };
            return Err(Error::input(place, format!("{expected:?}"), format!("{:?}", message.role), fix));
        }
    }
    match messages.len() % 2 {
        0 => Ok(messages),
        _ => Err(Error::input(origin, "an answer after the last question", "none", "add the answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Rule;

    #[test]
    fn the_built_in_examples_refuse() {
        let (origin, bytes) = REFUSALS;
        let all = parse_worked_examples(bytes, origin).unwrap();
        assert!(all.len() >= 8);
        let answers = || all.iter().filter(|message| message.role == "assistant");
        assert!(answers().all(|message| Rule::refusal().holds(&message.content)));
    }

    #[test]
    fn other_lists_are_refused_with_their_place() {
        let error = |text: &str| parse_worked_examples(text.as_bytes(), "e.json").unwrap_err().to_string();
        let user = r#"{"role": "user", "content": "a"}"#;
        assert!(error("[").starts_with("e.json: expected a JSON list of messages"));
        assert!(error("{}").starts_with("e.json: expected a JSON list of messages, found an object"));
        assert!(error("[]").contains("expected text, found nothing"));
        assert!(
            error(&format!("[{user}, {user}]"))
                .starts_with("e.json: messages[1].role: expected \"assistant\"")
        );
        assert!(
            error(&format!("[{user}]")).starts_with("e.json: expected an answer after the last question")
        );
        assert!(error(r#"[{"role": "system", "content": "a"}]"#).contains("safety_instruction"));
        assert!(error(r#"[{"role": "user"}]"#).contains("messages[0]"));
    }
}
