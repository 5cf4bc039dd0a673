//! Rows as other programs write them, turned into TRL's forms: ShareGPT, Alpaca, questions with answers, Open
//! WebUI's feedback, and verdicts in a column of any name.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::jsonl::kind;
use super::row::is_nothing;
use crate::error::{Error, Result};

/// The form in which a file's rows were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowForm {
    /// One of TRL's.
    Trl,
    /// `conversations` with `from` and `value` (ShareGPT, LLaMA-Factory).
    ShareGpt,
    /// `instruction`, `input` and `output` (Alpaca).
    Alpaca,
    /// `question` and `answer`, `query` and `response`, or `prompt` and `response`.
    Answers,
    /// Open WebUI's export of feedback: ratings with the conversations.
    OpenWebUi,
}

impl RowForm {
    /// The form's name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trl => "TRL",
            Self::ShareGpt => "ShareGPT",
            Self::Alpaca => "Alpaca",
            Self::Answers => "questions and answers",
            Self::OpenWebUi => "Open WebUI's feedback",
        }
    }
}

/// The fields of a row in one of TRL's forms, and the form in which it was written. A row in no known form is
/// left as it is. `place` names it in messages.
///
/// # Errors
/// [`Error::Input`] for a row that is in a known form but lacks a part of it.
pub(super) fn to_trl(map: Map<String, Value>, place: &str) -> Result<(Map<String, Value>, RowForm)> {
    let has = |name: &str| map.get(name).is_some_and(|value| !value.is_null());
    let is_text = |name: &str| map.get(name).is_some_and(Value::is_string);
    let pair = has("chosen") && has("rejected");
    let answered_by_response = has("response") && has("label") && !has("completion") && !pair;
    // What has one of TRL's forms stays, whatever other columns there are. A prompt beside a response is such
    // a form too, a prompt alone, unless there is a verdict on the response.
    if has("messages") || has("prompt") && !answered_by_response {
        return Ok((map, RowForm::Trl));
    }
    if has("snapshot") && has("data") {
        return Ok((open_webui(&map, place)?, RowForm::OpenWebUi));
    }
    if has("conversations") {
        return Ok((share_gpt(map, place)?, RowForm::ShareGpt));
    }
    let pair_of_texts = is_text("chosen") && is_text("rejected");
    if is_text("instruction") && (pair_of_texts || !pair && (has("output") || has("response"))) {
        return Ok((alpaca(map, place)?, RowForm::Alpaca));
    }
    for [question, answer] in [["question", "answer"], ["query", "response"], ["prompt", "response"]] {
        if has(question) && has(answer) && !has("completion") && !pair {
            return Ok((answered(map, question, answer), RowForm::Answers));
        }
    }
    Ok((map, RowForm::Trl))
}

/// A question and its answer as messages.
fn answered(mut map: Map<String, Value>, question: &str, answer: &str) -> Map<String, Value> {
    let mut turn = |name: &str, role: &str| match map.remove(name) {
        Some(Value::String(text)) => json!([{ "role": role, "content": text }]),
        other => other.unwrap_or_default(),
    };
    let (prompt, completion) = (turn(question, "user"), turn(answer, "assistant"));
    map.insert("prompt".into(), prompt);
    map.insert("completion".into(), completion);
    map
}

