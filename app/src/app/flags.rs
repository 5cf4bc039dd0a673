//! Flagged answers: one file in TRL's unpaired form, which `aweigh align --train` reads.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use web_time::SystemTime;

use aweigh::data::{Completion, Message, Prompt, Row, Rule, parse_rows};
use aweigh::error::{Error, Result};
use aweigh::files::disk::{self, Stamp};
use aweigh::files::{read_text, write_whole};

/// A flagged answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// The conversation before the answer.
    pub prompt: Prompt,
    /// The answer.
    pub completion: Completion,
    /// Always false: TRL's word for an answer that is not wanted.
    #[serde(default)]
    pub label: bool,
    /// Its number, which no other flag gets: the time at which it was made, in milliseconds since 1970, or
    /// more.
    #[serde(default)]
    pub id: u64,
    /// Why it is flagged, in the user's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// The parts of the answer that were marked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// The model or adapter that gave it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
}

/// The flags, in the order in which they were made.
pub struct Flags {
    path: PathBuf,
    all: Vec<Flag>,
    /// Raised by each change; not used again after a restart either.
    revision: u64,
    next: u64,
    /// The rule that the user wrote; without one it is made of the marked parts.
    rule: Option<Rule>,
    /// The file's time and size when it was read or written last.
    seen: Option<Stamp>,
}

/// What an import did.
#[derive(Debug, Serialize)]
pub struct Imported {
    /// Flags that are new.
    pub added: usize,
    /// Rows that were flagged already.
    pub repeated: usize,
    /// Rows without a flagged answer.
    pub others: usize,
    /// What is odd about the file.
    pub remarks: Vec<String>,
}

/// The fewest flagged prompts of which some are held out, and which share of them is: one in `EVERY`.
const ENOUGH: usize = 10;
const EVERY: usize = 5;
/// The most prompts that are held out.
const MOST_HELD_OUT: usize = 32;

