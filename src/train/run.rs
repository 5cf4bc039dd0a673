//! A run in progress: its state, and its work before the first step and between steps.

use super::anchors::{Anchor, AnchorCounts, Pool};
use super::best::Best;
use super::cleaner::Cleaner;
use super::collapse::Collapse;
use super::evaluate::{HeldOut, eval_anchors};
use super::flight::Sums;
use super::forecast::{Forecast, Work};
use super::max_batches::MaxBatches;
use super::metrics::{Metrics, mean};
use super::negatives::Negatives;
use super::observer::{Observer, Phase, Wish};
use super::reader::{Reader, answered};
use super::references::Reference;
use super::responses::{loss_responses, reference_responses};
use super::retain::Retained;
use super::state::State;
use super::stop::{StopReason, StopRule};
use super::trainer::Trainer;
use crate::config::RunConfig;
use crate::data::Example;
use crate::data::packing::Group;
use crate::eval::stats::Estimate;
use crate::gpu::Gpu;
use crate::loss::{Constants, Loss, Method, Retain, Takes};
use crate::model::{Decoder, DecoderConfig};
use crate::nn::Arenas;
use crate::optim::{AdamW, Optimizer};
use crate::sample::Room;
use crate::score::{Scored, score_in};
use crate::{Error, Result};

/// The starting state of a run.
pub struct Setup {
    /// The model: with a LoRA adapter, or for full training.
    pub decoder: Decoder,
    /// Whether the adapter is new. The model with the adapter off is then the initial model.
    pub fresh_adapter: bool,
    /// Training examples.
    pub train: Vec<Example>,
    /// Held-out examples for the stop rule; may be empty.
    pub eval: Vec<Example>,
    /// Ordinary prompts for the retain term; empty without one.
    pub retain: Vec<Example>,
    /// Anchors from an earlier run, one list per training example; missing ones are sampled. Examples with
    /// anchors of their own need none.
    pub anchors: Option<Vec<Vec<Anchor>>>,
    /// Ordinary prompts that are answered at every evaluation; may be empty.
    pub ordinary: Vec<Example>,
    /// Reads sampled answers: which become anchors, and what the stop rule learns from those at evaluations.
    /// `None` to take all anchors and to read nothing.
    pub reader: Option<Reader>,
    /// Values of r+ if it is a checkpoint.
    pub positive: Option<Arenas>,
    /// Values of r− if it is a checkpoint.
    pub negative: Option<Arenas>,
    /// Ids of the tokens that end an answer.
    pub ends: Vec<u32>,
    /// The state to resume from, of a run with the same settings and files.
    pub resume: Option<State>,
}

/// The result of a run.
#[non_exhaustive]
pub struct Outcome {
    /// The model in the state that is kept.
    pub decoder: Decoder,
    /// Why the run ended.
    pub reason: StopReason,
    /// Number of optimizer steps taken.
    pub steps: usize,
    /// The number of steps after which the kept state was taken.
    pub kept_step: usize,
    /// Metrics of the first evaluation, before the first step.
    pub before: Option<Metrics>,
    /// Metrics of the kept state.
    pub after: Option<Metrics>,
    /// Counts of the sampled anchors.
    pub anchors: AnchorCounts,
    /// The share of bad ones among the training prompts' anchors, if the run looked for them.
    pub bad_anchors: Option<Estimate>,
    /// Alpha and beta, if they were measured.
    pub constants: Option<Constants>,
    /// Packed tokens trained on.
    pub num_tokens: usize,
    /// Seconds spent in training steps.
    pub train_seconds: f64,
}

