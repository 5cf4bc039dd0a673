//! What the page asks. Errors have the form of `/v1`: `{"error": {"message"}}`.
//!
//! | path | |
//! |---|---|
//! | `GET /app/state` | the model, the run and the work that go on, and the number of flags |
//! | `GET /app/models`, `POST /app/models/describe` | models to open; what one takes |
//! | `GET /app/prompts` | prompts to begin with |
//! | `POST /app/model`, `DELETE /app/model` | opens a project and its model; takes it off the GPU |
//! | `/app/flags`, `/app/flags/ID`, `POST /app/flags/import` | the flagged answers |
//! | `PUT /app/rule`, `POST /app/rule/matches` | the rule for unwanted answers; which answers it finds |
//! | `/app/chats`, `/app/chats/ID` | conversations |
//! | `POST /app/plan` | what a run would take |
//! | `/app/runs`, `/app/runs/ID` | runs |
//! | `POST /app/runs/ID/pause`, `finish`, `resume` | what a run is to do |
//! | `POST /app/runs/ID/work`, `DELETE /app/work` | compares or exports; cancels that |
//! | `GET /app/runs/ID/report`, `GET /app/runs/ID/files/...` | the report; exported files |
//! | `/app/votes` | choices between answers |
//! | `/v1/...` | OpenAI's protocol, as `aweigh serve` |

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post, put};
use axum::{Json, Router, middleware};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::workspace::Project;
use super::{App, chats, exports, flags, jobs, models, page, runs, votes};
use crate::report_page::html;
use crate::server::access::Access;
use crate::server::api::{Answered, Body, guarded, read};
use crate::server::protocol::Refusal;
use crate::tasks::apart;
use aweigh::error::{Error, Result};

type Shared = State<Arc<App>>;

/// The most bytes of a file of flags, and of answers that are searched.
const MAX_BODY: usize = 64 << 20;

/// The routes of `app`, for this machine's own pages and programs.
pub fn routes(app: Arc<App>) -> Router {
    let mut all = Router::new()
        .route("/app/state", get(state))
        .route("/app/models", get(known))
        .route("/app/prompts", get(prompts))
        .route("/app/models/describe", post(describe))
        .route("/app/model", post(open).delete(close))
        .route("/app/flags", get(all_flags).post(add_flag))
        .route("/app/flags/import", post(import).layer(DefaultBodyLimit::max(MAX_BODY)))
        .route("/app/flags/{id}", put(change_flag).delete(remove_flag))
        .route("/app/rule", put(set_rule))
        .route("/app/rule/matches", post(matches).layer(DefaultBodyLimit::max(MAX_BODY)))
        .route("/app/chats", get(all_chats))
        .route("/app/chats/{id}", put(save_chat).delete(remove_chat))
        .route("/app/plan", post(plan))
        .route("/app/runs", get(all_runs).post(start))
        .route("/app/runs/{id}", get(one_run).delete(remove_run))
        .route("/app/runs/{id}/pause", post(pause))
        .route("/app/runs/{id}/finish", post(finish))
        .route("/app/runs/{id}/resume", post(resume))
        .route("/app/runs/{id}/work", post(work))
        .route("/app/runs/{id}/report", get(report))
        .route("/app/runs/{id}/files/{item}", get(whole_file))
        .route("/app/runs/{id}/files/{item}/{name}", get(file_of))
        .route("/app/work", delete(cancel))
        .route("/app/votes", post(vote))
        .route("/v1/{*path}", any(protocol))
        .route("/health", any(protocol));
    for (path, kind, text) in page::FILES {
        all = all.route(path, get(move || async move { page::file(kind, text) }));
    }
    let nowhere = || async { Refusal::new(StatusCode::NOT_FOUND, "there is no such path").into_response() };
    let all = all.layer(middleware::from_fn_with_state(app.clone(), same_project));
    guarded(all.fallback(nowhere).with_state(app), Access { loopback: true, key: None })
}

/// A page says which project it shows, so that nothing of it goes into another one that was opened meanwhile.
async fn same_project(State(app): Shared, request: Request, next: Next) -> Response {
    let shown = request.headers().get("aweigh-project").and_then(|value| value.to_str().ok());
    let open = app.current.project().map(|project| project.id()).unwrap_or_default();
    if shown.is_some_and(|shown| shown != open) {
        let message = "another model was opened on another page: reload this one";
        return Refusal::new(StatusCode::CONFLICT, message).into_response();
    }
    next.run(request).await
}

fn answered(value: impl Serialize) -> Answered {
    Ok(Json(value).into_response())
}

/// The open project.
fn project(app: &App) -> Result<Arc<Project>> {
    let none = || Error::input("the app", "an open model", "none", "choose one on the page \"Model\"");
    app.current.project().ok_or_else(none)
}

/// Work on the open project, whose result is the answer.
async fn on_project<T: Serialize + Send + 'static>(
    app: Arc<App>,
    work: impl AsyncFnOnce(&Arc<App>, &Arc<Project>) -> Result<T> + Send + 'static,
) -> Answered {
    answered(apart(async move || work(&app, &project(&app)?).await).await?)
}

