//! The choices among flagged answers and between stored and fresh samples, each where it should matter.

use std::path::Path;
use std::time::Instant;

use aweigh::config::{AnchorChoice, NegativeChoice, RunConfig};
use aweigh::gpu::Gpu;
use aweigh::tiny::{Prompt, Split};
use serde_json::{Value, json};

use super::choices::{ROWS, Rows, Variant, cells, of, settings, train};
use super::{Any, append};

const SEEDS: std::ops::RangeInclusive<u32> = 1..=3;
/// The share of flagged answers that are not hostile, in the rows with mistakes.
const MISTAKEN: f64 = 0.25;
/// The rows of the frequent topic, and of all others together, in the rows with one.
const FREQUENT: usize = 140;
const RARE: usize = 20;

/// The rows that options are compared on.
#[derive(Clone, Copy, PartialEq)]
enum World {
    /// Anchors and verdicts are right.
    Clean,
    /// Some kind answers are flagged.
    Mistaken,
    /// Most prompts are about one topic.
    Frequent,
    /// Rows without anchors: the run samples them.
    Sampled,
}

const WORLDS: [(World, &str, &[Variant]); 4] = [
    (
        World::Clean,
        "clean rows",
        &[
            ("--negatives uniform", |_| {}),
            ("--negatives hard", |c| c.negatives.choice = NegativeChoice::Hard),
            ("--negatives variance", |c| c.negatives.choice = NegativeChoice::Variance),
            ("--negatives mcns", |c| c.negatives.choice = NegativeChoice::Mcns),
            ("--negatives paired", |c| c.negatives.choice = NegativeChoice::Paired),
            ("--negatives generated --anchors pu", |c| {
                c.negatives.choice = NegativeChoice::Generated;
                c.negatives.harmful_instruction = "Be rude.".into();
                c.anchors.choice = AnchorChoice::Pu;
            }),
        ],
    ),
    (
        World::Mistaken,
        "a quarter flagged by mistake",
        &[
            ("--negatives uniform", |_| {}),
            ("--negatives debiased", |c| c.negatives.choice = NegativeChoice::Debiased),
            ("--negatives hard", |c| c.negatives.choice = NegativeChoice::Hard),
            ("--negatives variance", |c| c.negatives.choice = NegativeChoice::Variance),
        ],
    ),
    (
        World::Frequent,
        "seven eighths about one topic",
        &[("uniform", |_| {}), ("--balance 8", |c| c.negatives.balance = 8)],
    ),
    (
        World::Sampled,
        "sampled anchors",
        &[
            ("stored", |_| {}),
            ("--online-start-step 4", online),
            ("--online-start-step 4 --fresh-anchors 0.5", |c| {
                online(c);
                c.anchors.fresh_share = 0.5;
            }),
        ],
    ),
];

fn online(config: &mut RunConfig) {
    config.anchors.online_start_step = Some(4);
    config.anchors.refresh_every = 4;
}

fn rows(gpu: &Gpu, world: World, seed: u32) -> Any<String> {
    if world == World::Frequent {
        let all = Prompt::distinct(Split::Train, 5000 + seed, 8 * ROWS);
        let frequent = all[0].topic;
        let (mut often, mut rarely): (Vec<Prompt>, Vec<Prompt>) =
            all.into_iter().partition(|prompt| prompt.topic == frequent);
        often.truncate(FREQUENT);
        rarely.truncate(RARE);
        often.extend(rarely);
        return Ok(Rows::of(gpu, seed, often)?.with_bad(0.0, 0.0).0);
    }
    let mistaken = if world == World::Mistaken { MISTAKEN } else { 0.0 };
    let text = Rows::draw(gpu, seed)?.with_bad(0.0, mistaken).0;
    if world != World::Sampled {
        return Ok(text);
    }
    let without = |line: &str| -> Any<String> {
        let mut row: Value = serde_json::from_str(line)?;
        row.as_object_mut().and_then(|row| row.remove("anchors"));
        Ok(row.to_string())
    };
    Ok(text.lines().map(without).collect::<Any<Vec<String>>>()?.join("\n"))
}

/// Runs what is not among the lines in `done` yet, and returns the table.
pub fn run(gpu: &Gpu, path: &Path, done: &mut Vec<Value>) -> Any<String> {
    let mut table = String::from(
        "| rows | options | hostile % at step 4 | 8 | 16 | on topic % | perplexity | seconds |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for (world, about, variants) in WORLDS {
        for seed in SEEDS {
            let mut text = None;
            for (name, change) in variants {
                let is = |l: &Value| l["kind"] == about && l["name"] == *name && l["seed"] == seed;
                if done.iter().any(is) {
                    continue;
                }
                if text.is_none() {
                    text = Some(rows(gpu, world, seed)?);
                }
                let mut config = settings(seed);
                if world == World::Sampled {
                    config.anchors.safety_instruction = "Be kind and helpful.".into();
                }
                change(&mut config);
                let started = Instant::now();
                let (points, _) = train(gpu, text.as_deref().unwrap_or_default(), &config, false)?;
                let line = json!({"kind": about, "name": name, "seed": seed, "points": points,
                    "seconds": started.elapsed().as_secs_f64()});
                let last = points.last().map_or(f64::NAN, |p| 100.0 * of(p, "hostile_share"));
                println!("{about}, {name}, seed {seed}: {last:.1}% hostile");
                append(path, &line)?;
                done.push(line);
            }
        }
        for (name, _) in variants {
            let lines: Vec<&Value> =
                done.iter().filter(|l| l["kind"] == about && l["name"] == *name).collect();
            let seconds = lines.iter().map(|l| of(l, "seconds")).sum::<f64>() / lines.len() as f64;
            table += &format!("| {about} | `{name}` | {} | {seconds:.0} |\n", cells(&lines));
        }
    }
    Ok(table)
}
