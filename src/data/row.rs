//! A row, and how it is built from a line's fields: which of TRL's forms it has, its prompt and its answers.

use serde_json::{Map, Value};

use super::jsonl::kind;
use super::marks::Marks;
use super::{Completion, Message, Prompt};
use crate::error::{Error, Result};

/// One row. It has a `completion`, or `chosen` and `rejected`, or none of them (a prompt alone).
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The line of the file, from 1.
    pub line: usize,
    /// The prompt.
    pub prompt: Prompt,
    /// The answer of an unpaired row.
    pub completion: Option<Completion>,
    /// The verdict on `completion`: true is approved, false is flagged.
    pub label: Option<bool>,
    /// The better answer of a pair.
    pub chosen: Option<Completion>,
    /// The worse answer of a pair.
    pub rejected: Option<Completion>,
    /// The model's own answers to train with as anchors, in the key `anchors`. Empty if there are none: then
    /// anchors are sampled.
    pub anchors: Vec<Completion>,
    /// Which part of the flagged answer to push away, in the key `weights`; `None` for all of it alike.
    pub weights: Option<Marks>,
    /// The line's other fields (`id`, `split`, ...), unchanged. Keys that became fields above are not
    /// repeated here.
    pub raw: Map<String, Value>,
}

impl Row {
    /// The flagged answer: `rejected`, or a `completion` labelled false.
    pub fn negative(&self) -> Option<&Completion> {
        self.rejected.as_ref().or(self.completion.as_ref().filter(|_| self.label == Some(false)))
    }

    /// The row with its prompt alone.
    pub fn without_answers(self) -> Self {
        let (completion, label, chosen, rejected) = (None, None, None, None);
        Self { completion, label, chosen, rejected, anchors: Vec::new(), weights: None, ..self }
    }

    /// The good answer: `chosen`, or a `completion` that is not labelled false.
    pub fn positive(&self) -> Option<&Completion> {
        self.chosen.as_ref().or(self.completion.as_ref().filter(|_| self.label != Some(false)))
    }
}

/// Whether a message calls tools.
pub(super) fn has_calls(message: &Map<String, Value>) -> bool {
    ["tool_calls", "function_call"]
        .iter()
        .any(|key| message.get(*key).is_some_and(|calls| !is_nothing(calls)))
}

/// Null, or an empty text, list or object.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A line's fields, while they are turned into a row.
pub(super) struct Fields<'a> {
    pub map: Map<String, Value>,
    pub place: &'a str,
    pub line: usize,
}

