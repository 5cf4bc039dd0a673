//! The routes: requests become jobs of the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::access::{Access, guard};
use super::answer::{Choice, Form, Head, streamed, whole};
use super::engine::{Engine, Failure, Served, now};
use super::protocol::{ChatRequest, PromptForm, Refusal, Settings, StreamOptions, TextRequest};
use aweigh::data::{ChatTokenizer, Prompt};
use aweigh::sample::{Job, SamplingParams};

/// The largest body of a request, in bytes.
const MAX_BODY: usize = 8 << 20;

/// What the routes share.
pub struct App {
    /// Answers the requests.
    pub engine: Arc<Engine>,
    /// The model's tokenizer.
    pub tokenizer: Arc<ChatTokenizer>,
    /// The folder that holds the adapters that may be loaded while the server runs.
    pub adapters: Option<PathBuf>,
    /// The number of the next answer.
    pub next: AtomicU64,
}

type Shared = State<Arc<App>>;
/// A request's body.
pub type Body = Result<Bytes, BytesRejection>;
/// A response, or why there is none.
pub type Answered = Result<Response, Refusal>;

/// The routes of `app`. The caller adds [`guarded`].
pub fn routes(app: Arc<App>) -> Router {
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
        .with_state(app)
}

/// `routes`, for those whom `access` lets in.
pub fn guarded(routes: Router, access: Access) -> Router {
    routes.layer(middleware::from_fn_with_state(Arc::new(access), guard))
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
///
/// # Errors
/// A body that is too large, or not JSON of this form.
pub fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
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
    let choice = |(index, job)| Choice::new(form, index, job, settings.stops.clone());
    let choices = jobs.iter().enumerate().map(choice).collect();
    let pieces = app.engine.answer(&model, jobs)?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let number = app.next.fetch_add(1, Ordering::Relaxed);
    let head = Head { form, number, created: now(), model, prompt_tokens };
    match stream {
        Some(options) => Ok(streamed(app.tokenizer.clone(), head, choices, pieces, options)),
        None => Ok(Json(whole(&app.tokenizer, &head, choices, pieces).await?).into_response()),
    }
}
