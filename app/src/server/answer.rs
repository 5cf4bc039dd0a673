//! Answers in the protocol's form: the engine's tokens become text, whole or as a stream of events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::engine::{Failure, Piece};
use super::protocol::{Refusal, StreamOptions};
use crate::said::Said;
use crate::tasks;
use aweigh::data::ChatTokenizer;
use aweigh::sample::{Job, TokenLogprob};

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Of `/v1/chat/completions`.
    Chat,
    /// Of `/v1/completions`.
    Text,
}

/// What all parts of a response have.
pub struct Head {
    /// The kind of request.
    pub form: Form,
    /// The answer's number: part of its id.
    pub number: u64,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
}

impl Head {
    fn of(&self, chunk: bool, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let (kind, object) = match (self.form, chunk) {
            (Form::Chat, false) => ("chatcmpl", "chat.completion"),
            (Form::Chat, true) => ("chatcmpl", "chat.completion.chunk"),
            (Form::Text, _) => ("cmpl", "text_completion"),
        };
        let mut all = json!({
            "id": format!("{kind}-{}-{}", self.created, self.number), "object": object,
            "created": self.created, "model": self.model, "choices": choices,
        });
        if let Some(usage) = usage {
            all["usage"] = usage;
        }
        all
    }

    fn usage(&self, completion_tokens: usize, cached: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }
}

/// One answer that is being sampled.
pub struct Choice {
    index: usize,
    form: Form,
    prompt: Vec<u32>,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    /// Tokens whose log-probs are told already.
    told: usize,
    said: Said,
    wants_logprobs: bool,
    finish: Option<&'static str>,
    counts_cached: bool,
    cached: usize,
}

impl Choice {
    /// The answer to `job`, the `index`-th of its request, up to the first of `stops`.
    pub fn new(form: Form, index: usize, job: &Job, stops: Vec<String>) -> Self {
        Self {
            index,
            form,
            prompt: job.prompt.clone(),
            ids: Vec::new(),
            logprobs: Vec::new(),
            told: 0,
            said: Said::until(stops),
            wants_logprobs: job.top_logprobs.is_some(),
            finish: None,
            // Of several answers to a prompt, the first tells what was known of it.
            counts_cached: job.sample == 0,
            cached: 0,
        }
    }

    /// Takes the engine's news. Returns the text that is new.
    fn take(&mut self, piece: Piece, tokenizer: &ChatTokenizer) -> Result<String, Failure> {
        let news = piece?;
        self.ids.extend(&news.ids);
        self.logprobs.extend(news.logprobs);
        self.cached = if self.counts_cached { news.cached_tokens } else { 0 };
        let text = tokenizer.decode_answer(&self.prompt, &self.ids)?;
        let new = match news.end {
            None => self.said.more(&text),
            Some(ended) => {
                self.finish = Some(if ended?.ended { "stop" } else { "length" });
                self.said.rest(&text)
            }
        };
        let new = new.to_owned();
        if self.said.stopped() {
            self.finish = Some("stop");
        }
        Ok(new)
    }

