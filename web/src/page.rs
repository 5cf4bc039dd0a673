//! Answers the page: the requests that `aweigh app` gets over HTTP come as messages to the worker.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use aweigh_app::app::routes::routes;
use aweigh_app::app::workspace::Workspace;
use aweigh_app::app::{App, Settings, models};
use aweigh_app::args::{GpuArgs, WeightArgs};
use aweigh_app::messages::Logged;
use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::http::Request;
use futures_util::StreamExt;
use tower::ServiceExt;
use wasm_bindgen::prelude::*;

use crate::thrown;

thread_local! {
    static APP: RefCell<Option<(Arc<App>, Router)>> = const { RefCell::new(None) };
}

/// The app and its routes.
fn app() -> Result<(Arc<App>, Router), JsValue> {
    APP.with_borrow(Option::clone).ok_or_else(|| js_sys::Error::new("the app is not open").into())
}

/// Opens the app's files. Call it once, after [`crate::disk::mount`].
///
/// # Errors
/// Those of the browser's storage.
#[wasm_bindgen]
pub fn open() -> Result<(), JsValue> {
    let workspace = Workspace::open(Path::new("/")).map_err(thrown)?;
    let (gpu, weights) = (GpuArgs::default(), WeightArgs::default());
    let app = App::new(Settings { gpu, weights, messages: Arc::new(Logged) }, workspace);
    APP.with_borrow_mut(|own| *own = Some((app.clone(), routes(app))));
    Ok(())
}

/// Removes a model that came from outside; its project stays.
///
/// # Errors
/// A model that is open, or that a run or other work may use; those of the browser.
#[wasm_bindgen]
pub fn remove_model(name: &str) -> Result<(), JsValue> {
    models::remove(&app()?.0, name).map_err(thrown)
}

/// The answer to a request: its head, and its body piece by piece. The request is given up when it is freed.
#[wasm_bindgen]
pub struct Answer {
    status: u16,
    headers: String,
    body: BodyDataStream,
}

#[wasm_bindgen]
impl Answer {
    /// HTTP's status.
    #[wasm_bindgen(getter)]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The headers, as JSON: an array of names and values.
    #[wasm_bindgen(getter)]
    pub fn headers(&self) -> String {
        self.headers.clone()
    }

    /// The next piece of the body; `undefined` at its end.
    ///
    /// # Errors
    /// A body that breaks off.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, JsValue> {
        match self.body.next().await {
            None => Ok(None),
            Some(Ok(piece)) => Ok(Some(piece.into())),
            Some(Err(error)) => Err(js_sys::Error::new(&error.to_string()).into()),
        }
    }
}

/// Answers a request of the page. `project` is the project that the page shows, or empty.
///
/// # Errors
/// A path that is none; [`open`] was not called.
#[wasm_bindgen]
pub async fn ask(method: &str, path: &str, project: &str, body: Vec<u8>) -> Result<Answer, JsValue> {
    let failed = |text: String| JsValue::from(js_sys::Error::new(&text));
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if !project.is_empty() {
        request = request.header("aweigh-project", project);
    }
    let request = request.body(Body::from(body)).map_err(|error| failed(error.to_string()))?;
    let Ok(response) = app()?.1.oneshot(request).await;
    let text = |value: &axum::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let headers: Vec<(String, String)> =
        response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    Ok(Answer {
        status: response.status().as_u16(),
        headers: serde_json::to_string(&headers).unwrap_or_default(),
        body: response.into_body().into_data_stream(),
    })
}
