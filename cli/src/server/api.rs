//! The routes: requests become jobs of the engine, and its tokens become text.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::access::{Access, guard};
use super::engine::{Engine, Failure, Piece, Served, now};
use super::protocol::{ChatRequest, PromptForm, Refusal, Settings, StreamOptions, TextRequest};
use crate::said::Said;
use aweigh::data::{ChatTokenizer, Prompt};
use aweigh::sample::{Job, SamplingParams, TokenLogprob};

/// The largest body of a request, in bytes.
const MAX_BODY: usize = 8 << 20;

/// What the routes share.
pub struct App {
    /// Answers the requests.
    pub engine: Arc<Engine>,
    /// The model's tokenizer.
    pub tokenizer: ChatTokenizer,
    /// The folder that holds the adapters that may be loaded while the server runs.
    pub adapters: Option<PathBuf>,
    /// The number of the next answer.
    pub next: AtomicU64,
}

type Shared = State<Arc<App>>;
type Body = Result<Bytes, BytesRejection>;
type Answered = Result<Response, Refusal>;

/// The routes of `app`, for those whom `access` lets in.
pub fn routes(app: Arc<App>, access: Access) -> Router {
    let nowhere = |status, message| async move { Refusal::new(status, message).into_response() };
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(text))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/load_lora_adapter", post(load))
        .route("/v1/unload_lora_adapter", post(unload))
        .route("/health", get(health))
        .fallback(move || nowhere(StatusCode::NOT_FOUND, "there is no such path on this server"))
        .method_not_allowed_fallback(move || {
            nowhere(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::new(access), guard))
        .with_state(app)
}

async fn health(State(app): Shared) -> Answered {
    if app.engine.ended() {
        return Err(Failure::Ending.into());
    }
    Ok(Json(json!({ "status": "ok" })).into_response())
}

/// A model as `/v1/models` describes it.
fn described(served: &Served) -> Value {
    json!({
        "id": served.name, "object": "model", "created": served.created, "owned_by": "aweigh",
        "parent": served.parent,
    })
}

async fn models(State(app): Shared) -> Json<Value> {
    let all: Vec<Value> = app.engine.served().iter().map(described).collect();
    Json(json!({ "object": "list", "data": all }))
}

async fn model(State(app): Shared, Path(name): Path<String>) -> Answered {
    let served = app.engine.served();
    let found = served.iter().find(|served| served.name == name).ok_or(Failure::NoModel(name))?;
    Ok(Json(described(found)).into_response())
}

/// The request in a body.
fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let body = body.map_err(|error| Refusal::new(error.status(), error.body_text()))?;
    serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the body: expected a JSON request of this path, found {error}");
        Refusal::new(StatusCode::BAD_REQUEST, message)
    })
}

#[derive(Deserialize)]
struct LoraRequest {
    lora_name: String,
    lora_path: Option<PathBuf>,
}

/// The folder of the adapters that may come and go.
fn adapter_folder(app: &App) -> Result<&PathBuf, Refusal> {
    app.adapters.as_ref().ok_or_else(|| {
        let message = "this server's adapters do not change while it runs: start it with --adapter-dir DIR";
        Refusal::new(StatusCode::FORBIDDEN, message)
    })
}

/// Loads an adapter, as vLLM's `/v1/load_lora_adapter`: only from the folder that the server was given.
async fn load(State(app): Shared, body: Body) -> Answered {
    let LoraRequest { lora_name, lora_path } = read(body)?;
    let root = adapter_folder(&app)?;
    let path = root.join(lora_path.unwrap_or_else(|| PathBuf::from(&lora_name)));
    // Links and ".." are resolved, so that the folder cannot be left.
    let inside = |path: PathBuf| path.starts_with(root).then_some(path);
    let Some(folder) = path.canonicalize().ok().and_then(inside).filter(|folder| folder.is_dir()) else {
        return Err(Refusal::field("lora_path", "a folder inside that of --adapter-dir", path.display()));
    };
    app.engine.load(&lora_name, &folder).await?;
    Ok(Json(json!({ "message": format!("{lora_name} is loaded") })).into_response())
}