    /// The log-probs of the tokens that are not told yet and whose text is said, in the form of the protocol.
    /// The token that ended the answer is not among them, nor are those of a stop sequence.
    fn new_logprobs(&mut self, tokenizer: &ChatTokenizer) -> Result<Value, Failure> {
        if !self.wants_logprobs {
            return Ok(Value::Null);
        }
        let mut end = self.logprobs.len();
        let length =
            |count: usize| Ok::<_, Failure>(tokenizer.decode_answer(&self.prompt, &self.ids[..count])?.len());
        while self.finish.is_none() && end > self.told && length(end)? > self.said.so_far().len() {
            end -= 1;
        }
        if self.finish.is_some() && self.ids.last().is_some_and(|id| tokenizer.end_tokens().contains(id)) {
            end -= 1;
        }
        while self.said.stopped() && end > self.told && length(end - 1)? >= self.said.so_far().len() {
            end -= 1;
        }
        let until = end.max(self.told);
        let from = std::mem::replace(&mut self.told, until);
        let name = |id: u32| tokenizer.decode(&[id], false).unwrap_or_default();
        // A token that is only a part of a character has no text of its own.
        let bytes = |text: &str| match text.contains(char::REPLACEMENT_CHARACTER) {
            true => Value::Null,
            false => json!(text.as_bytes()),
        };
        let entry = |id: u32, logprob: f32| {
            let token = name(id);
            json!({ "token": token, "bytes": bytes(&token), "logprob": logprob })
        };
        let range = from..self.told;
        let tokens = range.clone().map(|i| (self.ids[i], &self.logprobs[i]));
        if self.form == Form::Chat {
            let content: Vec<Value> = tokens
                .map(|(id, own)| {
                    let mut all = entry(id, own.logprob);
                    all["top_logprobs"] = own.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
                    all
                })
                .collect();
            return Ok(json!({ "content": content, "refusal": null }));
        }
        let mut offsets = Vec::new();
        for i in range {
            offsets.push(tokenizer.decode_answer(&self.prompt, &self.ids[..i])?.chars().count());
        }
        let top = |own: &TokenLogprob| -> Value {
            own.top
                .iter()
                .map(|&(id, logprob)| (name(id), json!(logprob)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        Ok(json!({
            "tokens": tokens.clone().map(|(id, _)| name(id)).collect::<Vec<_>>(),
            "token_logprobs": tokens.clone().map(|(_, own)| own.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.map(|(_, own)| top(own)).collect::<Vec<_>>(),
            "text_offset": offsets,
        }))
    }

    /// The finished answer.
    fn whole(&self, logprobs: Value) -> Value {
        match self.form {
            Form::Chat => json!({
                "index": self.index, "logprobs": logprobs, "finish_reason": self.finish,
                "message": { "role": "assistant", "content": self.said.so_far(), "refusal": null },
            }),
            Form::Text => json!({
                "index": self.index, "logprobs": logprobs, "finish_reason": self.finish,
                "text": self.said.so_far(),
            }),
        }
    }

    /// A part of the answer in a stream.
    fn part(&self, delta: Value, text: &str, logprobs: Value) -> Value {
        match self.form {
            Form::Chat => json!({
                "index": self.index, "logprobs": logprobs, "finish_reason": self.finish, "delta": delta,
            }),
            Form::Text => json!({
                "index": self.index, "logprobs": logprobs, "finish_reason": self.finish, "text": text,
            }),
        }
    }
}

/// Waits for all answers.
///
/// # Errors
/// Why one of them failed.
pub async fn whole(
    tokenizer: &ChatTokenizer,
    head: &Head,
    choices: Vec<Choice>,
    pieces: Vec<mpsc::UnboundedReceiver<Piece>>,
) -> Result<Value, Failure> {
    let each = choices.into_iter().zip(pieces).map(async |(mut choice, mut pieces)| {
        while choice.finish.is_none() {
            let piece = pieces.recv().await.unwrap_or(Err(Failure::Ending));
            choice.take(piece, tokenizer)?;
        }
        let logprobs = choice.new_logprobs(tokenizer)?;
        Ok::<_, Failure>((choice.whole(logprobs), choice.ids.len(), choice.cached))
    });
    let done = futures_util::future::try_join_all(each).await?;
    let (tokens, cached) = done.iter().fold((0, 0), |sum, one| (sum.0 + one.1, sum.1 + one.2));
    let all = done.into_iter().map(|(choice, ..)| choice).collect();
    Ok(head.of(false, all, Some(head.usage(tokens, cached))))
}

/// Sends all answers as they grow, as server-sent events.
pub fn streamed(
    tokenizer: Arc<ChatTokenizer>,
    head: Head,
    choices: Vec<Choice>,
    pieces: Vec<mpsc::UnboundedReceiver<Piece>>,
    options: StreamOptions,
) -> Response {
    let (events, receiver) = mpsc::unbounded_channel::<Result<Event, Infallible>>();
    tasks::beside(async move {
        let (tokenizer, head, events) = (&*tokenizer, &head, &events);
        let each = choices
            .into_iter()
            .zip(pieces)
            .map(|(choice, pieces)| grow(tokenizer, head, choice, pieces, events));
        let done = futures_util::future::join_all(each).await;
        if events.is_closed() {
            return;
        }
        if let Some(counts) = done.into_iter().collect::<Option<Vec<_>>>().filter(|_| options.include_usage) {
            let (tokens, cached) = counts.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            send(events, &head.of(true, Vec::new(), Some(head.usage(tokens, cached))));
        }
        let _ = events.send(Ok(Event::default().data("[DONE]")));
    });
    let stream = Sse::new(UnboundedReceiverStream::new(receiver));
    // In a tab nothing is between the page and its worker that would close a silent connection.
    #[cfg(not(target_arch = "wasm32"))]
    let stream = stream.keep_alive(axum::response::sse::KeepAlive::default());
    stream.into_response()
}

type Events = mpsc::UnboundedSender<Result<Event, Infallible>>;

fn send(events: &Events, data: &Value) {
    let _ = events.send(Ok(Event::default().data(data.to_string())));
}

/// Sends one answer as it grows. Returns its numbers of tokens and of cached tokens; `None` after an error,
/// which is sent too, or when the client has gone.
async fn grow(
    tokenizer: &ChatTokenizer,
    head: &Head,
    mut choice: Choice,
    mut pieces: mpsc::UnboundedReceiver<Piece>,
    events: &Events,
) -> Option<(usize, usize)> {
    if choice.form == Form::Chat {
        let delta = json!({ "role": "assistant", "content": "" });
        send(events, &head.of(true, vec![choice.part(delta, "", Value::Null)], None));
    }
    while choice.finish.is_none() {
        let piece = tokio::select! {
            piece = pieces.recv() => piece.unwrap_or(Err(Failure::Ending)),
            () = events.closed() => return None,
        };
        let part = choice.take(piece, tokenizer).and_then(|new| {
            if new.is_empty() && choice.finish.is_none() {
                return Ok(None);
            }
            let delta = if new.is_empty() { json!({}) } else { json!({ "content": new }) };
            let logprobs = choice.new_logprobs(tokenizer)?;
            Ok(Some(choice.part(delta, &new, logprobs)))
        });
        match part {
            Ok(part) => part.into_iter().for_each(|part| send(events, &head.of(true, vec![part], None))),
            Err(failure) => {
                send(events, &Refusal::from(failure).body());
                return None;
            }
        }
    }
    Some((choice.ids.len(), choice.cached))
}