impl Flags {
    /// Reads the file at `path`, if there is one.
    ///
    /// # Errors
    /// [`Error::Input`] with the line that cannot be read.
    pub fn open(path: PathBuf) -> Result<Self> {
        let seen = Stamp::of(&path);
        let own = rule_file(&path);
        let rule = match disk::is_file(&own) {
            true => Some(parsed(&read_text(&own, "the rule")?, &own.display().to_string())?),
            false => None,
        };
        let mut flags = Self { path, all: Vec::new(), revision: millis(), next: 1, rule, seen };
        if disk::is_file(&flags.path) {
            let place = flags.path.display().to_string();
            let text = read_text(&flags.path, &place)?;
            for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let flag: Flag = serde_json::from_str(line).map_err(|error| {
                    let fix = "correct the line or remove it, and start again";
                    Error::input(format!("{place}:{}", i + 1), "a flagged answer", error, fix)
                })?;
                flags.push(flag);
            }
        }
        Ok(flags)
    }

    fn push(&mut self, mut flag: Flag) -> u64 {
        // Larger numbers are not exact in JavaScript.
        if flag.id < self.next || flag.id >= 1 << 53 {
            flag.id = self.next.max(millis());
        }
        let id = flag.id;
        self.next = id + 1;
        self.all.push(flag);
        id
    }

    /// All flags.
    pub fn all(&self) -> &[Flag] {
        &self.all
    }

    /// A number that changes with the flags.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Writes the file, or takes the change back.
    fn save(&mut self, before: Vec<Flag>) -> Result<()> {
        let changed = || {
            let fix = "open the model again, and the change is read";
            Error::input(self.path.display(), "the file as the app wrote it", "a change by hand", fix)
        };
        let written = match Stamp::of(&self.path) == self.seen {
            true => write_whole(&self.path, lines(self.all.iter()).as_bytes()),
            false => Err(changed()),
        };
        match &written {
            Ok(()) => {
                self.revision += 1;
                self.seen = Stamp::of(&self.path);
            }
            Err(_) => self.all = before,
        }
        written
    }

    /// Adds a flag and returns its number. An answer that is flagged already keeps its flag, with the new
    /// note and parts.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty answer, [`Error::Io`]; there is then no flag.
    pub fn add(&mut self, flag: Flag) -> Result<u64> {
        if flag.completion.text().trim().is_empty() {
            let fix = "flag an answer with some text: there is nothing to learn from an empty one";
            return Err(Error::input("completion", "an answer", "an empty one", fix));
        }
        let before = self.all.clone();
        let new = key(&flag);
        let id = match self.all.iter_mut().find(|own| key(own) == new) {
            Some(own) => {
                (own.note, own.parts) = (flag.note, flag.parts);
                own.id
            }
            None => self.push(Flag { id: 0, label: false, ..flag }),
        };
        self.save(before).map(|()| id)
    }

    /// Changes a flag's note and parts.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no such flag, [`Error::Io`].
    pub fn change(&mut self, id: u64, note: String, parts: Vec<String>) -> Result<()> {
        let before = self.all.clone();
        let flag = self.all.iter_mut().find(|flag| flag.id == id).ok_or_else(|| none(id))?;
        (flag.note, flag.parts) = (note, parts);
        self.save(before)
    }

    /// Removes a flag and returns it.
    ///
    /// # Errors
    /// As [`Flags::change`].
    pub fn remove(&mut self, id: u64) -> Result<Flag> {
        let before = self.all.clone();
        let at = self.all.iter().position(|flag| flag.id == id).ok_or_else(|| none(id))?;
        let flag = self.all.remove(at);
        self.save(before).map(|()| flag)
    }

    /// Adds the flagged answers of a file in any form that `aweigh align --train` reads. If `chat` is set,
    /// plain texts become conversations.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that cannot be read, or without a flagged answer; nothing is added then.
    pub fn import(&mut self, bytes: &[u8], name: &str, chat: bool) -> Result<Imported> {
        let parsed = parse_rows(bytes, name, None)?;
        let remarks = parsed.remarks(name);
        let before = self.all.clone();
        let mut seen: HashSet<String> = self.all.iter().map(key).collect();
        let (mut repeated, mut others) = (0, 0);
        for row in parsed.rows {
            match flag_of(row, chat) {
                None => others += 1,
                Some(flag) if !seen.insert(key(&flag)) => repeated += 1,
                Some(flag) => {
                    self.push(flag);
                }
            }
        }
        let added = self.all.len() - before.len();
        if added + repeated == 0 {
            let fix = "give rows with a \"rejected\" answer, or with a \"completion\" and \"label\": false";
            return Err(Error::input(name, "flagged answers", format!("{others} rows without one"), fix));
        }
        self.save(before)?;
        Ok(Imported { added, repeated, others, remarks })
    }

    /// The rule for unwanted answers: the user's own, or one of the marked parts. `None` if nothing is marked
    /// either.
    pub fn rule(&self) -> Option<Rule> {
        self.rule.clone().or_else(|| self.marked())
    }

    /// Keeps the user's own rule; an empty one removes it.
    ///
    /// # Errors
    /// [`Error::Input`] for what is no rule, [`Error::Io`]; the rule is then as before.
    pub fn set_rule(&mut self, text: &str) -> Result<()> {
        let file = rule_file(&self.path);
        let text = text.trim();
        self.rule = if text.is_empty() {
            match disk::remove_file(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io(&file, "remove", error));
                }
                _ => None,
            }
        } else {
            let rule = parsed(text, "the unwanted habit")?;
            write_whole(&file, text.as_bytes())?;
            Some(rule)
        };
        self.revision += 1;
        Ok(())
    }

    /// A rule for answers like the flagged ones: one of the marked parts occurs in them.
    fn marked(&self) -> Option<Rule> {
        let mut parts: Vec<String> = Vec::new();
        for part in self.all.iter().flat_map(|flag| &flag.parts) {
            let part = part.trim().to_lowercase();
            if part.chars().count() >= 3 && !parts.contains(&part) {
                parts.push(part);
            }
        }
        // A rule is one line. A marked word is not a part of another one.
        let edge = |c: Option<char>| if c.is_some_and(char::is_alphanumeric) { r"\b" } else { "" };
        let escaped = |part: &String| {
            let words = part.split_whitespace().map(regex::escape).collect::<Vec<_>>().join(r"\s+");
            format!("{}{words}{}", edge(part.chars().next()), edge(part.chars().last()))
        };
        let escaped: Vec<String> = parts.iter().map(escaped).collect();
        let rule = (!escaped.is_empty()).then(|| format!("match:{}", escaped.join("|")))?;
        rule.parse().ok()
    }
}

