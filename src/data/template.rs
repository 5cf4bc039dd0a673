//! Chat templates: the Jinja text that turns a conversation into the string a model was trained on.
//!
//! Rendering equals transformers' `apply_chat_template`: blocks are trimmed (`trim_blocks`, `lstrip_blocks`),
//! loop controls and Python's string and dict methods work, `raise_exception`, `strftime_now`, `tojson` and
//! `{% generation %}` are known, `tools` and `documents` are None, and the special tokens are variables.
//! Templates are untrusted, so a render has a budget of work ([`FUEL`]) and access to its messages and these
//! variables only.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Environment, ErrorKind, State};

use super::{Message, clock, python_json};
use crate::error::{Error, Result, setting};

/// The limit on the work of one render: about one unit per instruction and one per 64 bytes of output. This
/// is enough for thousands of messages (SmolLM2's template spends about 20 on each), and low enough that a
/// render ends within seconds and 640 MB.
pub const FUEL: u64 = 10_000_000;

const NAME: &str = "chat_template";

/// A compiled chat template with the variables that every render sees.
pub struct ChatTemplate {
    env: Environment<'static>,
    globals: Vec<(String, Value)>,
    origin: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// `specials` are the special tokens by name (`bos_token`, `eos_token`, ...), `args` further variables
    /// such as Qwen3's `enable_thinking`; both are visible to the template. `now` is what `strftime_now`
    /// prints, in seconds since 1970 (UTC). `origin` is the name for messages. Fails when the text is not a
    /// template.
    pub fn new(
        source: &str,
        specials: &BTreeMap<String, String>,
        args: &serde_json::Map<String, serde_json::Value>,
        now: Option<i64>,
        origin: &str,
    ) -> Result<Self> {
        let mut env = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        env.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build().map_err(|e| broken(origin, &e))?);
        env.set_debug(false);
        env.set_fuel(Some(FUEL));
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(python_method);
        env.add_filter("tojson", python_json::tojson);
        // In Jinja2 None is not iterable: templates test `tools` this way before they count them.
        env.add_test("iterable", |value: Value| match value.kind() {
            ValueKind::None => false,
            ValueKind::Undefined | ValueKind::String => true,
            _ => value.try_iter().is_ok(),
        });
        env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
        });
        env.add_function("strftime_now", move |format: String| strftime_now(&format, now));
        env.add_template_owned(NAME, replace_generation_tags(source)).map_err(|e| broken(origin, &e))?;
        let mut globals: Vec<_> =
            specials.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str()))).collect();
        globals.push(("tools".into(), Value::from(())));
        globals.push(("documents".into(), Value::from(())));
        globals.extend(args.iter().map(|(name, value)| (name.clone(), from_json(value))));
        Ok(Self { env, globals, origin: origin.to_owned() })
    }

    /// Renders `messages`; with `add_generation_prompt` the text ends where the assistant begins to speak.
    ///
    /// Fails when the template refuses the messages (`raise_exception`: a role it does not know, roles out of
    /// order), uses an undefined variable, or runs out of [`FUEL`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages: Value = messages
            .iter()
            .map(|m| {
                let own =
                    [("role", Value::from(m.role.as_str())), ("content", Value::from(m.content.as_str()))];
                let others = m.others.iter().map(|(key, value)| (key.as_str(), from_json(value)));
                Value::from_pairs(own.into_iter().chain(others))
            })
            .collect();
        let own = [("messages", messages), ("add_generation_prompt", Value::from(add_generation_prompt))];
        let globals = self.globals.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let context = Value::from_pairs(globals.chain(own));
        let template = self.env.get_template(NAME).map_err(|e| broken(&self.origin, &e))?;
        template.render(context).map_err(|e| self.refused(&e))
    }

    /// The error of a failed render, for the user.
    fn refused(&self, error: &minijinja::Error) -> Error {
        let raised = root(error).detail().and_then(|detail| detail.strip_prefix(RAISED)).map(str::to_owned);
        if let Some(message) = raised {
            return Error::input(
                &self.origin,
                "messages that the model's chat template accepts",
                format!("a refusal: {message}"),
                "change the roles or their order in the data as the template requires",
            );
        }
        if root(error).kind() == ErrorKind::OutOfFuel {
            return Error::input(
                &self.origin,
                format!("a chat template that renders within {FUEL} steps"),
                "one that is still running",
                "shorten the conversation, or fix the template's loop",
            );
        }
        Error::input(
            &self.origin,
            "a chat template that renders these messages",
            describe(error),
            format!("check the template, or give another with {}", setting("chat_template")),
        )
    }
}

/// Prefix of errors from `raise_exception`, which distinguishes them from the template engine's errors.
const RAISED: &str = "raise_exception: ";

/// An error's text, without the engine's dump of the source.
fn describe(error: &minijinja::Error) -> String {
    let root = root(error);
    let detail = root.detail().unwrap_or("no details");
    match root.line() {
        Some(line) => format!("{}: {detail} (template line {line})", root.kind()),
        None => format!("{}: {detail}", root.kind()),
    }
}

/// The innermost error: an error raised in a macro is wrapped by those of its callers.
fn root(error: &minijinja::Error) -> &minijinja::Error {
    let mut current = error;
    while let Some(source) =
        std::error::Error::source(current).and_then(|source| source.downcast_ref::<minijinja::Error>())
    {
        current = source;
    }
    current
}

fn broken(origin: &str, error: &minijinja::Error) -> Error {
    Error::input(
        origin,
        "a Jinja chat template",
        describe(error),
        format!(
            "download the model's chat template again, or give another with {}",
            setting("chat_template")
        ),
    )
}

fn strftime_now(format: &str, now: Option<i64>) -> Result<String, minijinja::Error> {
    let failed = |text: String| minijinja::Error::new(ErrorKind::InvalidOperation, text);
    let now = now.ok_or_else(|| failed("strftime_now: this system has no clock".into()))?;
    clock::strftime(format, now).map_err(|found| failed(format!("strftime_now: {found}")))
}

/// Python's methods: those of minijinja's own compatibility layer, and a few more that templates use.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    let Some(text) = value.as_str().filter(|_| value.kind() == ValueKind::String) else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
    };
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let found = if text.contains(separator) { separator } else { "" };
            Ok([before, found, after].into_iter().map(Value::from).collect())
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            let found = if text.contains(separator) { separator } else { "" };
            Ok([before, found, after].into_iter().map(Value::from).collect())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// `{% generation %}` marks the assistant's tokens in transformers and prints nothing. Here it becomes a
/// plain scope, which has the same whitespace rules and the same visibility of variables.
fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let word = tag[2..end].trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" | "endgeneration" => {
                let scope = if word == "generation" { "with" } else { "endwith" };
                out.push_str(&tag[..end].replace(word, scope));
                rest = &tag[end..];
            }
            _ => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out + rest
}

/// A JSON value as a value of the template engine.
fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(integer) => Value::from(integer),
            None => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
    }
}

#[cfg(test)]
mod tests;
