//! What programs ask in OpenAI's protocol: the answers of `aweigh serve`, and of the page's chat.
//!
//! [`engine`] has what owns the GPU and answers; [`api`] turns requests into its jobs, [`answer`] turns its
//! tokens into text, and [`access`] decides who may ask.

pub mod access;
pub mod answer;
pub mod api;
pub mod engine;
pub mod protocol;
mod worker;