async fn protocol(State(app): Shared, mut request: Request) -> Response {
    // The parts of the path are found again by the model's own routes.
    request.extensions_mut().clear();
    match app.current.routes() {
        Some(routes) => routes.oneshot(request).await.into_response(),
        None => {
            let message = "no model answers: open one on the page \"Model\"";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message).into_response()
        }
    }
}

async fn state(State(app): Shared) -> Answered {
    let told = async move || {
        let project = app.current.project();
        let flags = project.as_ref().map(|project| {
            let flags = project.flags();
            json!({ "count": flags.all().len(), "revision": flags.revision() })
        });
        let run = project.as_ref().and_then(|project| app.live(project)).map(|live| live.view());
        let work = project.as_ref().and_then(|project| app.job(project)).map(|job| job.view());
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"), "folder": app.workspace.folder(),
            "project": project.as_ref().map(|project| &project.model),
            "project_id": project.as_ref().map(|project| project.id()),
            "project_folder": project.as_ref().map(|project| &project.folder),
            "last": app.workspace.last_model(),
            "model": app.current.status(), "flags": flags, "run": run, "work": work,
        }))
    };
    answered(apart(told).await?)
}

async fn known(State(app): Shared) -> Answered {
    answered(apart(async move || Ok(models::known(&app))).await?)
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Named {
    fn checked(self) -> std::result::Result<String, Refusal> {
        let name = self.name.trim().to_owned();
        if name.is_empty() { Err(Refusal::field("name", "a model", "nothing")) } else { Ok(name) }
    }
}

async fn prompts(State(app): Shared) -> Answered {
    on_project(app, async |_, project| Ok(models::prompts(&project.model))).await
}

async fn describe(State(app): Shared, body: Body) -> Answered {
    let name = read::<Named>(body)?.checked()?;
    answered(apart(async move || models::describe(&app, &name).await).await?)
}

async fn open(State(app): Shared, body: Body) -> Answered {
    let name = read::<Named>(body)?.checked()?;
    apart(async move || app.open(&name)).await?;
    answered(json!({}))
}

async fn close(State(app): Shared) -> Answered {
    apart(async move || {
        app.current.close(None).await;
        Ok(())
    })
    .await?;
    answered(json!({}))
}

async fn all_flags(State(app): Shared) -> Answered {
    on_project(app, async |_, project| {
        let flags = project.flags();
        Ok(json!({ "flags": flags.all(), "revision": flags.revision(), "rule": flags.rule() }))
    })
    .await
}

async fn add_flag(State(app): Shared, body: Body) -> Answered {
    let flag: flags::Flag = read(body)?;
    on_project(app, async |_, project| Ok(json!({ "id": project.flags().add(flag)? }))).await
}

#[derive(Deserialize)]
struct Changed {
    #[serde(default)]
    note: String,
    #[serde(default)]
    parts: Vec<String>,
}

async fn change_flag(State(app): Shared, Path(id): Path<u64>, body: Body) -> Answered {
    let Changed { note, parts } = read(body)?;
    on_project(app, async move |_, project| project.flags().change(id, note, parts)).await
}

async fn remove_flag(State(app): Shared, Path(id): Path<u64>) -> Answered {
    on_project(app, async move |_, project| project.flags().remove(id)).await
}

async fn import(State(app): Shared, Query(named): Query<Named>, body: Body) -> Answered {
    let bytes = body.map_err(|error| Refusal::new(error.status(), error.body_text()))?;
    on_project(app, async move |app, project| {
        // Without a model on the GPU it is not known whether there is a chat template: most have one.
        let chat = !matches!(app.current.status(), super::current::Status::Ready { chat: false, .. });
        project.flags().import(&bytes, &named.name, chat)
    })
    .await
}

#[derive(Deserialize)]
struct Written {
    rule: String,
}

async fn set_rule(State(app): Shared, body: Body) -> Answered {
    let Written { rule } = read(body)?;
    on_project(app, async move |_, project| project.flags().set_rule(&rule)).await
}

#[derive(Deserialize)]
struct Texts {
    texts: Vec<String>,
}

/// For each text whether the rule holds; false for all without a rule.
async fn matches(State(app): Shared, body: Body) -> Answered {
    let Texts { texts } = read(body)?;
    on_project(app, async move |_, project| {
        let rule = project.flags().rule();
        let holds = |text: &String| rule.as_ref().is_some_and(|rule| rule.holds(text));
        Ok(texts.iter().map(holds).collect::<Vec<_>>())
    })
    .await
}

async fn all_chats(State(app): Shared) -> Answered {
    on_project(app, async |_, project| Ok(chats::list(project))).await
}

async fn save_chat(State(app): Shared, Path(id): Path<String>, body: Body) -> Answered {
    let chat = chats::Chat { id, ..read(body)? };
    on_project(app, async move |_, project| chats::save(project, &chat)).await
}

async fn remove_chat(State(app): Shared, Path(id): Path<String>) -> Answered {
    on_project(app, async move |_, project| chats::remove(project, &id)).await
}

async fn plan(State(app): Shared, body: Body) -> Answered {
    let wanted: runs::Wanted = read(body)?;
    on_project(app, async move |app, project| runs::plan(app, project, &wanted).await).await
}

async fn all_runs(State(app): Shared) -> Answered {
    on_project(app, async |app, project| Ok(runs::list(app, project))).await
}

async fn start(State(app): Shared, body: Body) -> Answered {
    let wanted: runs::Wanted = read(body)?;
    on_project(app, async move |app, project| Ok(json!({ "id": runs::start(app, project, &wanted)? }))).await
}

async fn one_run(State(app): Shared, Path(id): Path<u32>) -> Answered {
    on_project(app, async move |app, project| {
        let mut details = runs::details(app, project, id)?;
        details["exports"] = exports::list(project, id).into();
        details["votes"] = votes::tally(project, id);
        Ok(details)
    })
    .await
}

async fn remove_run(State(app): Shared, Path(id): Path<u32>) -> Answered {
    on_project(app, async move |app, project| runs::remove(app, project, id).await).await
}

/// The run `id`, if it goes on.
fn going(app: &App, id: u32) -> std::result::Result<Arc<super::live::Live>, Refusal> {
    let project = app.current.project();
    let live = project.and_then(|project| app.live(&project));
    let live = live.filter(|live| live.goes_on() && live.view().id == id);
    live.ok_or_else(|| Refusal::new(StatusCode::CONFLICT, format!("run {id} does not go on")))
}

async fn pause(State(app): Shared, Path(id): Path<u32>) -> Answered {
    going(&app, id)?.pause();
    answered(json!({}))
}

async fn finish(State(app): Shared, Path(id): Path<u32>) -> Answered {
    going(&app, id)?.finish();
    answered(json!({}))
}

#[derive(Deserialize)]
struct Resumed {
    keep_chat: bool,
}

async fn resume(State(app): Shared, Path(id): Path<u32>, body: Body) -> Answered {
    let Resumed { keep_chat } = read(body)?;
    on_project(app, async move |app, project| runs::resume(app, project, id, keep_chat)).await
}

async fn work(State(app): Shared, Path(id): Path<u32>, body: Body) -> Answered {
    let wanted: jobs::Wanted = read(body)?;
    on_project(app, async move |app, project| jobs::begin(app, project, id, wanted)).await
}

async fn cancel(State(app): Shared) -> Answered {
    let project = app.current.project();
    if let Some(job) = project.and_then(|project| app.job(&project)) {
        job.cancel();
    }
    answered(json!({}))
}

async fn vote(State(app): Shared, body: Body) -> Answered {
    let vote: votes::Vote = read(body)?;
    on_project(app, async move |_, project| {
        let id = vote.run;
        votes::add(project, vote)?;
        Ok(votes::tally(project, id))
    })
    .await
}

async fn report(State(app): Shared, Path(id): Path<u32>) -> Answered {
    let text = apart(async move || {
        let project = project(&app)?;
        let evals: Vec<Value> = runs::comparison(&project, id).into_iter().collect();
        html(&format!("{}: run {id}", project.model), &[runs::read(&project, id)?], &evals)
    });
    Ok(page::report(text.await?))
}

async fn whole_file(state: Shared, Path((id, item)): Path<(u32, String)>, request: Request) -> Answered {
    download(state, id, &item, None, request).await
}

async fn file_of(
    state: Shared,
    Path((id, item, name)): Path<(u32, String, String)>,
    request: Request,
) -> Answered {
    download(state, id, &item, Some(&name), request).await
}

/// Sends an exported file to be saved.
async fn download(State(app): Shared, id: u32, item: &str, name: Option<&str>, request: Request) -> Answered {
    let path = exports::file(&*project(&app)?, id, item, name);
    let path = path.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "there is no such file"))?;
    let shown = name.unwrap_or(item).replace(['"', '\\'], "_");
    let response = sent(&path, request).await?;
    let as_file = format!("attachment; filename=\"{shown}\"");
    Ok(([(header::CONTENT_DISPOSITION, as_file)], response).into_response())
}

/// A file's bytes as a response, or the part of them that the request asks for.
#[cfg(not(target_arch = "wasm32"))]
async fn sent(path: &std::path::Path, request: Request) -> std::result::Result<Response, Refusal> {
    let Ok(response) = tower_http::services::ServeFile::new(path).oneshot(request).await;
    Ok(response.into_response())
}

/// A file's bytes as a response, part by part.
#[cfg(target_arch = "wasm32")]
async fn sent(path: &std::path::Path, _: Request) -> std::result::Result<Response, Refusal> {
    use std::io::Read;
    /// Bytes of a part.
    const PART: usize = 1 << 20;
    let file = aweigh::files::disk::File::open(path);
    let file = file.map_err(|error| Error::io(path, "read", error))?;
    let parts = futures_util::stream::try_unfold(file, async |mut file| {
        let mut part = vec![0; PART];
        let read = file.read(&mut part)?;
        part.truncate(read);
        Ok::<_, std::io::Error>((read > 0).then_some((part, file)))
    });
    Ok(axum::body::Body::from_stream(parts).into_response())
}