/// Drops an adapter, as vLLM's `/v1/unload_lora_adapter`.
async fn unload(State(app): Shared, body: Body) -> Answered {
    let LoraRequest { lora_name, .. } = read(body)?;
    adapter_folder(&app)?;
    app.engine.unload(&lora_name).await?;
    Ok(Json(json!({ "message": format!("{lora_name} is dropped") })).into_response())
}

/// The form of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Chat,
    Text,
}

async fn chat(State(app): Shared, body: Body) -> Answered {
    let request: ChatRequest = read(body)?;
    let settings = request.settings()?;
    let prompt = Prompt::Messages(request.conversation()?);
    let ids = app.tokenizer.encode_prompt(&prompt, None);
    let ids = ids.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let asked = request.asked;
    let stream = asked.stream.unwrap_or(false).then(|| asked.stream_options.unwrap_or_default());
    answer(app, Form::Chat, asked.model, vec![ids], settings, stream).await
}

async fn text(State(app): Shared, body: Body) -> Answered {
    let request: TextRequest = read(body)?;
    let settings = request.settings()?;
    let encode = |text: String| {
        let ids = app.tokenizer.encode_prompt(&Prompt::Text(text), None);
        ids.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))
    };
    let prompts = match request.prompt {
        PromptForm::Text(text) => vec![encode(text)?],
        PromptForm::Ids(ids) => vec![ids],
        PromptForm::Texts(texts) => texts.into_iter().map(encode).collect::<Result<_, _>>()?,
        PromptForm::ManyIds(all) => all,
    };
    let asked = request.asked;
    let stream = asked.stream.unwrap_or(false).then(|| asked.stream_options.unwrap_or_default());
    answer(app, Form::Text, asked.model, prompts, settings, stream).await
}

/// Answers `prompts`: whole, or as a stream.
async fn answer(
    app: Arc<App>,
    form: Form,
    model: Option<String>,
    prompts: Vec<Vec<u32>>,
    settings: Settings,
    stream: Option<StreamOptions>,
) -> Answered {
    let served = app.engine.served();
    let model = match model {
        Some(name) if served.iter().any(|served| served.name == name) => name,
        Some(name) => return Err(Failure::NoModel(name).into()),
        None => served[0].name.clone(),
    };
    let (seats, context) = (app.engine.seating().seats, app.engine.seating().context);
    let count = prompts.len().checked_mul(settings.answers).filter(|count| (1..=seats).contains(count));
    if count.is_none() {
        let (field, found) = match settings.answers {
            1 => ("prompt", prompts.len()),
            answers => ("n", answers),
        };
        return Err(Refusal::field(field, format!("1 to {seats} answers in all"), found));
    }
    let vocab = app.engine.vocab();
    if let Some(id) = prompts.iter().flatten().find(|&&id| id as usize >= vocab) {
        return Err(Refusal::field("prompt", format!("token ids below {vocab}, the vocab_size"), id));
    }
    let mut jobs = Vec::new();
    for prompt in &prompts {
        let room = context.saturating_sub(prompt.len()) as u32;
        if prompt.is_empty() || room == 0 || settings.max_tokens.is_some_and(|most| most > room) {
            let field = if form == Form::Chat { "messages" } else { "prompt" };
            let expected = format!("1 to {context} tokens, the answer's included");
            let answer =
                settings.max_tokens.map_or(String::new(), |most| format!(" and {most} for the answer"));
            let found = format!("{} tokens{answer}", prompt.len());
            return Err(Refusal::field(field, expected, found).coded("context_length_exceeded"));
        }
        let sampling = SamplingParams {
            max_new_tokens: settings.max_tokens.unwrap_or(room),
            ends: app.tokenizer.end_tokens().to_vec(),
            ..settings.sampling.clone()
        };
        jobs.extend((0..settings.answers as u32).map(|sample| Job {
            prompt: prompt.clone(),
            settings: sampling.clone(),
            sample,
            model: 0,
            top_logprobs: settings.top_logprobs,
        }));
    }
    let choices = jobs.iter().enumerate().map(|(index, job)| Choice {
        index,
        form,
        prompt: job.prompt.clone(),
        ids: Vec::new(),
        logprobs: Vec::new(),
        told: 0,
        said: Said::until(settings.stops.clone()),
        text: String::new(),
        wants_logprobs: settings.top_logprobs.is_some(),
        finish: None,
        // Of several answers to a prompt, the first tells what was known of it.
        counts_cached: job.sample == 0,
        cached: 0,
    });
    let choices: Vec<Choice> = choices.collect();
    let pieces = app.engine.answer(&model, jobs)?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let number = app.next.fetch_add(1, Ordering::Relaxed);
    let head = Head { form, number, created: now(), model, prompt_tokens };
    match stream {
        Some(options) => Ok(streamed(app, head, choices, pieces, options)),
        None => whole(&app, &head, choices, pieces).await,
    }
}

