//! The forms of OpenAI's protocol: what requests may say, and how errors look.
//!
//! <https://platform.openai.com/docs/api-reference>. `top_k` and `repetition_penalty` are vLLM's extensions.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::engine::Failure;
use aweigh::data::Message;
use aweigh::sample::{MAX_TOP_LOGPROBS, SamplingParams};

/// An error in the protocol's form.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
    /// The field of the request at fault.
    param: Option<&'static str>,
    /// The error's short name.
    pub code: Option<String>,
}

impl Refusal {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// A field with a wrong value.
    pub fn field(
        param: &'static str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        let message = format!("{param}: expected {expected}, found {found}");
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// With the error's short name.
    pub fn coded(self, code: &str) -> Self {
        Self { code: Some(code.to_owned()), ..self }
    }

    /// The body: `{"error": {...}}`.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({
            "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code }
        })
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Request(message) => Self::new(StatusCode::BAD_REQUEST, message),
            Failure::NoModel(name) => {
                let message = format!("model: there is no {name:?}; GET /v1/models lists what there is");
                let refusal = Self::new(StatusCode::NOT_FOUND, message).coded("model_not_found");
                Self { param: Some("model"), ..refusal }
            }
            Failure::Busy(most) => {
                let message = format!("the server has taken {most} answers, the most that it may: try later");
                Self::new(StatusCode::TOO_MANY_REQUESTS, message).coded("queue_full")
            }
            Failure::Ending => Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending"),
            Failure::Server(message) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl From<aweigh::Error> for Refusal {
    fn from(error: aweigh::Error) -> Self {
        Failure::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(self.body());
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => (self.status, [("retry-after", "1")], body).into_response(),
            status => (status, body).into_response(),
        }
    }
}

/// One value or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A single value.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// All of them.
    pub fn all(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A completion's prompt: text or token ids.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PromptForm {
    /// A text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    ManyIds(Vec<Vec<u32>>),
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct StreamOptions {
    /// Whether a last event has the numbers of tokens.
    #[serde(default)]
    pub include_usage: bool,
}

/// What requests of both kinds may say.
#[derive(Debug, Deserialize)]
pub struct Asked {
    /// The model's name.
    pub model: Option<String>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    repetition_penalty: Option<f64>,
    seed: Option<i64>,
    stop: Option<OneOrMany<String>>,
    n: Option<usize>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    /// Whether the answer is sent as it is sampled.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Settings of the stream.
    pub stream_options: Option<StreamOptions>,
    /// The other fields.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A request of `/v1/chat/completions`.
#[derive(Debug, Deserialize)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Map<String, Value>>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    /// What both kinds of requests have.
    #[serde(flatten)]
    pub asked: Asked,
}

/// A request of `/v1/completions`.
#[derive(Debug, Deserialize)]
pub struct TextRequest {
    /// The prompt, or several.
    pub prompt: PromptForm,
    logprobs: Option<usize>,
    /// What both kinds of requests have.
    #[serde(flatten)]
    pub asked: Asked,
}

/// Whether a field's value changes nothing.
type Neutral = fn(&Value) -> bool;

/// Fields that would change the answer and are not supported, with the values that change nothing.
const UNSUPPORTED: [(&str, Neutral); 34] = [
    ("tools", nothing),
    ("functions", nothing),
    ("logit_bias", nothing),
    ("frequency_penalty", zero),
    ("presence_penalty", zero),
    ("min_p", zero),
    ("min_tokens", zero),
    ("response_format", plain),
    ("structured_outputs", nothing),
    ("guided_json", nothing),
    ("guided_regex", nothing),
    ("guided_choice", nothing),
    ("guided_grammar", nothing),
    ("grammar", nothing),
    ("audio", nothing),
    ("prediction", nothing),
    ("suffix", nothing),
    ("echo", nothing),
    ("ignore_eos", nothing),
    ("use_beam_search", nothing),
    ("stop_token_ids", nothing),
    ("best_of", one),
    ("typical_p", one),
    ("chat_template", nothing),
    ("chat_template_kwargs", nothing),
    ("add_generation_prompt", yes),
    ("continue_final_message", nothing),
    ("reasoning_effort", nothing),
    ("bad_words", nothing),
    ("allowed_token_ids", nothing),
    ("include_stop_str_in_output", nothing),
    ("skip_special_tokens", yes),
    ("truncate_prompt_tokens", nothing),
    ("prompt_logprobs", nothing),
];

fn nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        _ => false,
    }
}

