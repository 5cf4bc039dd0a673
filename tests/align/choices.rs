//! Which anchors and which negatives a run uses.

use std::sync::{Arc, Mutex};

use aweigh::config::AnchorChoice;
use aweigh::data::{ChatTokenizer, TokenizerFiles};
use aweigh::gpu::Gpu;
use aweigh::train::{Cleaned, Meter, Reader, Scores};

use super::*;

/// A tokenizer whose tokens are `t0`, `t1`, ..
pub(super) fn tokenizer() -> Arc<ChatTokenizer> {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..VOCAB).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}
    });
    let files = TokenizerFiles {
        origin: "words".into(),
        tokenizer: tokenizer.to_string().into_bytes(),
        tokenizer_config: Some(br#"{"eos_token": "t2"}"#.to_vec()),
        ..TokenizerFiles::default()
    };
    Arc::new(ChatTokenizer::from_bytes(&files).expect("a tokenizer"))
}

/// Calls answers with the token `t9` bad, and counts the answers that it was asked about.
#[derive(Debug, Default)]
struct Nine(Mutex<usize>);

impl Meter for Nine {
    fn scores<'a>(&'a self, _: &'a Gpu, answers: &'a [(&'a Prompt, &'a str)]) -> Scores<'a> {
        *self.0.lock().expect("a count") += answers.len();
        let bad = |(_, text): &(&Prompt, &str)| text.split_whitespace().any(|word| word == "t9");
        let scores = answers.iter().map(|answer| f64::from(u8::from(bad(answer)))).collect();
        Box::pin(async move { Ok(scores) })
    }
}

pub(super) const ROWS: usize = 48;

/// Examples whose second anchor is bad: it repeats the token 9, as all flagged answers do.
pub(super) fn mixed() -> Vec<Example> {
    let mut train = examples(ROWS as u32, 0);
    for (i, example) in train.iter_mut().enumerate() {
        let token = |j: usize| 20 + ((i * 7 + j * 13) % 40) as u32;
        let good = |j: usize| (j..j + 6 + i % 3).map(token).chain([2]).collect();
        let bad = |count: usize| [vec![9; count], vec![2]].concat();
        // An untrained model tells answers apart only if its prompts are alike.
        example.prompt_ids = vec![3 + i as u32 % 2];
        example.anchor_ids = vec![good(0), bad(6 + (i + 1) % 3), good(20)];
        example.negative_ids = Some(bad(6 + i % 3));
    }
    train
}

/// Keeps what was found out about the anchors, and the anchors that were trained on.
#[derive(Default)]
struct Judge {
    share: Option<f64>,
    verdicts: Vec<(Vec<u32>, bool, f32)>,
    used: Vec<Vec<Vec<u32>>>,
    notes: Vec<String>,
}

impl Observer for Judge {
    fn cleaned(&mut self, cleaned: &Cleaned<'_>) -> Result<()> {
        self.share = Some(cleaned.share.value);
        let verdict =
            |judged: &aweigh::train::Judged| (judged.anchor.ids.clone(), judged.kept, judged.anchor.weight);
        self.verdicts = cleaned.anchors.iter().map(verdict).collect();
        Ok(())
    }

    fn anchors(&mut self, _: &Example, pool: &Pool, reference: &[Scored]) -> Result<()> {
        assert_eq!(reference.len(), pool.anchors.len() + 1);
        self.used.push(pool.ids().map(<[u32]>::to_vec).collect());
        Ok(())
    }

    fn noted(&mut self, text: &str) {
        self.notes.push(text.into());
    }
}

fn judged(choice: AnchorChoice, meter: Option<Arc<dyn Meter>>) -> Judge {
    let mut config = config();
    config.anchors.choice = choice;
    let reader = Reader { meter, ..Reader::new(tokenizer(), &config) };
    let setup = Setup { train: mixed(), eval: mixed(), reader: Some(reader), ..setup() };
    let mut judge = Judge::default();
    block_on(align(gpu(), setup, &config, &mut judge)).expect("a run");
    judge
}

fn is_bad(ids: &[u32]) -> bool {
    ids.contains(&9)
}

#[test]
fn bad_anchors_are_found_from_the_flagged_answers() {
    let judge = judged(AnchorChoice::Pu, None);
    let share = judge.share.expect("a share");
    assert!((share - 1.0 / 3.0).abs() < 0.05, "{share}");
    let wrong = judge.verdicts.iter().filter(|(ids, kept, _)| is_bad(ids) == *kept).count();
    assert!(wrong <= 2, "{wrong} of {}", judge.verdicts.len());
    assert!(judge.used.iter().flatten().filter(|ids| is_bad(ids)).count() <= 2, "{:?}", judge.used);
    assert!(judge.notes[0].contains("of the anchors are bad by estimate"), "{:?}", judge.notes);
    assert!(judge.notes.iter().any(|note| note.contains("left out: t9 t9")), "{:?}", judge.notes);
}

