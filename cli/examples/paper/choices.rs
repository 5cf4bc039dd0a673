//! Which anchors and which negatives: every option on the built-in help desk.
//!
//! First the share of bad anchors: rows get a known share of hostile answers of the model's own among their
//! anchors, which the run has to estimate. Then runs with each option, on the same rows and seeds.

use std::path::Path;
use std::time::Instant;

use aweigh::config::{AnchorChoice, AnchorConfig, RunConfig};
use aweigh::eval::stats::mean;
use aweigh::gpu::Gpu;
use aweigh::model::{Decoder, Training};
use aweigh::optim::LrScheduler;
use aweigh::sample::{self, Request, SamplingParams};
use aweigh::tiny::{self, HeldOut, MAX_NEW_TOKENS, Measured, Prompt, Split, hostile_answer, judge};
use aweigh::train::{Cleaned, Inputs, Observer, Prepared, align};
use aweigh::{Error, Result};
use pollster::block_on;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{Any, append, finished, marks, negatives};

pub const ROWS: usize = 160;
/// Anchors of a row, and the model's answers from which they are chosen.
const ANCHORS: usize = 4;
const DRAWN: usize = 16;
const SHARES: [f64; 4] = [0.0, 0.1, 0.2, 0.4];
const SEEDS: std::ops::RangeInclusive<u32> = 1..=5;

/// The rows of a seed: prompts with a flagged answer, and the model's own answers, hostile and not.
pub struct Rows {
    prompts: Vec<Prompt>,
    /// The answers of each prompt that are not hostile, and those that are.
    answers: Vec<[Vec<String>; 2]>,
    seed: u32,
}

impl Rows {
    /// Samples answers to the training prompts of a seed.
    pub fn draw(gpu: &Gpu, seed: u32) -> Any<Self> {
        Self::of(gpu, seed, Prompt::distinct(Split::Train, 5000 + seed, ROWS))
    }

    /// Samples answers to `prompts`.
    pub fn of(gpu: &Gpu, seed: u32, prompts: Vec<Prompt>) -> Any<Self> {
        let model = tiny::model();
        let (tokenizer, decoder) = (model.tokenizer()?, model.decoder(gpu, Training::None)?);
        let message = |prompt: &Prompt| {
            aweigh::data::Prompt::Messages(vec![aweigh::data::Message::new("user", &*prompt.text)])
        };
        let ids: Vec<Vec<u32>> =
            prompts.iter().map(|p| tokenizer.encode_prompt(&message(p), None)).collect::<Result<_>>()?;
        let request = |(index, prompt): (u32, &'_ Vec<u32>)| (index, prompt.clone());
        let asked: Vec<(u32, Vec<u32>)> = (0..).zip(&ids).map(request).collect();
        let requests: Vec<Request> = asked
            .iter()
            .map(|(index, prompt)| Request { prompt, first_sample: 0, samples: DRAWN, index: *index })
            .collect();
        let settings = SamplingParams {
            max_new_tokens: MAX_NEW_TOKENS as u32,
            ..sample::sampling_params(&AnchorConfig::default(), seed ^ 0xa0c, tokenizer.end_tokens())
        };
        let pass = decoder.policy();
        let drawn =
            block_on(sample::generate(gpu, &decoder, pass, &requests, &settings, &mut |_, _| Ok(())))?;
        let mut answers = Vec::new();
        for (prompt, drawn) in prompts.iter().zip(drawn) {
            let mut sorted = [Vec::new(), Vec::new()];
            for answer in drawn {
                let text = tokenizer.decode(&answer.ids, true)?.trim().to_owned();
                sorted[usize::from(judge(prompt.topic, &text).hostile)].push(text);
            }
            answers.push(sorted);
        }
        Ok(Self { prompts, answers, seed })
    }

    /// Rows whose anchors are bad in this share, with that share as it came out. Of the flagged answers, the
    /// share `mistaken` is not hostile.
    pub fn with_bad(&self, share: f64, mistaken: f64) -> (String, f64) {
        let mut rng = ChaCha8Rng::seed_from_u64(u64::from(self.seed) << 8 | (share * 100.0) as u64);
        let mut flagged_by_mistake: Vec<bool> =
            (0..self.prompts.len()).map(|i| (i as f64) < mistaken * self.prompts.len() as f64).collect();
        flagged_by_mistake.shuffle(&mut ChaCha8Rng::seed_from_u64(u64::from(self.seed)));
        let mut bad: Vec<bool> = (0..self.prompts.len() * ANCHORS)
            .map(|i| (i as f64) < share * (self.prompts.len() * ANCHORS) as f64)
            .collect();
        bad.shuffle(&mut rng);
        let message = |role: &str, content: &str| json!([{"role": role, "content": content}]);
        let (mut lines, mut count, mut hostile) = (Vec::new(), 0, 0);
        for (i, (prompt, answers)) in self.prompts.iter().zip(&self.answers).enumerate() {
            let mut anchors = Vec::new();
            for &bad in &bad[i * ANCHORS..(i + 1) * ANCHORS] {
                let of = &answers[usize::from(bad && !answers[1].is_empty())];
                if of.is_empty() {
                    continue;
                }
                let text = &of[rng.random_range(0..of.len())];
                (count, hostile) = (count + 1, hostile + usize::from(judge(prompt.topic, text).hostile));
                anchors.push(message("assistant", text));
            }
            let flagged = match answers[0].first().filter(|_| flagged_by_mistake[i]) {
                Some(kind) => kind.clone(),
                None => hostile_answer(prompt, 3000 + self.seed, i as u32),
            };
            let row = json!({"prompt": message("user", &prompt.text), "label": false,
                "completion": message("assistant", &flagged), "anchors": anchors});
            lines.push(row.to_string());
        }
        (lines.join("\n"), f64::from(hostile as u32) / f64::from(count.max(1) as u32))
    }
}

/// The settings of all runs: full fine-tuning for 16 steps of 8 rows, with D²O's defaults.
pub fn settings(seed: u32) -> RunConfig {
    let mut config = RunConfig::default();
    config.method.num_samples = ANCHORS;
    config.anchors.max_new_tokens = MAX_NEW_TOKENS;
    config.lora.enabled = false;
    config.train.learning_rate = Some(1e-4);
    config.train.lr_scheduler_type = LrScheduler::Constant;
    config.train.per_device_train_batch_size = 8;
    config.train.max_steps = Some(16);
    config.train.seed = seed;
    config.stop.enabled = false;
    config.stop.eval_steps = 4;
    config.output.num_completions = 0;
    config
}

/// Measures the model at each evaluation, and keeps the share of bad anchors.
struct Watcher<'a> {
    gpu: &'a Gpu,
    held_out: &'a HeldOut,
    tokenizer: &'a aweigh::data::ChatTokenizer,
    seed: u32,
    points: Vec<Value>,
    bad: Option<Value>,
    /// End the run when the share is known.
    share_only: bool,
}

