//! Marks: answers that begin kindly and end rudely, of which only the rude end is marked.

use std::path::Path;

use aweigh::Result;
use aweigh::data::{Example, Group};
use aweigh::eval::stats::mean;
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::score::score;
use aweigh::tiny::{self, Prompt, Split, good_answer, hostile_answer};
use aweigh::train::{Inputs, Observer, Prepared, align};
use pollster::block_on;
use serde_json::{Value, json};

use super::choices::{of, settings};
use super::{Any, append};

const SEEDS: std::ops::RangeInclusive<u32> = 1..=3;
const ROWS: usize = 160;
const HELD_OUT: usize = 64;

/// The sentences of an answer but the last, and the last.
fn parts(answer: &str) -> (&str, &str) {
    let inner = answer.trim_end_matches(['.', '!', '?']);
    let end = inner.rfind(['.', '!', '?']).map_or(0, |at| at + 1);
    (&answer[..end], answer[end..].trim_start())
}

/// Rows whose flagged answer has a kind beginning and a rude end; with `marked`, the end alone is marked.
fn rows(prompts: &[Prompt], seed: u32, marked: bool) -> String {
    let row = |(i, prompt): (u32, &Prompt)| {
        let (kind, rude) = (good_answer(prompt, 100 + seed, i), hostile_answer(prompt, 200 + seed, i));
        let text = format!("{} {}", parts(&kind).0, parts(&rude).1);
        let length = text.chars().count();
        let mut row = json!({"prompt": [{"role": "user", "content": prompt.text}], "label": false,
            "completion": [{"role": "assistant", "content": text}]});
        if marked {
            row["weights"] = json!([[length - parts(&rude).1.chars().count(), length]]);
        }
        row.to_string()
    };
    (0..).zip(prompts).map(row).collect::<Vec<_>>().join("\n")
}

/// Measures the log-probs per token of the marked and of the other tokens, of held-out rows.
struct Watcher<'a> {
    gpu: &'a Gpu,
    held_out: Vec<Example>,
    points: Vec<Value>,
}

impl Observer for Watcher<'_> {
    fn state(&mut self, step: usize, decoder: &Decoder) -> Result<()> {
        let mut sums = [(0.0, 0u32), (0.0, 0)];
        for example in &self.held_out {
            let groups = [Group {
                prompt: &example.prompt_ids,
                responses: example.negative_ids.iter().map(Vec::as_slice).collect(),
            }];
            let scored =
                block_on(score(self.gpu, decoder, decoder.policy(), &groups, 512, &mut |_, _| Ok(())))?;
            // Without the end token, which follows the rude end.
            let weights = example.negative_weights.iter().flatten();
            let weights = weights.take(scored[0][0].token_logps.len() - 1);
            for (logp, weight) in scored[0][0].token_logps.iter().zip(weights) {
                let sum = &mut sums[usize::from(*weight > 0.0)];
                (sum.0, sum.1) = (sum.0 + f64::from(*logp), sum.1 + 1);
            }
        }
        let [rest, marked] = sums.map(|(sum, count)| sum / f64::from(count.max(1)));
        self.points.push(json!({"step": step, "rest": rest, "marked": marked}));
        Ok(())
    }
}

/// The moves of the marked and of the other tokens' log-probs over a run of 16 steps.
fn moved(gpu: &Gpu, seed: u32, marked: bool) -> Any<Value> {
    let mut config = settings(seed);
    config.anchors.safety_instruction = "Be kind and helpful.".into();
    let held_out = Prompt::distinct(Split::HeldOut, 5000 + seed, HELD_OUT);
    let held_out = rows(&held_out, seed, true);
    let text = rows(&Prompt::distinct(Split::Train, 5000 + seed, ROWS), seed, marked);
    let inputs = Inputs {
        eval: Some(("held-out.jsonl", held_out.as_bytes())),
        ..Inputs::new(tiny::model(), ("rows.jsonl", text.as_bytes()))
    };
    let Prepared { mut setup, .. } = inputs.prepare(gpu, &config)?;
    // One example is enough to cause evaluations.
    let held_out = setup.eval.clone();
    setup.eval.truncate(1);
    let mut watcher = Watcher { gpu, held_out, points: Vec::new() };
    block_on(align(gpu, setup, &config, &mut watcher))?;
    let ends = watcher.points.first().zip(watcher.points.last());
    let (first, last) = ends.ok_or("a run without evaluations")?;
    let change = |key: &str| of(last, key) - of(first, key);
    Ok(json!({"rest": change("rest"), "marked": change("marked"), "points": watcher.points}))
}

/// Runs what is not among the lines in `done` yet, and returns the table.
pub fn run(gpu: &Gpu, path: &Path, done: &mut Vec<Value>) -> Any<String> {
    let mut table = String::from(
        "| flagged answers | rude end, nats per token | kind beginning, nats per token |\n|---|---|---|\n",
    );
    for (name, marked) in [("whole", false), ("rude end marked", true)] {
        for seed in SEEDS {
            let is = |l: &Value| l["kind"] == "marks" && l["name"] == name && l["seed"] == seed;
            if !done.iter().any(is) {
                let mut line = moved(gpu, seed, marked)?;
                (line["kind"], line["name"], line["seed"]) = (json!("marks"), json!(name), json!(seed));
                println!("{name}, seed {seed}: {:.3} {:.3}", of(&line, "marked"), of(&line, "rest"));
                append(path, &line)?;
                done.push(line);
            }
        }
        let cell = |key: &str| {
            let lines = done.iter().filter(|l| l["kind"] == "marks" && l["name"] == name);
            let moves: Vec<f64> = lines.map(|l| of(l, key)).collect();
            let shown: Vec<String> = moves.iter().map(|moved| format!("{moved:+.3}")).collect();
            format!("{:+.3} ({})", mean(&moves).value, shown.join(", "))
        };
        table += &format!("| {name} | {} | {} |\n", cell("marked"), cell("rest"));
    }
    Ok(table)
}