/// The file of the user's own rule, beside the flags.
fn rule_file(flags: &Path) -> PathBuf {
    flags.with_file_name("rule.txt")
}

/// A rule that the user wrote.
fn parsed(text: &str, place: &str) -> Result<Rule> {
    let fix = "write match: and words, as in match:as an ai|i cannot";
    text.trim().parse().map_err(|error| Error::input(place, "a rule", error, fix))
}

/// The lines to train on and the lines to hold out: of every five prompts the last, with all its flags.
/// Nothing is held out of fewer than ten prompts.
pub fn split(flags: &[Flag]) -> (String, Option<String>) {
    let mut prompts: HashMap<String, usize> = HashMap::new();
    let places: Vec<usize> = flags
        .iter()
        .map(|flag| {
            let next = prompts.len();
            *prompts.entry(json!(flag.prompt).to_string()).or_insert(next)
        })
        .collect();
    let is_held_out = |at: usize| at % EVERY == EVERY - 1 && at / EVERY < MOST_HELD_OUT;
    let holds_out = prompts.len() >= ENOUGH;
    let (held_out, train): (Vec<_>, Vec<_>) =
        flags.iter().zip(places).partition(|&(_, at)| holds_out && is_held_out(at));
    let text = |flags: Vec<(&Flag, usize)>| lines(flags.into_iter().map(|(flag, _)| flag));
    (text(train), (!held_out.is_empty()).then(|| text(held_out)))
}

/// Milliseconds since 1970.
fn millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

fn none(id: u64) -> Error {
    Error::input("flag", "a flag that exists", format!("number {id}"), "reload the page: it was removed")
}

fn lines<'a>(flags: impl Iterator<Item = &'a Flag>) -> String {
    flags.map(|flag| json!(flag).to_string() + "\n").collect()
}

/// What two flags of the same answer to the same prompt share.
fn key(flag: &Flag) -> String {
    json!([flag.prompt, flag.completion.text()]).to_string()
}