/// A run in progress.
pub(super) struct Run<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) config: &'a RunConfig,
    pub(super) trainer: Trainer<'a>,
    pub(super) loss: Loss,
    /// Alpha and beta, if they were measured.
    pub(super) constants: Option<Constants>,
    /// The largest batches, which buffers are allocated for.
    pub(super) batches: MaxBatches,
    pub(super) room: Room,
    pub(super) train: Vec<Example>,
    /// The index of each training example among those that the run was given.
    pub(super) kept: Vec<usize>,
    pub(super) pools: Vec<Pool>,
    pub(super) held_out: HeldOut,
    pub(super) retained: Retained,
    /// Held-out prompts that are answered at every evaluation. They stay, even if they get no anchors.
    pub(super) asked: Vec<Example>,
    /// Ordinary prompts that are answered at every evaluation.
    pub(super) ordinary: Vec<Example>,
    /// r−, and r+ if it differs.
    pub(super) negative: Reference,
    pub(super) positive: Option<Reference>,
    /// Log-probs of each training example's responses under the references; `None` if not computed yet.
    pub(super) cached: Vec<Option<Vec<Scored>>>,
    pub(super) counts: AnchorCounts,
    /// What tells bad anchors, once they have been looked for.
    pub(super) cleaner: Option<Cleaner>,
    /// What the choice among flagged answers remembers; `None` until it is prepared.
    pub(super) negatives: Option<Negatives>,
    pub(super) ends: Vec<u32>,
    pub(super) reader: Option<Reader>,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) forecast: Forecast,
}

/// The most examples that alpha and beta are measured on.
pub(super) const MEASURED: usize = 32;

