//! The user's own choices between an answer before and an answer after a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::workspace::Project;
use crate::server::engine::now;
use aweigh::error::Result;
use aweigh::eval::compare::LEAST_PROMPTS;
use aweigh::eval::stats::mean;
use aweigh::files::{disk, read_text, write_whole};

/// Which of two answers is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The base model's.
    Before,
    /// The run's.
    After,
    /// Neither.
    Same,
}

/// One choice.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Vote {
    /// The run.
    pub run: u32,
    /// The prompt.
    pub prompt: String,
    /// The base model's answer.
    pub before: String,
    /// The run's answer.
    pub after: String,
    /// The choice.
    pub choice: Choice,
    /// Whether the user did not know which was which.
    pub blind: bool,
    /// When, in seconds since 1970.
    #[serde(default)]
    pub time: u64,
}

fn path(project: &Project) -> PathBuf {
    project.folder.join("votes.jsonl")
}

/// Keeps a vote.
///
/// # Errors
/// [`aweigh::Error::Io`].
pub fn add(project: &Project, vote: Vote) -> Result<()> {
    let path = path(project);
    let line = json!(Vote { time: now(), ..vote }).to_string() + "\n";
    let before = if disk::exists(&path) { read_text(&path, "votes")? } else { String::new() };
    write_whole(&path, (before + &line).as_bytes())
}

/// The blind votes on run `id`, and the others: how often each choice was made. Of the blind ones also the
/// share in which the run's answer was preferred, a tie counting half, with its interval, once there are
/// enough of them.
pub fn tally(project: &Project, id: u32) -> Value {
    let text = disk::read_to_string(path(project)).unwrap_or_default();
    let votes: Vec<Vote> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|vote: &Vote| vote.run == id)
        .collect();
    let of = |blind: bool| {
        let own: Vec<Choice> =
            votes.iter().filter(|vote| vote.blind == blind).map(|vote| vote.choice).collect();
        let count = |choice| own.iter().filter(|own| **own == choice).count();
        let score = |choice: &Choice| match choice {
            Choice::Before => 0.0,
            Choice::Same => 0.5,
            Choice::After => 1.0,
        };
        let share = (own.len() >= LEAST_PROMPTS).then(|| mean(&own.iter().map(score).collect::<Vec<_>>()));
        json!({
            "before": count(Choice::Before), "after": count(Choice::After), "same": count(Choice::Same),
            "share": share,
        })
    };
    json!({ "blind": of(true), "open": of(false) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::workspace::Workspace;

    #[test]
    fn votes_are_counted_by_run_and_by_whether_they_were_blind() {
        let folder = tempfile::tempdir().unwrap();
        let project = Workspace::open(folder.path()).unwrap().project("tiny").unwrap();
        let vote = |run, choice, blind| {
            let (prompt, before, after) = ("p".into(), "a".into(), "b".into());
            add(&project, Vote { run, prompt, before, after, choice, blind, time: 0 }).unwrap();
        };
        for _ in 0..11 {
            vote(1, Choice::After, true);
        }
        vote(1, Choice::Before, true);
        vote(1, Choice::Same, false);
        vote(2, Choice::Before, true);
        let found = tally(&project, 1);
        assert_eq!((&found["blind"]["after"], &found["blind"]["before"]), (&json!(11), &json!(1)));
        assert_eq!(found["blind"]["share"]["value"], json!(11.0 / 12.0));
        assert_eq!((&found["open"]["same"], &found["open"]["share"]), (&json!(1), &Value::Null));
        assert_eq!(tally(&project, 3)["blind"]["share"], Value::Null);
    }
}