/// ShareGPT's turns as messages; `chosen` and `rejected` beside them are one turn each (LLaMA-Factory).
fn share_gpt(mut map: Map<String, Value>, place: &str) -> Result<Map<String, Value>> {
    let turn = |name: &str, turn: &Value| {
        let (from, value) = (turn["from"].as_str(), turn["value"].as_str());
        let role = match from {
            Some("human" | "user") => "user",
            Some("gpt" | "assistant" | "chatgpt" | "bot" | "model") => "assistant",
            Some("system") => "system",
            _ => "",
        };
        match value {
            Some(text) if !role.is_empty() => Ok(json!({ "role": role, "content": text })),
            // Some call their messages so, with role and content.
            _ if turn["role"].is_string() && turn.get("content").is_some() => Ok(turn.clone()),
            _ => {
                let found = from.map_or_else(|| kind(turn).to_owned(), |from| format!("\"from\": {from:?}"));
                let expected = "turns with \"from\" (human, gpt or system) and \"value\"";
                let fix = "write the conversation as \"messages\", with \"role\" and \"content\"";
                Err(Error::input(format!("{place}: {name}"), expected, found, fix))
            }
        }
    };
    let turns = map.remove("conversations").unwrap_or_default();
    let Value::Array(turns) = turns else {
        let fix = "write the conversation as \"messages\", with \"role\" and \"content\"";
        return Err(Error::input(format!("{place}: conversations"), "a list of turns", kind(&turns), fix));
    };
    let mut messages = turns.iter().map(|own| turn("conversations", own)).collect::<Result<Vec<_>>>()?;
    let begins = messages.first().is_some_and(|first| first["role"] == "system");
    if let Some(Value::String(system)) = map.get("system").filter(|value| !begins && !is_nothing(value)) {
        messages.insert(0, json!({ "role": "system", "content": system }));
        map.remove("system");
    }
    let mut paired = false;
    for name in ["chosen", "rejected"] {
        if let Some(own @ Value::Object(_)) = map.get(name) {
            let own = turn(name, own)?;
            map.insert(name.into(), json!([own]));
            paired = true;
        }
    }
    map.insert(if paired { "prompt" } else { "messages" }.into(), messages.into());
    Ok(map)
}

/// Alpaca's instruction and input (Dolly's context), on a line of its own, as the user's message, after the
/// turns of `history`; `output` (`response`) as the answer, or `chosen` and `rejected`.
fn alpaca(mut map: Map<String, Value>, place: &str) -> Result<Map<String, Value>> {
    let wrong = |name: &str, expected: &str, found: &Value| {
        let fix = "correct it, or write the row as \"messages\"";
        Error::input(format!("{place}: {name}"), expected, kind(found), fix)
    };
    let mut text = |names: [&str; 2]| {
        for name in names {
            match map.remove(name) {
                Some(Value::String(text)) => return Ok(Some(text)),
                Some(Value::Null) | None => {}
                Some(other) => return Err(wrong(name, "a text", &other)),
            }
        }
        Ok(None)
    };
    let instruction = text(["instruction"; 2])?.unwrap_or_default();
    let input = text(["input", "context"])?.unwrap_or_default();
    let system = text(["system"; 2])?.unwrap_or_default();
    let output = text(["output", "response"])?;
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let mut prompt = Vec::new();
    if !system.trim().is_empty() {
        prompt.push(message("system", &system));
    }
    let history = map.remove("history").unwrap_or_default();
    for turn in history.as_array().into_iter().flatten() {
        match (turn[0].as_str(), turn[1].as_str()) {
            (Some(asked), Some(answer)) => {
                prompt.extend([message("user", asked), message("assistant", answer)])
            }
            _ => return Err(wrong("history", "pairs of a question and an answer", turn)),
        }
    }
    if !history.is_array() && !is_nothing(&history) {
        return Err(wrong("history", "pairs of a question and an answer", &history));
    }
    let question = if input.trim().is_empty() { instruction } else { format!("{instruction}\n{input}") };
    prompt.push(message("user", &question));
    if let Some(output) = output {
        map.insert("completion".into(), json!([message("assistant", &output)]));
    }
    for name in ["chosen", "rejected"] {
        if let Some(Value::String(text)) = map.get(name) {
            let answer = json!([message("assistant", text)]);
            map.insert(name.into(), answer);
        }
    }
    map.insert("prompt".into(), prompt.into());
    Ok(map)
}

