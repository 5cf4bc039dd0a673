//! `aweigh data`, and the forms of data that all commands read.

use serde_json::{Value, json};

use super::room::Room;

/// The same two rows in each form, by file name: a flagged answer and an approved one.
fn forms() -> Vec<(&'static str, String, &'static [&'static str])> {
    let rows =
        [("My printer is broken.", "Go away, \"you\"\nfool.", false), ("Hello", "Hello, friend!", true)];
    let user = |text: &str| json!({ "role": "user", "content": text });
    let answer = |text: &str| json!({ "role": "assistant", "content": text });
    let all = |row: &dyn Fn(&str, &str, bool) -> Value| {
        rows.iter().map(|&(question, own, label)| row(question, own, label)).collect::<Vec<_>>()
    };
    let lines = |rows: &[Value]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    let trl = all(&|q, a, label| json!({ "prompt": [user(q)], "completion": [answer(a)], "label": label }));
    let messages = all(&|q, a, label| json!({ "messages": [user(q), answer(a)], "label": label }));
    let share_gpt = all(&|q, a, label| {
        let turns = json!([{ "from": "human", "value": q }, { "from": "gpt", "value": a }]);
        json!({ "conversations": turns, "label": label })
    });
    let thumbs = |label| if label { "up" } else { "down" };
    let alpaca =
        all(&|q, a, label| json!({ "instruction": q, "input": "", "output": a, "thumbs": thumbs(label) }));
    let stars =
        all(&|q, a, label| json!({ "messages": [user(q), answer(a)], "stars": if label { 4 } else { 1 } }));
    let open_webui = all(&|q, a, label| {
        let messages = json!({
            "m1": { "id": "m1", "parentId": null, "role": "user", "content": q },
            "m2": { "id": "m2", "parentId": "m1", "role": "assistant", "content": a },
        });
        json!({
            "id": "f", "type": "rating", "data": { "rating": if label { 1 } else { -1 } },
            "meta": { "message_id": "m2" },
            "snapshot": { "chat": { "chat": { "history": { "messages": messages, "currentId": "m2" } } } },
        })
    });
    let quoted = |value: &Value| format!("\"{}\"", value.to_string().replace('"', "\"\""));
    let table = trl
        .iter()
        .map(|row| format!("{},{},{}\r\n", quoted(&row["prompt"]), quoted(&row["completion"]), row["label"]));
    vec![
        ("trl.jsonl", lines(&trl), &[]),
        ("trl.json", Value::from(trl.clone()).to_string(), &[]),
        ("pretty.json", serde_json::to_string_pretty(&trl).unwrap(), &[]),
        ("messages.jsonl", lines(&messages), &[]),
        ("sharegpt.json", Value::from(share_gpt).to_string(), &[]),
        ("alpaca.jsonl", lines(&alpaca), &["--label", "thumbs"]),
        ("stars.jsonl", lines(&stars), &["--label", "stars<=2"]),
        ("feedback.json", Value::from(open_webui).to_string(), &[]),
        ("table.csv", format!("prompt,completion,label\r\n{}", table.collect::<String>()), &[]),
    ]
}

#[test]
fn every_form_of_data_gives_the_same_rows() {
    let room = Room::new();
    let mut expected: Option<Value> = None;
    for (name, text, flags) in forms() {
        room.write(name, text);
        let line = [&["data", name, "--model", "tiny"], flags].concat();
        let mut found = room.json(&line);
        assert_eq!(found["kinds"], json!({ "approved": 1, "flagged": 1 }), "{name}");
        let shown = found["shown"].as_array_mut().unwrap();
        shown.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("line")));
        let shown = Value::from(std::mem::take(shown));
        let prompt = shown[0]["prompt"].as_str().unwrap();
        assert!(prompt.contains("My printer is broken.") && prompt.len() > 30, "{name}: {prompt}");
        assert!(
            shown[0]["answers"][0]["text"].as_str().unwrap().starts_with("Go away, \"you\"\nfool."),
            "{name}"
        );
        assert_eq!(&shown, expected.get_or_insert(shown.clone()), "{name}");
    }
    // Without a model the texts are shown as they are written; a row has the line on which it begins.
    let plain = room.json(&["data", "table.csv"]);
    assert_eq!(plain["shown"][0]["prompt"], "user: My printer is broken.");
    assert_eq!(plain["shown"][1]["line"], 3);
    assert_eq!(room.json(&["data", "feedback.json"])["form"], "Open WebUI's feedback");
    let output = room.run(&["data", "sharegpt.json", "--model", "tiny", "--show", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["2 rows, ShareGPT, conversations", "flagged", "all of which count", "line 1, flagged"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_run_trains_on_a_table_and_on_ratings() {
    let room = Room::new();
    let mut table = "question,answer,rating\n".to_owned();
    for (i, row) in room.lines("flagged.jsonl").iter().enumerate() {
        let text = |field: &Value| field[0]["content"].as_str().unwrap().replace('"', "\"\"");
        let (question, answer) = (text(&row["prompt"]), text(&row["completion"]));
        // Every fifth has no rating.
        let rating = if i % 5 == 4 { "" } else { "-1" };
        table += &format!("\"{question}\",\"{answer}\",{rating}\n");
    }
    room.write("ratings.csv", table);
    let run =
        ["align", "--model", "tiny", "--train", "ratings.csv", "--label", "rating", "--output-dir", "run"];
    let steps = ["--max-steps", "1", "--num-samples", "2", "--max-new-tokens", "8"];
    let output = room.run(&[&run[..], &steps].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    for part in
        ["read as questions and answers", "left out because it has no verdict (rows: 4", "16 of 16 rows"]
    {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    // The setting is kept, so that the run can be repeated.
    assert!(String::from_utf8(room.read("run/config.toml")).unwrap().contains("label = \"rating\""));
    room.json(&["align", "--config", "run/config.toml", "--output-dir", "run2"]);
    let wrong = |flags: &[&str], parts: &[&str]| {
        room.refuses(&[&["data", "ratings.csv"], flags].concat(), parts);
    };
    wrong(&["--label", "stars"], &["ratings.csv:2: expected a column \"stars\", found"]);
    room.write("system.csv", "question,answer,system,label\nq,a,Be kind.,true\n,b,,false\nc,,,false\n");
    let told = room.json(&["data", "system.csv"])["remarks"].to_string();
    for part in [
        "\\\"system\\\" is not read",
        "system.csv:3: left out because the prompt or an answer is empty (rows: 2",
    ] {
        assert!(told.contains(part), "no {part} in {told}");
    }
    room.write("mixed.csv", "prompt,completion,r\na,b,-1\nc,d,0\ne,f,1\n");
    let mixed = room.json(&["data", "mixed.csv", "--label", "r"]);
    assert_eq!(mixed["kinds"], json!({ "approved": 1, "flagged": 1 }));
    assert_eq!(mixed["unrated_lines"], json!([3]));
    wrong(&["--label", "answer"], &["ratings.csv:2: answer: expected a verdict"]);
    room.write("five.csv", "prompt,completion,stars\na,b,3\n");
    room.refuses(&["data", "five.csv", "--label", "stars"], &["--label \"stars<=2\""]);
}

/// Scores go to the rows that they are of, also where a list has all its rows on one line.
#[test]
fn a_list_on_one_line_keeps_its_rows_apart() {
    let room = Room::new();
    let row = |prompt: &str, split: &str| json!({ "prompt": prompt, "completion": "Hello.", "split": split });
    room.write("rows.json", json!([row("One", "a"), row("Two", "b"), row("Three", "b")]).to_string());
    room.json(&[
        "score",
        "--model",
        "tiny",
        "--data",
        "rows.json",
        "--split",
        "b",
        "--output",
        "scored.jsonl",
    ]);
    let prompts: Vec<Value> = room.lines("scored.jsonl").iter().map(|row| row["prompt"].clone()).collect();
    assert_eq!(prompts, ["Two", "Three"]);
}

/// What is odd about rows is told with a model and without one.
#[test]
fn rows_that_repeat_or_contradict_others_are_told() {
    let room = Room::new();
    let row = |label: bool| json!({ "prompt": "Hi.", "completion": "Hello.", "label": label }).to_string();
    room.write("odd.jsonl", [row(false), row(true), row(false)].join("\n"));
    for model in [&[][..], &["--model", "tiny"]] {
        let told = room.json(&[&["data", "odd.jsonl"][..], model].concat())["remarks"].to_string();
        for part in ["odd.jsonl:3: repeats an earlier row", "odd.jsonl:1: flags an answer that line 2 calls"]
        {
            assert!(told.contains(part), "no {part} in {told}");
        }
    }
}