/// Progress and intermediate results of a run.
pub(super) struct Course {
    /// Steps done.
    pub step: usize,
    pub rule: StopRule,
    pub best: Best,
    /// The first evaluation.
    pub before: Option<Metrics>,
    pub sums: Sums,
    pub collapse: Collapse,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        gpu: &'a Gpu,
        setup: Setup,
        config: &'a RunConfig,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let Setup { decoder, train, eval, mut retain, ordinary, ends, reader, .. } = setup;
        if config.retain.form == Retain::None {
            retain.clear();
        }
        let t = &config.train;
        let settings = AdamW {
            adam_beta1: t.adam_beta1,
            adam_beta2: t.adam_beta2,
            adam_epsilon: t.adam_epsilon,
            weight_decay: t.weight_decay,
            max_grad_norm: t.max_grad_norm,
            optim: t.optim,
        };
        let reference =
            |source, checkpoint| Reference::new(gpu, &decoder, source, setup.fresh_adapter, checkpoint);
        let (plus, minus) = (&config.reference.positive, &config.reference.negative);
        let negative = reference(minus, setup.negative)?;
        let positive = if plus == minus { None } else { Some(reference(plus, setup.positive)?) };
        let optimizer = Optimizer::new(gpu, decoder.layout(), settings)?;
        let memory = (decoder.config(), gpu.max_binding());
        let examples = [&train[..], &eval, &retain, &ordinary];
        let batches = MaxBatches::of(config, memory, examples, setup.anchors.as_deref());
        let room = batches.room(gpu, decoder.config(), config);
        let loss = config.method.loss();
        let mut trainer = Trainer::new(gpu, decoder, optimizer, loss, t.seed);
        trainer.reserve(batches.step);
        let own = |examples: &[Example], k: usize| -> Vec<Pool> {
            examples.iter().map(|example| Pool::given(example, &ends, k)).collect()
        };
        let mut pools = own(&train, config.method.num_samples);
        for (pool, anchors) in pools.iter_mut().zip(setup.anchors.into_iter().flatten()) {
            if pool.anchors.is_empty() {
                pool.anchors = anchors;
            }
        }
        let asked = answered(&eval, config, trainer.decoder.config().context());
        let mut held_out = HeldOut::new(eval);
        held_out.pools = own(&held_out.examples, eval_anchors(config));
        Ok(Self {
            gpu,
            config,
            trainer,
            loss,
            constants: None,
            batches,
            room,
            cached: vec![None; train.len()],
            kept: (0..train.len()).collect(),
            train,
            pools,
            held_out,
            retained: Retained::new(retain),
            asked,
            ordinary,
            positive,
            negative,
            counts: AnchorCounts::default(),
            cleaner: None,
            negatives: None,
            ends,
            reader,
            observer,
            forecast: Forecast::default(),
        })
    }

    pub(super) fn method(&self) -> Method {
        self.config.method.method
    }

    pub(super) fn has_reference(&self) -> bool {
        self.config.method.loss().formula.has_reference()
    }

    fn references_are_fixed(&self) -> bool {
        self.negative.is_fixed() && self.positive.as_ref().is_none_or(Reference::is_fixed)
    }

    /// Samples missing anchors, drops prompts that got none, and scores the examples under the references.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        for (examples, held_out) in [(&self.train, false), (&self.held_out.examples, true)] {
            for example in examples {
                let place = format!("the example on line {}", example.line);
                check_context(self.trainer.decoder.config(), self.config, example, held_out, &place)?;
            }
        }
        self.expect(0, true).apply(&mut self.forecast, self.config.anchors.max_new_tokens as f64);
        if self.method().is_of_negatives() || !self.retained.examples.is_empty() {
            self.draw_offline().await?;
            self.prepare_negatives().await?;
            self.expect(0, true).apply(&mut self.forecast, 0.0);
        }
        self.score_retained().await?;
        if !self.has_reference() {
            return Ok(());
        }
        let all: Vec<usize> = (0..self.train.len()).collect();
        self.observer.begin(Phase::References, all.len());
        let scored = self.score_references(&all, true).await?;
        self.cached = scored.into_iter().map(Some).collect();
        self.observer.end();
        if self.config.method.is_measured() {
            self.measure_constants().await?;
        }
        self.report_anchors(&all)?;
        self.forget_moving(&all);
        Ok(())
    }

    /// Clears the cached log-probs of `examples` if a reference moves.
    pub(super) fn forget_moving(&mut self, examples: &[usize]) {
        if !self.references_are_fixed() {
            examples.iter().for_each(|&i| self.cached[i] = None);
        }
    }

    /// Scores those `examples` under the references that have no cached log-probs.
    pub(super) async fn score_missing(&mut self, examples: &[usize]) -> Result<()> {
        let mut missing: Vec<usize> =
            examples.iter().copied().filter(|&i| self.cached[i].is_none()).collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() || !self.has_reference() {
            return Ok(());
        }
        let scored = self.score_references(&missing, false).await?;
        missing.into_iter().zip(scored).for_each(|(i, scored)| self.cached[i] = Some(scored));
        Ok(())
    }

    /// Log-probs of the examples' responses under their references: r+ for the last response, r− for the
    /// others. With `report`, the observer is told the progress.
    async fn score_references(&mut self, examples: &[usize], report: bool) -> Result<Vec<Vec<Scored>>> {
        let (method, budget) = (self.method(), self.batches.score_budget);
        // Between steps the trainer keeps its workspace allocated; there are few groups then.
        let between = if report { None } else { self.batches.following };
        let Some(capacity) = between.or(self.batches.scoring) else { return Ok(Vec::new()) };
        let Self { gpu, trainer, train, pools, observer, forecast, .. } = self;
        let (gpu, decoder) = (*gpu, &trainer.decoder);
        let groups: Vec<Group> = examples
            .iter()
            .map(|&i| Group {
                prompt: &train[i].prompt_ids,
                responses: reference_responses(method, &train[i], pools[i].ids()),
            })
            .collect();
        let mut count = |items, tokens| match report {
            true => {
                tell(&mut **observer, forecast, Work::Score, tokens);
                advance(&mut **observer, items, tokens)
            }
            false => observer.advance(0, 0),
        };
        let minus = self.negative.pass(decoder);
        let Some(positive) = &self.positive else {
            return score_in(gpu, decoder, minus, &groups, (budget, capacity), &mut count).await;
        };
        let (anchors, negatives): (Vec<Group>, Vec<Group>) = groups.iter().map(parts).unzip();
        let mut scored = score_in(gpu, decoder, minus, &anchors, (budget, capacity), &mut count).await?;
        let plus = positive.pass(decoder);
        let negatives =
            score_in(gpu, decoder, plus, &negatives, (budget, capacity), &mut |_, _| observer.advance(0, 0))
                .await?;
        scored.iter_mut().zip(negatives).for_each(|(all, negative)| all.extend(negative));
        Ok(scored)
    }

    /// Scores the retained answers under the model as it is before the first step.
    pub(super) async fn score_retained(&mut self) -> Result<()> {
        let budget = self.batches.score_budget;
        let (Some(capacity), true) = (self.batches.scoring, self.config.retain.form != Retain::None) else {
            return Ok(());
        };
        let Self { gpu, trainer, retained, observer, forecast, .. } = self;
        let groups: Vec<Group> = (0..retained.examples.len()).map(|i| retained.group(i)).collect();
        observer.begin(Phase::References, groups.len());
        let mut count = |items, tokens| {
            tell(&mut **observer, forecast, Work::Score, tokens);
            advance(&mut **observer, items, tokens)
        };
        let decoder = &trainer.decoder;
        let scored =
            score_in(gpu, decoder, decoder.policy(), &groups, (budget, capacity), &mut count).await?;
        observer.end();
        retained.start = scored.into_iter().flatten().collect();
        Ok(())
    }

    /// Measures by how many nats the anchors are likelier with what was put before the prompt for sampling
    /// them than without it, and sets alpha and beta from that. The references have scored them without it.
    async fn measure_constants(&mut self) -> Result<()> {
        let (budget, Some(capacity)) = (self.batches.score_budget, self.batches.scoring) else {
            return Ok(());
        };
        let Self { gpu, trainer, train, pools, cached, observer, .. } = self;
        let all = train.iter().zip(&*pools).zip(&*cached);
        let shown = all.filter(|((example, _), _)| {
            example.anchor_ids.is_empty() && example.sampling_ids != example.prompt_ids
        });
        let (groups, without): (Vec<Group>, Vec<&[Scored]>) = shown
            .take(MEASURED)
            .map(|((example, pool), scored)| {
                let group = Group { prompt: &example.sampling_ids, responses: pool.ids().collect() };
                (group, scored.as_deref().unwrap_or_default())
            })
            .unzip();
        let pass = self.negative.pass(&trainer.decoder);
        let mut alive = |_, _| observer.advance(0, 0);
        let with = score_in(gpu, &trainer.decoder, pass, &groups, (budget, capacity), &mut alive).await?;
        // A group's anchors come before its flagged answer, which only the references have scored.
        let pairs = with.iter().zip(without).flat_map(|(with, without)| with.iter().zip(without));
        let nats = mean(pairs.map(|(with, without)| f64::from(with.logp) - f64::from(without.logp)));
        let measured = Constants::measured(nats);
        let constants = Constants { alpha: self.config.method.alpha(measured.beta), ..measured };
        let Constants { alpha, beta } = constants;
        let reason = match groups.is_empty() {
            true => {
                "nothing was put before the prompts, so the anchors count as the model's own answers".into()
            }
            false => format!(
                "the anchors are {nats:.1} nats likelier with the instruction and the examples than without \
                 them"
            ),
        };
        self.observer.noted(&format!("alpha {alpha:.3} and beta {beta:.3}: {reason}"));
        self.set_constants(constants);
        Ok(())
    }

    pub(super) fn set_constants(&mut self, constants: Constants) {
        self.constants = Some(constants);
        self.loss = self.loss.with(constants);
        self.trainer.set_loss(self.loss);
    }

    pub(super) async fn evaluate(&mut self, step: usize) -> Result<Metrics> {
        self.trainer.put_away().await?;
        let budget = self.batches.score_budget;
        let method = (self.method(), self.loss);
        let Self { gpu, trainer, observer, held_out, batches, forecast, .. } = self;
        let Some(capacity) = batches.held_out else { return Ok(Metrics::default()) };
        let mut metrics = Metrics::default();
        metrics.push("global_step", step as f64);
        let mut alive = |_, tokens| {
            tell(&mut **observer, forecast, Work::Score, tokens);
            observer.advance(0, 0)
        };
        let found = held_out.evaluate(gpu, &trainer.decoder, method, (budget, capacity), &mut alive).await?;
        metrics.0.extend(found.0);
        // A model with NaN or infinite metrics cannot be sampled from.
        if metrics.0.iter().all(|(_, value)| value.is_finite()) {
            metrics.0.extend(self.read_answers(step).await?.0);
        }
        self.observer.evaluated(&metrics)?;
        self.observer.state(step, &self.trainer.decoder)?;
        Ok(metrics)
    }
}