/// What all parts of a response have.
#[derive(Clone)]
struct Head {
    form: Form,
    number: u64,
    created: u64,
    model: String,
    prompt_tokens: usize,
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
struct Choice {
    index: usize,
    form: Form,
    prompt: Vec<u32>,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    /// Tokens whose log-probs are told already.
    told: usize,
    said: Said,
    /// The text that is said.
    text: String,
    wants_logprobs: bool,
    finish: Option<&'static str>,
    counts_cached: bool,
    cached: usize,
}

impl Choice {
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
        self.text.push_str(new);
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
        while self.finish.is_none() && end > self.told && length(end)? > self.text.len() {
            end -= 1;
        }
        if self.finish.is_some() && self.ids.last().is_some_and(|id| tokenizer.end_tokens().contains(id)) {
            end -= 1;
        }
        while self.said.stopped() && end > self.told && length(end - 1)? >= self.text.len() {
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
                "message": { "role": "assistant", "content": self.text, "refusal": null },
            }),
            Form::Text => json!({
                "index": self.index, "logprobs": logprobs, "finish_reason": self.finish, "text": self.text,
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
async fn whole(
    app: &App,
    head: &Head,
    choices: Vec<Choice>,
    pieces: Vec<mpsc::UnboundedReceiver<Piece>>,
) -> Answered {
    let each = choices.into_iter().zip(pieces).map(async |(mut choice, mut pieces)| {
        while choice.finish.is_none() {
            let piece = pieces.recv().await.unwrap_or(Err(Failure::Ending));
            choice.take(piece, &app.tokenizer)?;
        }
        let logprobs = choice.new_logprobs(&app.tokenizer)?;
        Ok::<_, Failure>((choice.whole(logprobs), choice.ids.len(), choice.cached))
    });
    let done = futures_util::future::try_join_all(each).await?;
    let (tokens, cached) = done.iter().fold((0, 0), |sum, one| (sum.0 + one.1, sum.1 + one.2));
    let all = done.into_iter().map(|(choice, ..)| choice).collect();
    Ok(Json(head.of(false, all, Some(head.usage(tokens, cached)))).into_response())
}

/// Sends all answers as they grow, as server-sent events.
fn streamed(
    app: Arc<App>,
    head: Head,
    choices: Vec<Choice>,
    pieces: Vec<mpsc::UnboundedReceiver<Piece>>,
    options: StreamOptions,
) -> Response {
    let (events, receiver) = mpsc::unbounded_channel::<Result<Event, Infallible>>();
    tokio::spawn(async move {
        let (app, head, events) = (&*app, &head, &events);
        let each =
            choices.into_iter().zip(pieces).map(|(choice, pieces)| grow(app, head, choice, pieces, events));
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
    Sse::new(UnboundedReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
}

type Events = mpsc::UnboundedSender<Result<Event, Infallible>>;

fn send(events: &Events, data: &Value) {
    let _ = events.send(Ok(Event::default().data(data.to_string())));
}

/// Sends one answer as it grows. Returns its numbers of tokens and of cached tokens; `None` after an error,
/// which is sent too, or when the client has gone.
async fn grow(
    app: &App,
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
        let part = choice.take(piece, &app.tokenizer).and_then(|new| {
            if new.is_empty() && choice.finish.is_none() {
                return Ok(None);
            }
            let delta = if new.is_empty() { json!({}) } else { json!({ "content": new }) };
            let logprobs = choice.new_logprobs(&app.tokenizer)?;
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
