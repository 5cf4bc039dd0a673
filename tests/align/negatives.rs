//! Which flagged answers a step trains on.

use std::collections::HashSet;
use std::sync::Arc;

use aweigh::config::{AnchorChoice, NegativeChoice};
use aweigh::gpu::Gpu;
use aweigh::train::{Meter, Reader, Scores};

use super::choices::{ROWS, mixed, tokenizer};
use super::*;

/// Calls all answers bad but those that begin with `t20 t21`.
#[derive(Debug)]
struct Beginning;

impl Meter for Beginning {
    fn scores<'a>(&'a self, _: &'a Gpu, answers: &'a [(&'a Prompt, &'a str)]) -> Scores<'a> {
        let scores =
            answers.iter().map(|(_, text)| f64::from(u8::from(!text.trim_start().starts_with("t20 t21"))));
        let scores = scores.collect();
        Box::pin(async move { Ok(scores) })
    }
}

/// The examples of each step, the metrics, and what was noted.
#[derive(Default)]
struct Steps {
    batches: Vec<Vec<Example>>,
    metrics: Vec<Metrics>,
    anchors: Vec<(usize, Vec<Vec<u32>>)>,
    notes: Vec<String>,
}

impl Observer for Steps {
    fn chosen(&mut self, step: usize, examples: &[&Example]) {
        assert_eq!(step, self.batches.len());
        self.batches.push(examples.iter().map(|example| (*example).clone()).collect());
    }

    fn step(&mut self, metrics: &Metrics) -> Result<()> {
        self.metrics.push(metrics.clone());
        Ok(())
    }

    fn anchors(&mut self, example: &Example, pool: &Pool, reference: &[Scored]) -> Result<()> {
        assert_eq!(reference.len(), pool.anchors.len() + 1);
        self.anchors.push((example.line, pool.ids().map(<[u32]>::to_vec).collect()));
        Ok(())
    }

    fn noted(&mut self, text: &str) {
        self.notes.push(text.into());
    }
}

/// Rows with given anchors of which none is bad.
fn rows() -> Vec<Example> {
    let mut train = examples(ROWS as u32, 0);
    for (i, example) in train.iter_mut().enumerate() {
        let answer = |j: usize| vec![20, 21, 22 + ((i * 7 + j * 13) % 20) as u32, 2];
        example.anchor_ids = (0..3).map(answer).collect();
        // An untrained model tells answers apart only if its prompts are alike.
        example.prompt_ids = vec![3 + i as u32 % 2];
        example.negative_ids = Some([vec![9; 3 + i % 3], vec![2]].concat());
        example.harmful_ids = [vec![5, 6], example.prompt_ids.clone()].concat();
    }
    train
}

fn with(choice: NegativeChoice) -> RunConfig {
    let mut config = resume::short();
    config.negatives.choice = choice;
    config
}

fn reader(config: &RunConfig) -> Option<Reader> {
    Some(Reader { meter: Some(Arc::new(Beginning)), ..Reader::new(tokenizer(), config) })
}

fn steps(train: Vec<Example>, config: &RunConfig) -> Steps {
    let mut steps = Steps::default();
    let setup = Setup { train, reader: reader(config), ..setup() };
    block_on(align(gpu(), setup, config, &mut steps)).expect("a run");
    steps
}

#[test]
fn hard_rows_are_those_with_the_likeliest_flagged_answers() {
    // All rows are candidates for the first step.
    let train = examples(8, 0);
    let steps = steps(train.clone(), &with(NegativeChoice::Hard));
    assert!(steps.batches.iter().all(|batch| batch.len() == 2));
    let decoder = fresh();
    let groups: Vec<Group> = train
        .iter()
        .map(|e| Group {
            prompt: &e.prompt_ids,
            responses: e.negative_ids.iter().map(Vec::as_slice).collect(),
        })
        .collect();
    let scored =
        block_on(score(gpu(), &decoder, decoder.policy(), &groups, 64, &mut |_, _| Ok(()))).expect("scores");
    let per_token = |i: &usize| scored[*i][0].logp / scored[*i][0].token_logps.len() as f32;
    let mut order: Vec<usize> = (0..8).collect();
    order.sort_by(|a, b| per_token(b).total_cmp(&per_token(a)));
    let lines = |batch: &[Example]| batch.iter().map(|e| e.line - 1).collect::<HashSet<_>>();
    assert_eq!(lines(&steps.batches[0]), order[..2].iter().copied().collect::<HashSet<_>>());
}

/// A chain moves on to other rows' flagged answers. The reference has scored these: before the first step the
/// policy is the reference, so that all rewards are 0.
#[test]
fn chains_walk_over_flagged_answers() {
    let train = examples(12, 0);
    let steps = steps(train.clone(), &with(NegativeChoice::Mcns));
    let own = |example: &Example| {
        train.iter().position(|row| row.line == example.line).map(|i| train[i].negative_ids.clone())
    };
    let all: Vec<&Example> = steps.batches.iter().flatten().collect();
    assert!(all.iter().all(|e| train.iter().any(|row| row.negative_ids == e.negative_ids)));
    assert!(all.iter().any(|e| own(e).as_ref() != Some(&e.negative_ids)), "no chain moved");
    for name in ["rewards/negative", "rewards/anchor"] {
        let found = steps.metrics[0].get(name).unwrap_or_else(|| panic!("{:?}", steps.metrics[0]));
        assert!(found.abs() < 1e-5, "{name} {found}");
    }
}