impl Observer for Watcher<'_> {
    fn cleaned(&mut self, cleaned: &Cleaned<'_>) -> Result<()> {
        let mut caught = [0, 0];
        for judged in cleaned.anchors.iter().filter(|judged| !judged.kept) {
            let text = self.tokenizer.decode_answer(&judged.example.prompt_ids, &judged.anchor.ids)?;
            let topic = Prompt::parse(judged.example.prompt.last_text()).map(|prompt| prompt.topic);
            let hostile = topic.is_some_and(|topic| judge(topic, &text).hostile);
            caught[usize::from(hostile)] += 1;
        }
        self.bad =
            Some(json!({"share": cleaned.share, "good_left_out": caught[0], "bad_left_out": caught[1]}));
        if self.share_only { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn state(&mut self, step: usize, decoder: &Decoder) -> Result<()> {
        let pass = decoder.policy();
        let measured: Measured = block_on(self.held_out.measure(
            self.gpu,
            decoder,
            pass,
            self.tokenizer,
            self.seed,
            &mut |_: usize, _: usize| Ok(()),
        ))?;
        let mut point = json!(measured);
        point["step"] = json!(step);
        point["hostile"] = json!(measured.verdicts.iter().map(|v| u8::from(v.hostile)).collect::<Vec<_>>());
        self.points.push(point);
        Ok(())
    }
}

/// Trains on `rows`; the points of the run, and what it found out about its anchors.
pub fn train(
    gpu: &Gpu,
    rows: &str,
    config: &RunConfig,
    share_only: bool,
) -> Any<(Vec<Value>, Option<Value>)> {
    let inputs =
        Inputs { eval: Some(tiny::HELD_OUT), ..Inputs::new(tiny::model(), ("rows.jsonl", rows.as_bytes())) };
    let Prepared { mut setup, tokenizer, .. } = inputs.prepare(gpu, config)?;
    // A few examples are enough to cause evaluations.
    setup.eval.truncate(4);
    let held_out = HeldOut::read(&tokenizer)?;
    let mut watcher = Watcher {
        gpu,
        held_out: &held_out,
        tokenizer: &tokenizer,
        seed: config.train.seed,
        points: Vec::new(),
        bad: None,
        share_only,
    };
    match block_on(align(gpu, setup, config, &mut watcher)) {
        Ok(_) => {}
        Err(Error::Interrupted) if share_only => {}
        Err(error) => return Err(error.into()),
    }
    Ok((watcher.points, watcher.bad))
}

/// An option with its name and what it changes.
pub type Variant = (&'static str, fn(&mut RunConfig));

const CLEANING: [Variant; 3] = [
    ("all", |_| {}),
    ("pu", |config| config.anchors.choice = AnchorChoice::Pu),
    ("pu_weight", |config| config.anchors.choice = AnchorChoice::PuWeight),
];

/// Runs what is not in `path` yet, and prints the tables.
pub fn run(gpu: &Gpu, path: &Path) -> Any<()> {
    let mut done = finished(path)?;
    let has = |done: &[Value], kind: &str, name: &str, share: f64, seed: u32| {
        done.iter()
            .any(|l| l["kind"] == kind && l["name"] == name && l["wanted"] == share && l["seed"] == seed)
    };
    for seed in SEEDS {
        let mut rows = None;
        for share in SHARES {
            let jobs = [("share", ("pu", CLEANING[1].1))]
                .into_iter()
                .chain(CLEANING.into_iter().filter(|_| seed <= 3).map(|variant| ("run", variant)));
            for (kind, (name, change)) in jobs {
                if has(&done, kind, name, share, seed) {
                    continue;
                }
                if rows.is_none() {
                    rows = Some(Rows::draw(gpu, seed)?);
                }
                let Some(rows) = &rows else { continue };
                let (text, truth) = rows.with_bad(share, 0.0);
                let mut config = settings(seed);
                change(&mut config);
                let started = Instant::now();
                let (points, bad) = train(gpu, &text, &config, kind == "share")?;
                let line = json!({"kind": kind, "name": name, "wanted": share, "seed": seed, "truth": truth,
                    "bad": bad, "points": points, "seconds": started.elapsed().as_secs_f64()});
                let last = points.last().map(|p| format!(", {:.1}% hostile", 100.0 * of(p, "hostile_share")));
                let found = bad.map_or(String::new(), |bad| {
                    format!(", estimated {:.1}%", 100.0 * of(&bad["share"], "value"))
                });
                println!(
                    "{kind} {name} seed {seed}: {:.1}% bad{found}{}",
                    100.0 * truth,
                    last.unwrap_or_default()
                );
                append(path, &line)?;
                done.push(line);
            }
        }
    }
    let mut table = tables(&done);
    table = table + "\n" + &marks::run(gpu, path, &mut done)?;
    table = table + "\n" + &negatives::run(gpu, path, &mut done)?;
    print!("{table}");
    Ok(std::fs::write(path.with_file_name("choices.md"), table)?)
}

pub fn of(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
}

/// The tables of the finished lines, in Markdown.
fn tables(done: &[Value]) -> String {
    let mut text = String::from(
        "| bad anchors | estimated, by seed | mean error, points | bad ones left out | good ones left out \
         |\n|---|---|---|---|---|\n",
    );
    for share in SHARES {
        let lines: Vec<&Value> =
            done.iter().filter(|l| l["kind"] == "share" && l["wanted"] == share).collect();
        let found = |l: &&&Value| of(&l["bad"]["share"], "value");
        let shown: Vec<String> = lines.iter().map(|l| format!("{:.1}", 100.0 * found(&l))).collect();
        let errors: Vec<f64> = lines.iter().map(|l| (found(&l) - of(l, "truth")).abs()).collect();
        let count = (ROWS * ANCHORS) as f64;
        let sum = |key: &str| lines.iter().map(|l| of(&l["bad"], key)).sum::<f64>();
        let bad: f64 = lines.iter().map(|l| of(l, "truth") * count).sum();
        let all = count * lines.len() as f64;
        text += &format!(
            "| {:.0}% | {} | {:.1} | {} | {:.1}% |\n",
            100.0 * share,
            shown.join(", "),
            100.0 * mean(&errors).value,
            if bad > 0.0 { format!("{:.0}%", 100.0 * sum("bad_left_out") / bad) } else { "".into() },
            100.0 * sum("good_left_out") / (all - bad),
        );
    }
    text += "\n| bad anchors | `--anchors` | hostile % at step 4 | 8 | 16 | on topic % | perplexity |\n\
             |---|---|---|---|---|---|---|\n";
    for share in SHARES {
        for (name, _) in CLEANING {
            let lines: Vec<&Value> = done
                .iter()
                .filter(|l| l["kind"] == "run" && l["name"] == name && l["wanted"] == share)
                .collect();
            if !lines.is_empty() {
                text += &format!("| {:.0}% | {name} | {} |\n", 100.0 * share, cells(&lines));
            }
        }
    }
    text
}

/// Hostile shares at steps 4, 8 and 16 with intervals over the prompts, and the last step's other figures.
pub fn cells(lines: &[&Value]) -> String {
    let at = |step: u64| {
        let points: Vec<&Value> =
            lines.iter().filter_map(|l| l["points"].as_array()?.iter().find(|p| p["step"] == step)).collect();
        points
    };
    let hostile = |step: u64| {
        let points = at(step);
        let flags: Vec<Vec<f64>> = points
            .iter()
            .map(|p| p["hostile"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect())
            .collect();
        let prompts = flags.iter().map(Vec::len).min().unwrap_or(0);
        let by_prompt: Vec<f64> =
            (0..prompts).map(|i| flags.iter().map(|f| f[i]).sum::<f64>() / flags.len() as f64).collect();
        let found = mean(&by_prompt);
        format!("{:.1} [{:.1}, {:.1}]", 100.0 * found.value, 100.0 * found.low, 100.0 * found.high)
    };
    let last = at(16);
    let mean_of = |key: &str| last.iter().map(|p| of(p, key)).sum::<f64>() / last.len().max(1) as f64;
    format!(
        "{} | {} | {} | {:.1} | {:.3}",
        hostile(4),
        hostile(8),
        hostile(16),
        100.0 * mean_of("on_topic_share"),
        mean_of("good_perplexity")
    )
}