impl Fields<'_> {
    pub fn into_row(mut self) -> Result<Row> {
        let mut row = Row {
            line: self.line,
            prompt: Prompt::Text(String::new()),
            completion: None,
            label: None,
            chosen: None,
            rejected: None,
            anchors: Vec::new(),
            weights: None,
            raw: Map::new(),
        };
        let has = |name: &str| self.map.get(name).is_some_and(|value| !value.is_null());
        let pair = (has("chosen"), has("rejected"));
        let (completion, prompt, messages) = (has("completion"), has("prompt"), has("messages"));
        match (prompt, pair, completion, messages) {
            (true, (true, true), false, false) => (row.prompt, row.chosen, row.rejected) = self.pair()?,
            (false, (true, true), false, false) => {
                (row.prompt, row.chosen, row.rejected) = self.implicit_pair()?
            }
            (true, (false, false), true, false) => {
                row.prompt = self.prompt()?;
                row.completion = Some(self.answer("completion", &row.prompt)?);
                row.label = self.label()?;
            }
            (true, (false, false), false, false) => row.prompt = self.prompt()?,
            (false, (false, false), false, true) => {
                (row.prompt, row.completion) = self.conversation()?;
                row.label = self.label()?.filter(|_| row.completion.is_some());
            }
            _ => return Err(self.unknown_form()),
        }
        row.anchors = self.anchors(&row.prompt)?;
        row.weights = match self.map.remove("weights") {
            None | Some(Value::Null) => None,
            Some(_) if row.negative().is_none() => {
                let fix = "remove them, or set \"label\": false";
                let place = format!("{}: weights", self.place);
                return Err(Error::input(place, "a flagged answer that they mark", "none", fix));
            }
            Some(weights) => Some(Marks::parse(&weights, self.place)?),
        };
        // These keys are meant for the chat template, but Aweigh does not pass them on. It is better to stop
        // than to train on different prompts.
        for key in ["tools", "chat_template_kwargs"] {
            let given = self.map.get(key).filter(|value| !is_nothing(value));
            if let Some(value) = given.filter(|_| row.prompt.is_conversational()) {
                let place = format!("{}: {key}", self.place);
                let fix = "remove the key, and put what the model needs to know into a system message";
                let expected = "no value: it is not passed to the chat template";
                return Err(Error::input(place, expected, kind(value), fix));
            }
        }
        row.raw = self.map;
        Ok(row)
    }

    fn unknown_form(&self) -> Error {
        let keys: Vec<&str> =
            self.map.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str()).collect();
        let found = if keys.is_empty() { "no keys".into() } else { format!("the keys {}", keys.join(", ")) };
        Error::input(
            self.place,
            "the keys prompt + completion (+ label), prompt + chosen + rejected, chosen + rejected, \
             messages, or prompt alone",
            found,
            "rename or remove keys until the row has one of these forms",
        )
    }

    /// `prompt` with `chosen` and `rejected`.
    fn pair(&mut self) -> Result<(Prompt, Option<Completion>, Option<Completion>)> {
        // Some data sets give the prompt as a string, and again within two whole conversations.
        let whole = |name: &str| self.map[name].as_array().is_some_and(|list| list.len() > 1);
        if self.map["prompt"].is_string() && whole("chosen") && whole("rejected") {
            return self.implicit_pair();
        }
        let prompt = self.prompt()?;
        let chosen = self.answer("chosen", &prompt)?;
        let rejected = self.answer("rejected", &prompt)?;
        Ok((prompt, Some(chosen), Some(rejected)))
    }

    /// `chosen` and `rejected` that begin with the same prompt.
    fn implicit_pair(&mut self) -> Result<(Prompt, Option<Completion>, Option<Completion>)> {
        let sides = (self.turns("chosen")?, self.turns("rejected")?);
        match sides {
            (Prompt::Messages(chosen), Prompt::Messages(rejected)) => {
                let same = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
                let ends = chosen.len() == same + 1 && rejected.len() == same + 1;
                if same == 0 || !ends {
                    return Err(self.no_common_prompt("messages"));
                }
                let prompt = Prompt::Messages(chosen[..same].to_vec());
                self.check_prompt(&prompt)?;
                let answer = |name, list: Vec<Message>| {
                    self.to_answer(name, Prompt::Messages(list[same..].to_vec()), &prompt).map(Some)
                };
                Ok((prompt.clone(), answer("chosen", chosen)?, answer("rejected", rejected)?))
            }
            (Prompt::Text(chosen), Prompt::Text(rejected)) => {
                let at = common_words(&chosen, &rejected).ok_or_else(|| self.no_common_prompt("words"))?;
                let prompt = Prompt::Text(chosen[..at].to_owned());
                self.check_prompt(&prompt)?;
                let answer = |name, text: &str| {
                    self.to_answer(name, Prompt::Text(text[at..].to_owned()), &prompt).map(Some)
                };
                Ok((prompt.clone(), answer("chosen", &chosen)?, answer("rejected", &rejected)?))
            }
            _ => Err(self.mixed("chosen and rejected")),
        }
    }

    fn no_common_prompt(&self, what: &str) -> Error {
        Error::input(
            self.place,
            format!("chosen and rejected that begin with the same {what} and then differ in one answer each"),
            "no such common beginning",
            "give the prompt separately, in the key \"prompt\"",
        )
    }

    /// `messages`: the last message is the completion if it is the assistant's; otherwise the conversation is
    /// a prompt.
    fn conversation(&mut self) -> Result<(Prompt, Option<Completion>)> {
        let Prompt::Messages(mut list) = self.turns("messages")? else {
            return Err(self.wrong("messages", "a list of messages", "a string"));
        };
        let answer = list.pop_if(|last| last.role == "assistant");
        let prompt = Prompt::Messages(list);
        self.check_prompt(&prompt)?;
        let completion = match answer {
            Some(message) => Some(self.to_answer("messages", Prompt::Messages(vec![message]), &prompt)?),
            None => None,
        };
        Ok((prompt, completion))
    }

    fn prompt(&mut self) -> Result<Prompt> {
        let prompt = self.turns("prompt")?;
        self.check_prompt(&prompt)?;
        Ok(prompt)
    }

    fn check_prompt(&self, prompt: &Prompt) -> Result<()> {
        if let Prompt::Messages(list) = prompt
            && list.last().is_some_and(|last| last.role == "assistant")
        {
            return Err(self.wrong(
                "prompt",
                "a conversation that ends before the answer",
                "an assistant's message at its end",
            ));
        }
        if prompt.last_text().trim().is_empty() {
            return Err(self.empty("prompt"));
        }
        Ok(())
    }

    fn answer(&mut self, name: &str, prompt: &Prompt) -> Result<Completion> {
        let turns = self.turns(name)?;
        self.to_answer(name, turns, prompt)
    }

    /// `anchors`: a list of answers, each written as a completion is.
    fn anchors(&mut self, prompt: &Prompt) -> Result<Vec<Completion>> {
        let answers = match self.map.remove("anchors") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(answers)) => answers,
            Some(other) => {
                let place = format!("{}: anchors", self.place);
                let fix = "write the anchors of a row in brackets, one after another";
                return Err(Error::input(place, "a list of answers", kind(&other), fix));
            }
        };
        let one = |(index, answer): (usize, Value)| {
            let name = format!("anchors[{index}]");
            self.to_answer(&name, self.turns_of(&name, answer)?, prompt)
        };
        answers.into_iter().enumerate().map(one).collect()
    }

    /// Turns that follow `prompt`, as one answer. A list may repeat the prompt's messages before the answer.
    fn to_answer(&self, name: &str, turns: Prompt, prompt: &Prompt) -> Result<Completion> {
        let answer = match (turns, prompt) {
            (Prompt::Text(text), Prompt::Text(_)) => Completion::Text(text),
            (Prompt::Messages(list), Prompt::Messages(asked)) => {
                let own = list.strip_prefix(asked.as_slice()).unwrap_or(&list);
                match own {
                    [only] if only.role == "assistant" => Completion::Messages(own.to_vec()),
                    [only] => {
                        let found = format!("the role {:?}", only.role);
                        return Err(self.wrong(name, "one message of the role \"assistant\"", &found));
                    }
                    _ => {
                        let found = format!("{} messages", own.len());
                        return Err(self.wrong(name, "one message of the role \"assistant\"", &found));
                    }
                }
            }
            _ => return Err(self.mixed(name)),
        };
        let calls = |message: &Message| has_calls(&message.others);
        let calls = matches!(&answer, Completion::Messages(own) if own.iter().any(calls));
        if answer.text().trim().is_empty() && !calls { Err(self.empty(name)) } else { Ok(answer) }
    }

    /// Removes the field `name` from the map and reads it as a string or a list of messages.
    pub fn turns(&mut self, name: &str) -> Result<Prompt> {
        let value = self.map.remove(name).unwrap_or_default();
        self.turns_of(name, value)
    }

    /// Reads a value as a string or a list of messages.
    fn turns_of(&self, name: &str, value: Value) -> Result<Prompt> {
        match value {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(items) if items.is_empty() => Err(self.empty(name)),
            Value::Array(items) => {
                let messages = items.into_iter().enumerate().map(|(i, item)| self.message(name, i, item));
                Ok(Prompt::Messages(messages.collect::<Result<_>>()?))
            }
            other => Err(self.wrong(name, "a string or a list of {\"role\", \"content\"}", kind(&other))),
        }
    }

    fn message(&self, name: &str, index: usize, item: Value) -> Result<Message> {
        let name = format!("{name}[{index}]");
        let Value::Object(mut fields) = item else {
            return Err(self.wrong(&name, "a message {\"role\": ..., \"content\": ...}", kind(&item)));
        };
        // A message that calls a tool may have no content, or null.
        let calls = has_calls(&fields);
        let mut text = |key: &str| match fields.remove(key) {
            None | Some(Value::Null) if calls && key == "content" => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(Value::Array(parts)) if key == "content" => self.joined(&format!("{name}.{key}"), &parts),
            Some(Value::Null) => {
                let place = format!("{}: {name}.{key}", self.place);
                Err(Error::input(place, "a string", "null", "write \"\" for an empty message"))
            }
            Some(other) => Err(self.wrong(&format!("{name}.{key}"), "a string", kind(&other))),
            None => {
                let keys: Vec<_> = fields.keys().map(String::as_str).collect();
                let found = format!("the keys {}", keys.join(", "));
                if fields.contains_key("from") && fields.contains_key("value") {
                    let fix = "this is ShareGPT's form: rename \"from\" to \"role\" and \"value\" to \
                               \"content\", human to user and gpt to assistant";
                    let place = format!("{}: {name}", self.place);
                    return Err(Error::input(place, format!("the key {key:?}"), found, fix));
                }
                Err(self.wrong(&name, &format!("the key {key:?}"), &found))
            }
        };
        let (role, content) = (text("role")?, text("content")?);
        fields.retain(|_, value| !value.is_null());
        if role.is_empty() {
            return Err(self.empty(&format!("{name}.role")));
        }
        Ok(Message { role, content, others: fields })
    }

    /// Joins a content in parts, `[{"type": "text", "text": ...}]`, into one text.
    fn joined(&self, name: &str, parts: &[Value]) -> Result<String> {
        let text = |part: &Value| match part["type"].as_str() {
            Some("text") | None => {
                part["text"].as_str().map(str::to_owned).ok_or("a part without text".to_string())
            }
            Some(other) => Err(format!("a part of the type {other:?}")),
        };
        let texts: Result<Vec<String>, String> = parts.iter().map(text).collect();
        texts.map(|texts| texts.concat()).map_err(|found| {
            let fix = "Aweigh reads only text: remove rows with images, audio or documents";
            Error::input(
                format!("{}: {name}", self.place),
                "a string, or parts of the type \"text\"",
                found,
                fix,
            )
        })
    }

    fn label(&mut self) -> Result<Option<bool>> {
        match self.map.remove("label") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(label)) => Ok(Some(label)),
            Some(other) => {
                let place = format!("{}: label", self.place);
                let found = match &other {
                    Value::Number(number) => format!("the number {number}"),
                    Value::String(text) => format!("the text {text:?}"),
                    other => kind(other).into(),
                };
                let fix = "write true for an answer that you want, and false for one that you do not want; \
                           or name the column with --label, which reads 1, 0, -1, up, down and more";
                Err(Error::input(place, "true (approved) or false (flagged)", found, fix))
            }
        }
    }

    fn wrong(&self, name: &str, expected: &str, found: &str) -> Error {
        Error::input(
            format!("{}: {name}", self.place),
            expected,
            found,
            "write this row in one of TRL's forms: strings, or lists of {\"role\", \"content\"} with string \
             contents",
        )
    }

    fn mixed(&self, name: &str) -> Error {
        self.wrong(name, "prompt and answers of one kind", "a string and a list of messages")
    }

    fn empty(&self, name: &str) -> Error {
        Error::input(format!("{}: {name}", self.place), "text", "nothing", "fill it in, or remove the row")
    }
}

/// Where the common prompt of two texts ends: the byte index of the last white space before they differ. Both
/// answers then begin with that white space, and no word is cut in two. (TRL cuts at the first differing
/// character.) None when the texts are equal, or when their common beginning has no white space after its
/// first byte.
pub(super) fn common_words(a: &str, b: &str) -> Option<usize> {
    if a == b {
        return None;
    }
    let same: usize = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum();
    let at = a[..same].rfind(char::is_whitespace)?;
    (at > 0).then_some(at)
}
