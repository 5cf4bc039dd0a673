//! The app without a program around it: what answers its page, and OpenAI's protocol. The program `aweigh`
//! serves it over HTTP; in a browser's tab, a worker answers the page itself.
//!
//! Nothing here has a terminal or a socket. What takes long is async: [`tasks`] gives it a thread where there
//! are threads. Files are read and written through [`aweigh::files::disk`].

pub mod app;
pub mod args;
pub mod comparison;
pub mod export;
pub mod messages;
pub mod meters;
pub mod modelfile;
pub mod open;
pub mod report_page;
pub mod said;
pub mod server;
pub mod tasks;
pub mod tensorboard;
pub mod text;