/// Records work done, and reports the estimated time left.
pub(super) fn tell(observer: &mut dyn Observer, forecast: &mut Forecast, work: Work, tokens: usize) {
    forecast.did(work, tokens as f64);
    if let Some(seconds) = forecast.left() {
        observer.left(seconds);
    }
}

/// Reports progress before the first step, where a wish to finish means to stop.
pub(super) fn advance(observer: &mut dyn Observer, items: usize, tokens: usize) -> Result<()> {
    observer.advance(items, tokens)?;
    if observer.wish() == Wish::GoOn { Ok(()) } else { Err(Error::Interrupted) }
}

/// The prompt and the responses of an example that the loss takes.
pub(super) fn group<'a>(method: Method, example: &'a Example, pool: &'a Pool) -> Group<'a> {
    Group { prompt: &example.prompt_ids, responses: loss_responses(method, example, pool.ids()) }
}

/// Fails at `place` if an example's prompt and answer exceed the model's context, or if a token id is not in
/// the vocabulary.
pub(super) fn check_context(
    model: &DecoderConfig,
    config: &RunConfig,
    example: &Example,
    held_out: bool,
    place: &str,
) -> Result<()> {
    let given = [&example.negative_ids, &example.chosen_ids, &example.kl_ids].into_iter().flatten();
    let answers = given.chain(&example.anchor_ids);
    let longest = answers.clone().map(Vec::len).max().unwrap_or(0);
    for ids in answers.chain([&example.prompt_ids, &example.sampling_ids, &example.harmful_ids]) {
        model.check_ids(place, ids)?;
    }
    model.check_context(&format!("{place}: prompt and answer"), example.prompt_ids.len() + longest)?;
    let drawn = match config.method.method.takes() {
        _ if !example.harmful_ids.is_empty() => true,
        _ if !example.anchor_ids.is_empty() => false,
        Takes::Anchors => true,
        // For evaluation only.
        Takes::Negative => held_out && example.negative_ids.is_some(),
        _ => false,
    };
    if !drawn {
        return Ok(());
    }
    // Answers are sampled after the prompt with an instruction and scored after the bare prompt. If the chat
    // template has its own system message, the bare prompt can be longer.
    let prompts = [&example.prompt_ids, &example.sampling_ids, &example.harmful_ids];
    let prompt = prompts.map(Vec::len).into_iter().max().unwrap_or(0);
    let place =
        format!("{place}: prompt (bare, or with an instruction and the worked examples) plus max_new_tokens");
    model.check_context(&place, prompt + config.anchors.max_new_tokens)
}

/// Splits a group into one of its anchors and one of its negative.
fn parts<'a>(group: &Group<'a>) -> (Group<'a>, Group<'a>) {
    let (anchors, negative) = group.responses.split_at(group.responses.len() - 1);
    let part = |responses: &[&'a [u32]]| Group { prompt: group.prompt, responses: responses.to_vec() };
    (part(anchors), part(negative))
}