fn zero(value: &Value) -> bool {
    value.is_null() || value.as_f64() == Some(0.0)
}

fn one(value: &Value) -> bool {
    value.is_null() || value.as_f64() == Some(1.0)
}

fn yes(value: &Value) -> bool {
    value.is_null() || value == &Value::Bool(true)
}

fn plain(value: &Value) -> bool {
    nothing(value) || value["type"] == "text"
}

/// The settings of a request, checked.
#[derive(Debug)]
pub struct Settings {
    /// How tokens are sampled, but for the number of tokens and the end tokens.
    pub sampling: SamplingParams,
    /// The most tokens of an answer, if the request says so.
    pub max_tokens: Option<u32>,
    /// The number of answers to a prompt.
    pub answers: usize,
    /// The sequences that end an answer.
    pub stops: Vec<String>,
    /// The number of alternatives with log-probs, if log-probs are wanted.
    pub top_logprobs: Option<usize>,
}

impl Asked {
    /// The settings; `top` is the number of alternatives, and the field that gives it.
    fn settings(&self, usual: Option<u32>, top: (Option<usize>, &'static str)) -> Result<Settings, Refusal> {
        for (name, neutral) in UNSUPPORTED {
            if self.others.get(name).is_some_and(|value| !neutral(value)) {
                let message = format!("{name}: this server does not support it; leave it out");
                let refusal = Refusal::new(StatusCode::BAD_REQUEST, message).coded("unsupported_parameter");
                return Err(Refusal { param: Some(name), ..refusal });
            }
        }
        // What is checked is the number that will be used.
        let number = |name, given: Option<f64>, ok: fn(f32) -> bool, expected: &str| match given {
            None => Ok(1.0),
            Some(given) if ok(given as f32) => Ok(given as f32),
            Some(given) => Err(Refusal::field(name, expected, given)),
        };
        let stops = self.stop.clone().map_or_else(Vec::new, OneOrMany::all);
        if stops.iter().any(String::is_empty) {
            return Err(Refusal::field("stop", "texts that are not empty", "an empty one"));
        }
        let both = [("max_completion_tokens", self.max_completion_tokens), ("max_tokens", self.max_tokens)];
        if let Some((name, _)) = both.iter().find(|(_, most)| *most == Some(0)) {
            return Err(Refusal::field(name, "at least 1", 0));
        }
        let (top, name_of_top) = top;
        if let Some(top) = top.filter(|&top| top > MAX_TOP_LOGPROBS) {
            return Err(Refusal::field(name_of_top, format!("0 to {MAX_TOP_LOGPROBS}"), top));
        }
        let answers = self.n.unwrap_or(1);
        if answers == 0 {
            return Err(Refusal::field("n", "at least 1", 0));
        }
        let top_k = self.top_k.unwrap_or(0);
        let top_k = u32::try_from(top_k.max(0)).unwrap_or(u32::MAX);
        let temperature = number(
            "temperature",
            self.temperature,
            |t| (0.0..=100.0).contains(&t),
            "a number from 0 to 100",
        )?;
        let positive: fn(f32) -> bool = |x| x >= f32::MIN_POSITIVE && x.is_finite();
        let share: fn(f32) -> bool = |p| p > 0.0 && p <= 1.0;
        Ok(Settings {
            sampling: SamplingParams {
                // GPUs may take what is smaller for 0.
                temperature: if temperature < f32::MIN_POSITIVE { 0.0 } else { temperature },
                top_k,
                top_p: number("top_p", self.top_p, share, "a number above 0 and up to 1")?,
                repetition_penalty: number(
                    "repetition_penalty",
                    self.repetition_penalty,
                    positive,
                    "a number above 0",
                )?,
                max_new_tokens: 0,
                seed: self.seed.map_or_else(any_seed, |seed| (seed ^ (seed >> 32)) as u32),
                ends: Vec::new(),
            },
            max_tokens: self.max_completion_tokens.or(self.max_tokens).or(usual),
            answers,
            stops,
            top_logprobs: top,
        })
    }
}

/// A seed for a request that gives none: different each time.
fn any_seed() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

impl ChatRequest {
    /// The request's settings.
    ///
    /// # Errors
    /// Which field is wrong.
    pub fn settings(&self) -> Result<Settings, Refusal> {
        let wanted = self.logprobs.unwrap_or(false);
        if self.top_logprobs.is_some() && !wanted {
            return Err(Refusal::field("top_logprobs", "\"logprobs\": true beside it", "none"));
        }
        let top = wanted.then(|| self.top_logprobs.unwrap_or(0));
        self.asked.settings(None, (top, "top_logprobs"))
    }

