//! Conversations, as the page keeps them: one file each.

use std::path::PathBuf;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::workspace::{Project, create};
use aweigh::error::{Error, Result};
use aweigh::files::{disk as fs, write_whole};

/// A conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chat {
    /// Its name as a file: letters, digits and dashes.
    pub id: String,
    /// Its title.
    pub title: String,
    /// The messages, with the page's own fields.
    pub messages: Vec<Map<String, Value>>,
    /// When it was changed, in milliseconds since 1970.
    #[serde(default)]
    pub changed: u64,
    /// When the conversation that the page has changed was changed before; 0 for a new one. Not kept.
    #[serde(default, skip_serializing)]
    pub based: u64,
    /// What else the page keeps: sampling settings, the system message.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

fn path(project: &Project, id: &str) -> Result<PathBuf> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if id.is_empty() || id.len() > 40 || !id.chars().all(fits) {
        let fix = "reload the page";
        return Err(Error::input("id", "up to 40 letters, digits and dashes", format!("{id:?}"), fix));
    }
    Ok(project.folder.join("chats").join(format!("{id}.json")))
}

/// All conversations, the one that was changed last first. Files that cannot be read are left out.
pub fn list(project: &Project) -> Vec<Chat> {
    let folder = project.folder.join("chats");
    let names = fs::names(&folder).unwrap_or_default();
    let mut all: Vec<Chat> = names
        .iter()
        .filter(|name| name.ends_with(".json"))
        .filter_map(|name| serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok())
        .collect();
    all.sort_by(|a, b| b.changed.cmp(&a.changed).then(a.id.cmp(&b.id)));
    all
}

/// Keeps a conversation.
///
/// # Errors
/// [`Error::Input`] for an id that is no file's name, and if another page has changed it meanwhile;
/// [`Error::Io`]. The file is then as before.
pub fn save(project: &Project, chat: &Chat) -> Result<()> {
    let path = path(project, &chat.id)?;
    let _one = project.chats.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Chat>(&bytes).ok());
    if kept.is_some_and(|kept| kept.changed > chat.based) {
        let fix = "reload the page to see it";
        return Err(Error::input("the conversation", "the last state", "a change by another page", fix));
    }
    create(&project.folder.join("chats"))?;
    write_whole(&path, &serde_json::to_vec(chat).unwrap_or_default())
}

/// Removes a conversation; its flags stay.
///
/// # Errors
/// As [`save`].
pub fn remove(project: &Project, id: &str) -> Result<()> {
    let path = path(project, id)?;
    if fs::exists(&path) {
        fs::remove_file(&path).map_err(|error| Error::io(&path, "remove", error))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::workspace::Workspace;

    #[test]
    fn conversations_are_kept_and_their_names_stay_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let project = Workspace::open(folder.path()).unwrap().project("tiny").unwrap();
        let chat = |id: &str, changed: u64| {
            let (messages, others) = (Vec::new(), Map::new());
            Chat { id: id.into(), title: "t".into(), messages, changed, based: changed, others }
        };
        save(&project, &chat("a-1", 1)).unwrap();
        save(&project, &chat("b", 2)).unwrap();
        for id in ["", "../x", "a/b", "a.b", "..", "c:d", &"x".repeat(41)] {
            assert!(save(&project, &chat(id, 0)).is_err() && remove(&project, id).is_err(), "{id}");
        }
        let ids = |all: Vec<Chat>| all.into_iter().map(|chat| chat.id).collect::<Vec<_>>();
        assert_eq!(ids(list(&project)), ["b", "a-1"]);
        let stale = save(&project, &Chat { based: 1, ..chat("b", 3) }).unwrap_err().to_string();
        assert!(stale.contains("a change by another page"), "{stale}");
        save(&project, &Chat { based: 2, ..chat("b", 3) }).unwrap();
        remove(&project, "b").unwrap();
        remove(&project, "b").unwrap();
        fs::write(project.folder.join("chats/broken.json"), "{").unwrap();
        assert_eq!(ids(list(&project)), ["a-1"]);
    }
}
