//! Meters: what a run did to the model's answers.

pub mod helpdesk;