/// The flagged answer of a row.
fn flag_of(row: Row, chat: bool) -> Option<Flag> {
    let completion = row.negative()?.clone();
    let note = row.raw.get("note").and_then(Value::as_str).unwrap_or_default().to_owned();
    let (prompt, completion) = match (row.prompt, chat) {
        (Prompt::Text(text), true) => {
            let prompt = Prompt::Messages(vec![Message::new("user", text)]);
            let completion = Completion::for_prompt(&prompt, completion.text());
            (prompt, completion)
        }
        (prompt, _) => (prompt, completion),
    };
    let (parts, model) = (Vec::new(), String::new());
    Some(Flag { prompt, completion, label: false, id: 0, note, parts, model })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(prompt: &str, answer: &str) -> Flag {
        let prompt = Prompt::Messages(vec![Message::new("user", prompt)]);
        let completion = Completion::for_prompt(&prompt, answer);
        let (note, model) = (String::new(), "tiny".into());
        Flag { prompt, completion, label: false, id: 0, note, parts: vec![], model }
    }

    #[test]
    fn flags_are_kept_in_a_file_that_a_run_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flagged.jsonl");
        let mut flags = Flags::open(path.clone()).unwrap();
        let first = flags.add(flag("a", "rude")).unwrap();
        let second = flags.add(flag("b", "ruder")).unwrap();
        assert!(second > first);
        let marked = Flag { parts: vec!["Rude".into(), "x".into()], ..flag("a", "rude") };
        assert_eq!(flags.add(marked).unwrap(), first, "the same answer has one flag");
        flags.change(second, "why".into(), vec!["you \n (fool)".into()]).unwrap();
        let marked = flags.rule().unwrap();
        assert_eq!(marked.to_string(), r"match:\brude\b|\byou\s+\(fool\)");
        assert!(marked.holds("YOU (FOOL)!") && !marked.holds("a crude word"));
        flags.set_rule(" match:bad ").unwrap();
        assert!(flags.set_rule("bad").is_err());
        let own = |flags: &Flags| flags.rule().map(|rule| rule.to_string());
        assert_eq!(own(&flags).as_deref(), Some("match:bad"));
        assert_eq!(own(&Flags::open(path.clone()).unwrap()).as_deref(), Some("match:bad"));
        flags.set_rule("").unwrap();
        assert_eq!(own(&Flags::open(path.clone()).unwrap()), Some(marked.to_string()));
        let again = Flags::open(path.clone()).unwrap();
        assert_eq!(again.all(), flags.all());
        let parsed = parse_rows(&std::fs::read(&path).unwrap(), "flagged.jsonl", None).unwrap();
        assert_eq!(parsed.rows.len(), 2);
        assert!(parsed.remarks("flagged.jsonl").is_empty());
        assert!(parsed.rows.iter().all(|row| row.negative().is_some()));
        assert_eq!(flags.remove(second).unwrap().completion.text(), "ruder");
        assert!(flags.remove(second).is_err() && flags.change(second, String::new(), vec![]).is_err());
        let mut again = Flags::open(path.clone()).unwrap();
        assert!(again.add(flag("c", "x")).unwrap() > second, "no number is used again");
        let error = flags.add(flag("d", "x")).unwrap_err().to_string();
        assert!(error.contains("found a change by hand"), "{error}");
        assert!(again.add(flag("c", " ")).is_err());
        std::fs::write(&path, "{\"prompt\": 3}\n").unwrap();
        let error = Flags::open(path).err().unwrap().to_string();
        assert!(error.contains("flagged.jsonl:1: expected a flagged answer"), "{error}");
    }

    #[test]
    fn what_cannot_be_written_is_not_flagged() {
        let folder = tempfile::tempdir().unwrap();
        let mut flags = Flags::open(folder.path().join("gone/flagged.jsonl")).unwrap();
        assert!(flags.add(flag("a", "b")).is_err());
        assert!(flags.all().is_empty());
    }

    #[test]
    fn files_are_imported_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut flags = Flags::open(folder.path().join("flagged.jsonl")).unwrap();
        let file = "{\"prompt\": \"a\", \"chosen\": \"good\", \"rejected\": \"bad\"}\n";
        let done = flags.import(file.as_bytes(), "pairs.jsonl", true).unwrap();
        assert_eq!((done.added, done.repeated, done.others), (1, 0, 0));
        assert!(flags.all()[0].prompt.is_conversational());
        let both = "{\"prompt\": \"a\", \"completion\": \"bad\", \"label\": false}\n\
                    {\"prompt\": \"b\", \"completion\": \"fine\", \"label\": true}\n";
        let done = flags.import(both.as_bytes(), "more.jsonl", true).unwrap();
        assert_eq!((done.added, done.repeated, done.others), (0, 1, 1));
        for broken in ["{", "", "{\"prompt\": \"b\", \"completion\": \"fine\", \"label\": true}\n"] {
            assert!(flags.import(broken.as_bytes(), "broken.jsonl", true).is_err(), "{broken}");
        }
        assert_eq!(flags.all().len(), 1);
    }

    #[test]
    fn a_prompt_is_trained_on_or_held_out_never_both() {
        let folder = tempfile::tempdir().unwrap();
        let mut flags = Flags::open(folder.path().join("flagged.jsonl")).unwrap();
        for i in 0..9 {
            flags.add(flag(&format!("p{i}"), "x")).unwrap();
        }
        assert_eq!(split(flags.all()).1, None);
        for i in 9..25 {
            flags.add(flag(&format!("p{i}"), "x")).unwrap();
            flags.add(flag(&format!("p{i}"), "y")).unwrap();
        }
        let (train, held_out) = split(flags.all());
        let held_out = held_out.unwrap();
        // 9 prompts with one flag, 16 with two; the prompts 4, 9, 14, 19 and 24 are held out.
        assert_eq!((train.lines().count(), held_out.lines().count()), (41 - 9, 9));
        for prompt in ["\"p4\"", "\"p9\"", "\"p24\""] {
            assert!(held_out.contains(prompt) && !train.contains(prompt));
        }
    }
}