    /// The conversation, as chat templates read it: the texts of a message's parts are joined, and
    /// "developer" is "system".
    ///
    /// # Errors
    /// A message without a role, or with something else than text.
    pub fn conversation(&self) -> Result<Vec<Message>, Refusal> {
        if self.messages.is_empty() {
            return Err(Refusal::field("messages", "at least one message", "none"));
        }
        self.messages.iter().enumerate().map(|(i, message)| self.message(i, message)).collect()
    }

    fn message(&self, i: usize, message: &Map<String, Value>) -> Result<Message, Refusal> {
        let wrong = |expected: &str, found: &Value| {
            Refusal::field("messages", format!("{expected} in message {i}"), found)
        };
        let role = match message.get("role") {
            Some(Value::String(role)) if role == "developer" => "system",
            Some(Value::String(role)) => role,
            other => return Err(wrong("a \"role\"", other.unwrap_or(&Value::Null))),
        };
        let content = match message.get("content").unwrap_or(&Value::Null) {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            Value::Array(parts) => {
                let text = |part: &Value| match (&part["type"], &part["text"]) {
                    (Value::String(kind), Value::String(text)) if kind == "text" => Ok(text.clone()),
                    _ => Err(wrong("parts of type \"text\"", part)),
                };
                parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.concat()
            }
            other => return Err(wrong("a text as \"content\"", other)),
        };
        let own = |(name, _): &(&String, &Value)| !matches!(name.as_str(), "role" | "content");
        let others = message.iter().filter(own).map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(Message { role: role.to_owned(), content, others })
    }
}

impl TextRequest {
    /// The request's settings. As in OpenAI's protocol, an answer has up to 16 tokens unless the request says
    /// otherwise.
    ///
    /// # Errors
    /// Which field is wrong.
    pub fn settings(&self) -> Result<Settings, Refusal> {
        self.asked.settings(Some(16), (self.logprobs, "logprobs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(fields: Value) -> Result<Settings, String> {
        let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let request: ChatRequest = serde_json::from_value(body).map_err(|error| error.to_string())?;
        request.settings().map_err(|refusal| refusal.message)
    }

    #[test]
    fn settings_have_the_protocols_defaults() {
        let settings = chat(json!({})).unwrap();
        let s = &settings.sampling;
        assert_eq!((s.temperature, s.top_p, s.top_k, s.repetition_penalty), (1.0, 1.0, 0, 1.0));
        assert_eq!((settings.max_tokens, settings.answers, settings.top_logprobs), (None, 1, None));
        assert_eq!(chat(json!({ "seed": 7 })).unwrap().sampling.seed, 7);
        assert_eq!(chat(json!({ "temperature": 1e-40 })).unwrap().sampling.temperature, 0.0);
        let text: TextRequest =
            serde_json::from_value(json!({ "prompt": "a", "max_completion_tokens": 200 })).unwrap();
        assert_eq!(text.settings().unwrap().max_tokens, Some(200));
        assert_eq!(chat(json!({ "top_k": -1 })).unwrap().sampling.top_k, 0);
        assert_eq!(chat(json!({ "stop": "a" })).unwrap().stops, ["a"]);
        assert_eq!(chat(json!({ "stop": ["a", "b"] })).unwrap().stops, ["a", "b"]);
        assert_eq!(chat(json!({ "logprobs": true, "top_logprobs": 3 })).unwrap().top_logprobs, Some(3));
        assert_eq!(chat(json!({ "max_tokens": 3, "max_completion_tokens": 5 })).unwrap().max_tokens, Some(5));
        let text: TextRequest = serde_json::from_value(json!({ "prompt": [1, 2], "logprobs": 0 })).unwrap();
        assert!(matches!(&text.prompt, PromptForm::Ids(ids) if *ids == [1, 2]));
        let settings = text.settings().unwrap();
        assert_eq!((settings.max_tokens, settings.top_logprobs), (Some(16), Some(0)));
    }

    #[test]
    fn what_is_wrong_or_not_supported_is_named() {
        for (fields, message) in [
            (json!({ "temperature": -1 }), "temperature: expected a number from 0 to 100, found -1"),
            (json!({ "top_p": 0 }), "top_p: expected a number above 0 and up to 1, found 0"),
            (json!({ "n": 0 }), "n: expected at least 1, found 0"),
            (json!({ "stop": [""] }), "stop: expected texts that are not empty, found an empty one"),
            (json!({ "max_tokens": 0 }), "max_tokens: expected at least 1, found 0"),
            (json!({ "max_completion_tokens": 0 }), "max_completion_tokens: expected at least 1, found 0"),
            (json!({ "repetition_penalty": 0 }), "repetition_penalty: expected a number above 0, found 0"),
            (
                json!({ "chat_template_kwargs": { "enable_thinking": false } }),
                "chat_template_kwargs: this server does not support it; leave it out",
            ),
            (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs: expected 0 to 20, found 21"),
            (json!({ "tools": [{}] }), "tools: this server does not support it; leave it out"),
            (
                json!({ "presence_penalty": 0.5 }),
                "presence_penalty: this server does not support it; leave it out",
            ),
        ] {
            assert_eq!(chat(fields).unwrap_err(), message);
        }
        // Values that change nothing are fine, and so are fields that nobody knows.
        let neutral = json!({ "tools": [], "presence_penalty": 0, "response_format": { "type": "text" },
            "best_of": 1, "user": "me", "metadata": {} });
        assert!(chat(neutral).is_ok());
    }

    #[test]
    fn a_conversation_is_read_as_templates_need_it() {
        let parts = json!({ "messages": [
            { "role": "developer", "content": "Be kind." },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
            { "role": "assistant", "content": null, "name": "x" },
        ] });
        let request: ChatRequest = serde_json::from_value(parts).unwrap();
        let found = request.conversation().unwrap();
        assert_eq!(found[0], Message::new("system", "Be kind."));
        assert_eq!(found[1], Message::new("user", "ab"));
        assert_eq!((found[2].content.as_str(), found[2].others["name"].as_str()), ("", Some("x")));
        for wrong in [
            json!({ "messages": [] }),
            json!({ "messages": [{ "content": "a" }] }),
            json!({ "messages": [{ "role": "user", "content": 3 }] }),
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
        ] {
            let request: ChatRequest = serde_json::from_value(wrong).unwrap();
            assert!(request.conversation().is_err());
        }
    }
}