/// A rating of Open WebUI: the rated message is the completion, those before it on its branch are the
/// prompt, and thumbs up or down is the label.
fn open_webui(map: &Map<String, Value>, place: &str) -> Result<Map<String, Value>> {
    let missing = |what: &str| {
        let fix = "export the feedback again (Admin Panel, Evaluations, Feedbacks), with its conversations";
        Error::input(place, what.to_owned(), "none", fix)
    };
    let snapshot = &map["snapshot"];
    let places = [&snapshot["chat"]["chat"]["history"], &snapshot["chat"]["history"], &snapshot["history"]];
    let history =
        places.into_iter().find(|history| history.is_object()).ok_or_else(|| missing("a history"))?;
    let find = |id: &str| match &history["messages"] {
        Value::Object(all) => all.get(id),
        Value::Array(all) => all.iter().find(|message| message["id"] == id),
        _ => None,
    };
    let id = map.get("meta").and_then(|meta| meta["message_id"].as_str());
    let id = id.or_else(|| history["currentId"].as_str()).ok_or_else(|| missing("a message_id"))?;
    let rated = find(id).ok_or_else(|| missing("the rated message in the history"))?;
    let mut before = Vec::new();
    let mut message = rated;
    // Each message knows the one before it; a damaged file may have a circle.
    while let Some(parent) = message["parentId"].as_str().and_then(find)
        && before.len() < 10_000
    {
        before.push(json!({ "role": parent["role"], "content": parent["content"] }));
        message = parent;
    }
    before.reverse();
    let mut row = Map::new();
    row.insert("prompt".into(), before.into());
    row.insert("completion".into(), json!([{ "role": rated["role"], "content": rated["content"] }]));
    let rating = map["data"]["rating"].as_f64().or_else(|| map["data"]["rating"].as_str()?.parse().ok());
    if let Some(rating) = rating.filter(|rating| *rating != 0.0) {
        row.insert("label".into(), (rating > 0.0).into());
    }
    for name in ["id", "created_at"] {
        row.extend(map.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    for name in ["reason", "comment", "model_id"] {
        let value = &map["data"][name];
        if !is_nothing(value) {
            row.insert(name.into(), value.clone());
        }
    }
    Ok(row)
}

/// The column that says which answers are flagged: `--label NAME`, or `NAME<=X` for numbers on a scale, of
/// which X and less are flagged.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    name: String,
    most_flagged: Option<f64>,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, most) = match text.split_once("<=") {
            Some((name, most)) => (name, Some(most)),
            None => (text, None),
        };
        let number = |most: &str| most.trim().parse::<f64>().ok().filter(|most| most.is_finite());
        let most_flagged = match most {
            None => None,
            Some(most) => Some(number(most).ok_or_else(|| format!("{most:?} is not a number"))?),
        };
        match name.trim() {
            "" => Err("give a column's name, such as rating, or rating<=2".into()),
            name => Ok(Self { name: name.to_owned(), most_flagged }),
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.most_flagged {
            Some(most) => write!(f, "{}<={most}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl serde::Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Label {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Label {
    /// Replaces the column with `label` (true: approved, false: flagged).
    ///
    /// # Errors
    /// [`Error::Input`] for a value that is no verdict, or a row without the column.
    pub(super) fn apply(&self, map: &mut Map<String, Value>, place: &str) -> Result<Verdict> {
        let found = match map.remove(&self.name) {
            Some(value) => value,
            None => {
                let names = map.keys().cloned().collect::<Vec<_>>().join(", ");
                let fix = "name one of these columns";
                return Err(Error::input(place, format!("a column {:?}", self.name), names, fix));
            }
        };
        let verdict = self.verdict(&found).ok_or_else(|| {
            let expected = match self.most_flagged {
                Some(_) => "a number",
                None => "a verdict: true or false, 1 or -1, 1 or 0, up or down, good or bad",
            };
            let fix = format!("correct it; for numbers on a scale give --label \"{}<=2\"", self.name);
            Error::input(format!("{place}: {}", self.name), expected, found.to_string(), fix)
        })?;
        if verdict != Verdict::None {
            map.insert("label".into(), (verdict == Verdict::Approved).into());
        }
        Ok(verdict)
    }

    /// `None` for a value that is not understood.
    fn verdict(&self, value: &Value) -> Option<Verdict> {
        use Verdict::{Approved, Flagged, Minus, Zero};
        let text = match value {
            Value::Null => return Some(Verdict::None),
            Value::Bool(own) => own.to_string(),
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.trim().to_lowercase(),
            _ => return None,
        };
        if ["", "nan", "none", "null"].contains(&text.as_str()) {
            return Some(Verdict::None);
        }
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
        if let Some(most) = self.most_flagged {
            return number.map(|number| if number > most { Approved } else { Flagged });
        }
        Some(match (number, text.replace(['_', '-', ' '], "").as_str()) {
            (Some(1.0), _) => Approved,
            (Some(0.0), _) => Zero,
            (Some(-1.0), _) => Minus,
            (Some(_), _) => return None,
            (_, "true" | "yes" | "y" | "good" | "up" | "thumbsup" | "thumbup" | "like" | "liked") => Approved,
            (_, "positive" | "accepted" | "approved" | "chosen" | "safe" | "👍") => Approved,
            (_, "false" | "no" | "n" | "bad" | "down" | "thumbsdown" | "thumbdown" | "dislike") => Flagged,
            (_, "disliked" | "negative" | "rejected" | "flagged" | "unsafe" | "👎") => Flagged,
            _ => return None,
        })
    }
}

/// What a column of verdicts says of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    None,
    Approved,
    Flagged,
    /// 0: flagged, or nothing if other rows have -1.
    Zero,
    /// -1: flagged.
    Minus,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(row: Value) -> (Value, RowForm) {
        let Value::Object(map) = row else { panic!() };
        let (map, form) = to_trl(map, "f:1").unwrap();
        (map.into(), form)
    }

    #[test]
    fn other_forms_become_trls() {
        let user = json!({ "role": "user", "content": "q" });
        let answer = json!({ "role": "assistant", "content": "a" });
        let turns = json!([{ "from": "human", "value": "q" }, { "from": "gpt", "value": "a" }]);
        let (row, form) = converted(json!({ "conversations": turns, "label": false }));
        assert_eq!((row, form), (json!({ "label": false, "messages": [user, answer] }), RowForm::ShareGpt));
        let (row, _) = converted(json!({
            "conversations": [{ "from": "human", "value": "q" }], "system": "s",
            "chosen": { "from": "gpt", "value": "a" }, "rejected": { "from": "gpt", "value": "b" },
        }));
        assert_eq!(row["prompt"], json!([{ "role": "system", "content": "s" }, user]));
        assert_eq!((&row["chosen"], row.get("system")), (&json!([answer]), None));
        let (row, form) = converted(json!({ "instruction": "q", "input": "", "output": "a", "id": 1 }));
        assert_eq!(form, RowForm::Alpaca);
        assert_eq!(row, json!({ "id": 1, "completion": [answer], "prompt": [user] }));
        let (row, _) = converted(json!({ "instruction": "q", "input": "i", "chosen": "a", "rejected": "b" }));
        assert_eq!(row["prompt"][0]["content"], "q\ni");
        assert_eq!(row["rejected"][0]["content"], "b");
        let (row, form) = converted(json!({ "question": "q", "answer": "a", "label": true }));
        assert_eq!(form, RowForm::Answers);
        assert_eq!(row, json!({ "prompt": [user], "completion": [answer], "label": true }));
        let dolly = json!({ "instruction": "q", "context": "c", "response": "a", "history": [["h", "i"]] });
        let (row, _) = converted(dolly);
        assert_eq!(row["prompt"].as_array().unwrap().len(), 3);
        assert_eq!((&row["prompt"][2]["content"], &row["completion"]), (&json!("q\nc"), &json!([answer])));
        let Value::Object(map) = json!({ "instruction": "q", "output": 42 }) else { panic!() };
        assert!(to_trl(map, "f:1").unwrap_err().to_string().contains("f:1: output: expected a text"));
        let (row, form) = converted(json!({ "prompt": "q", "response": "a", "label": true }));
        assert_eq!((form, &row["completion"]), (RowForm::Answers, &json!([answer])));
        // What has one of TRL's forms stays, whatever else there is.
        for trl in [
            json!({ "prompt": "q", "completion": "a", "question": "x", "answer": "y" }),
            json!({ "prompt": "q", "completion": "a", "label": true, "response": "x", "instruction": "i" }),
            json!({ "prompt": "q", "response": "old" }),
            json!({ "prompt": "q", "chosen": "a", "rejected": "b", "response": "x", "label": true }),
            json!({ "chosen": [user, answer], "rejected": [user, user], "instruction": "i" }),
            json!({ "messages": [user, answer], "conversations": [] }),
        ] {
            assert_eq!(converted(trl.clone()), (trl, RowForm::Trl));
        }
    }

    #[test]
    fn a_rating_of_open_webui_is_a_labelled_row() {
        fn message(role: &str, content: &str, before: Option<&str>) -> Value {
            json!({ "role": role, "content": content, "parentId": before })
        }
        let messages = json!({
            "1": message("user", "q", None), "2": message("assistant", "a", Some("1")),
            "3": message("user", "more", Some("2")), "4": message("assistant", "b", Some("3")),
            "5": message("assistant", "another", Some("3")),
        });
        let export = |rating: Value, snapshot: Value| {
            json!({
                "id": "x", "type": "rating", "data": { "rating": rating, "reason": "rude", "comment": "" },
                "meta": { "message_id": "4" }, "snapshot": snapshot,
            })
        };
        let history = json!({ "messages": messages, "currentId": "5" });
        for snapshot in [json!({ "history": history }), json!({ "chat": { "chat": { "history": history } } })]
        {
            let (row, form) = converted(export(json!(-1), snapshot.clone()));
            assert_eq!(form, RowForm::OpenWebUi);
            let roles: Vec<&str> =
                row["prompt"].as_array().unwrap().iter().map(|m| m["content"].as_str().unwrap()).collect();
            assert_eq!(roles, ["q", "a", "more"]);
            assert_eq!(row["completion"][0]["content"], "b");
            assert_eq!(
                (&row["label"], &row["reason"], row.get("comment")),
                (&json!(false), &json!("rude"), None)
            );
            assert_eq!(converted(export(json!("1"), snapshot)).0["label"], true);
        }
        let Value::Object(map) = export(json!(1), json!({ "history": { "messages": {} } })) else { panic!() };
        let error = to_trl(map, "f:1").unwrap_err().to_string();
        assert!(
            error.contains("the rated message") && error.contains("export the feedback again"),
            "{error}"
        );
    }

    #[test]
    fn verdicts_are_understood() {
        let applied = |label: &str, value: Value| {
            let mut map = Map::from_iter([("r".to_owned(), value)]);
            label.parse::<Label>().unwrap().apply(&mut map, "f:1").map_err(|e| e.to_string())?;
            Ok::<_, String>(map.get("label").and_then(Value::as_bool))
        };
        for good in
            [json!(true), json!(1), json!("1"), json!("Thumbs up"), json!("👍"), json!("good"), json!(1.0)]
        {
            assert_eq!(applied("r", good.clone()), Ok(Some(true)), "{good}");
        }
        for bad in
            [json!(false), json!(0), json!(-1), json!("-1"), json!("thumbs_down"), json!("BAD"), json!("no")]
        {
            assert_eq!(applied("r", bad.clone()), Ok(Some(false)), "{bad}");
        }
        assert_eq!(applied("r", Value::Null), Ok(None));
        for none in [json!(" "), json!("NaN"), json!("none")] {
            assert_eq!(applied("r", none.clone()), Ok(None), "{none}");
            assert_eq!(applied("r<=2", none), Ok(None));
        }
        for stars in 1..=5 {
            assert_eq!(applied("r<=2", json!(stars)), Ok(Some(stars > 2)));
        }
        assert!(applied("r", json!(3)).unwrap_err().contains("--label \"r<=2\""));
        assert!(applied("r", json!("meh")).unwrap_err().contains("f:1: r: expected a verdict"));
        assert!(applied("other", json!(1)).unwrap_err().contains("a column \"other\""));
        assert!("".parse::<Label>().is_err() && "r<=x".parse::<Label>().is_err());
        assert_eq!("r <= 2".parse::<Label>().unwrap().to_string(), "r<=2");
    }
}