#[test]
fn answers_under_the_harmful_instruction_become_flagged() {
    let train = rows();
    let of = |share: f64, judge: AnchorChoice| {
        let mut config = with(NegativeChoice::Generated);
        config.negatives.harmful_instruction = "Be rude.".into();
        config.negatives.fresh_share = share;
        config.anchors.choice = judge;
        steps(train.clone(), &config)
    };
    let meter = || AnchorChoice::Meter("beginning".into());
    let is_own =
        |e: &Example| train.iter().any(|row| row.line == e.line && row.negative_ids == e.negative_ids);
    let sampled = of(1.0, meter());
    assert!(sampled.batches.iter().flatten().all(|e| !is_own(e)));
    assert!(sampled.metrics[0].get("rewards/negative").is_some_and(|reward| reward.abs() < 1e-5));
    assert!(sampled.notes.iter().any(|note| note.contains("8 of 8 answers under")), "{:?}", sampled.notes);
    assert!(of(0.0, meter()).batches.iter().flatten().all(is_own));
    // The head judges what no anchor is like.
    let judged = of(1.0, AnchorChoice::Pu);
    assert!(judged.notes.iter().any(|note| note.contains("of 8 answers under")), "{:?}", judged.notes);
}

#[test]
fn flagged_answers_like_the_anchors_are_left_out() {
    let mut train = mixed();
    for (i, example) in train.iter_mut().enumerate() {
        let good = example.anchor_ids[0].clone();
        // Every sixth row is flagged by mistake.
        if i % 6 == 0 {
            example.negative_ids = Some(good);
        }
        example.anchor_ids.remove(1);
    }
    let mut config = with(NegativeChoice::Debiased);
    config.train.max_steps = None;
    config.train.num_train_epochs = 1.0;
    let steps = steps(train, &config);
    assert!(steps.notes[0].contains("of the flagged answers are like the anchors"), "{:?}", steps.notes);
    assert!(steps.notes[1].contains("left out, line"), "{:?}", steps.notes);
    let used: HashSet<usize> = steps.batches.iter().flatten().map(|e| e.line - 1).collect();
    let mistaken = used.iter().filter(|i| *i % 6 == 0).count();
    assert!(mistaken <= 2 && used.len() >= ROWS * 5 / 6 - 2, "{mistaken} of {}", used.len());
}

#[test]
fn clusters_of_prompts_are_balanced() {
    let mut train = examples(ROWS as u32, 0);
    for (i, example) in train.iter_mut().enumerate() {
        example.prompt_ids = vec![if i < 6 { 40 } else { 7 }; 5];
    }
    let mut config = with(NegativeChoice::Uniform);
    config.negatives.balance = 2;
    config.train.max_steps = Some(10);
    let steps = steps(train, &config);
    assert!(steps.notes.iter().any(|note| note.contains("as often: 42, 6")), "{:?}", steps.notes);
    for batch in &steps.batches {
        assert_eq!(batch.iter().filter(|e| e.line <= 6).count(), 1, "one of two");
    }
}

#[test]
fn a_balanced_run_resumes_to_the_same_bits() {
    let mut config = with(NegativeChoice::Hard);
    config.negatives.balance = 3;
    let setup = || Setup { train: examples(12, 0), eval: examples(2, 60), ..setup() };
    resume::check("balanced", &config, &setup);
}

#[test]
fn stored_anchors_stay_beside_fresh_ones() {
    let mut config = resume::short();
    config.anchors.online_start_step = Some(0);
    config.anchors.refresh_every = 1;
    // Less than one of three: one is renewed.
    config.anchors.fresh_share = 0.1;
    let steps = steps(examples(2, 0), &config);
    let of = |line: usize| steps.anchors.iter().filter(move |(of, _)| *of == line).map(|(_, ids)| ids);
    for line in [1, 2] {
        let all: Vec<&Vec<Vec<u32>>> = of(line).collect();
        assert!(all.len() > 3 && all.iter().all(|ids| ids.len() == 3 && ids[..2] == all[0][..2]), "{all:?}");
        assert!(all.iter().any(|ids| ids[2] != all[0][2]), "{all:?}");
    }
}

#[test]
fn every_choice_resumes_to_the_same_bits() {
    use NegativeChoice::*;
    // Some rows are flagged by mistake.
    let rows = || {
        let mut train = rows();
        for example in train.iter_mut().step_by(6) {
            example.negative_ids = Some(example.anchor_ids[0].clone());
        }
        train
    };
    let uniform = steps(rows(), &with(Uniform));
    for choice in [Hard, Variance, Mcns, Generated, Debiased, Paired] {
        let mut config = with(choice);
        config.negatives.harmful_instruction = "Be rude.".into();
        if choice == Generated {
            config.anchors.choice = AnchorChoice::Meter("beginning".into());
        }
        config.anchors.refresh_every = 2;
        let setup = || Setup { train: rows(), eval: examples(2, 60), reader: reader(&config), ..setup() };
        resume::check(&format!("{choice:?}"), &config, &setup);
        let steps = steps(rows(), &config);
        let differs = |m: &(&Metrics, &Metrics)| m.0.get("loss") != m.1.get("loss");
        assert!(steps.metrics.iter().zip(&uniform.metrics).any(|m| differs(&m)), "{choice:?}");
    }
}