#[test]
fn bad_anchors_are_weighed_down() {
    let judge = judged(AnchorChoice::PuWeight, None);
    let of = |bad: bool| judge.verdicts.iter().filter(move |(ids, ..)| is_bad(ids) == bad);
    let mean = |bad: bool| of(bad).map(|(.., weight)| weight).sum::<f32>() / of(bad).count() as f32;
    assert!(mean(true) < 0.2 && mean(false) > 0.8, "{} {}", mean(true), mean(false));
    assert!(judge.used.iter().all(|anchors| anchors.len() == 3), "none is left out");
}

#[test]
fn a_meter_decides_on_anchors() {
    let meter = Arc::new(Nine::default());
    let judge = judged(AnchorChoice::Meter("nine".into()), Some(meter.clone()));
    assert_eq!(judge.share, Some(1.0 / 3.0));
    assert!(judge.verdicts.iter().all(|(ids, kept, _)| is_bad(ids) != *kept));
    assert!(judge.used.iter().all(|anchors| anchors.len() == 2));
    // Three anchors of each training prompt, two of each held-out one.
    assert_eq!(*meter.0.lock().expect("a count"), ROWS * 3 + ROWS * 2);
    let mut config = config();
    config.anchors.choice = AnchorChoice::Meter("nine".into());
    let error = block_on(align(gpu(), setup(), &config, &mut Watcher::default())).err().expect("an error");
    assert!(error.to_string().contains("expected a meter"), "{error}");
}

#[test]
fn cleaned_runs_resume_to_the_same_bits() {
    for choice in [AnchorChoice::Pu, AnchorChoice::PuWeight] {
        let mut config = resume::short();
        config.anchors.choice = choice;
        config.anchors.online_start_step = Some(1);
        config.anchors.refresh_every = 2;
        let setup = || Setup { train: examples(24, 0), eval: examples(2, 30), ..setup() };
        resume::check("cleaned", &config, &setup);
    }
}

/// Flagged answers that are as random as the anchors: nothing can be told, so nothing is left out.
#[test]
fn what_cannot_be_told_is_not_left_out() {
    let mut config = config();
    config.anchors.choice = AnchorChoice::Pu;
    let mut watcher = Watcher::default();
    let setup = Setup { train: examples(24, 0), ..setup() };
    let outcome = block_on(align(gpu(), setup, &config, &mut watcher)).expect("a run");
    assert_eq!(outcome.bad_anchors, None);
    assert!(
        watcher.warnings.iter().any(|text| text.contains("do not tell anchors")),
        "{:?}",
        watcher.warnings
    );
    assert!(watcher.pools.iter().all(|pool| pool.ids.len() == 3));
}

#[test]
fn too_few_answers_for_an_estimate_are_refused() {
    let mut config = config();
    config.anchors.choice = AnchorChoice::Pu;
    let error = block_on(align(gpu(), setup(), &config, &mut Watcher::default())).err().expect("an error");
    let text = error.to_string();
    assert!(text.contains("20 flagged answers and 20 anchors") && text.contains("4 and 12"), "{text}");
}

/// With marks, only the marked token of the flagged answer is pushed directly: the gradient of the loss is
/// that of its log-prob alone, so that a step lowers it more than a step on the whole answer does.
#[test]
fn marks_push_their_tokens() {
    let after = |marks: Option<[f32; 5]>| -> Vec<f32> {
        let mut config = config();
        config.method.method = Method::Npo;
        config.train.max_steps = Some(3);
        config.train.learning_rate = Some(1e-3);
        config.stop.enabled = false;
        let mut train = examples(1, 0);
        train[0].negative_weights = marks.map(Vec::from);
        let (outcome, watcher) = run(Setup { train: train.clone(), ..setup() }, &config);
        let losses = watcher.all("loss");
        assert!(losses[2] < losses[0], "{losses:?}");
        let group = Group {
            prompt: &train[0].prompt_ids,
            responses: train[0].negative_ids.iter().map(Vec::as_slice).collect(),
        };
        let decoder = &outcome.decoder;
        let tokens = |pass| {
            let groups = std::slice::from_ref(&group);
            block_on(score(gpu(), decoder, pass, groups, 64, &mut |_, _| Ok(()))).expect("scores")[0][0]
                .token_logps
                .clone()
        };
        tokens(decoder.policy()).iter().zip(tokens(decoder.base())).map(|(now, then)| now - then).collect()
    };
    let (marked, whole) = (after(Some([0.0, 0.0, 1.0, 0.0, 0.0])), after(None));
    let share = |moved: &[f32]| moved[2] / moved.iter().map(|m| m.abs()).sum::<f32>();
    assert!(marked[2] < whole[2] && share(&marked) < -0.5, "{marked:?} {whole:?}");
}
