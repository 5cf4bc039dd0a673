//! Checks the range of every setting. Each message says where the value was written.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::{
    AnchorChoice, Beta, MAX_NUM_SEQS, MethodConfig, NegativeChoice, NegativeConfig, OnlineSampler,
    ReferenceSource, RetainConfig, RunConfig, StopConfig,
};
use crate::error::{Error, Result, setting, setting_to};
use crate::loss::{Method, Retain};
use crate::model::TargetModules;
use crate::optim::LrScheduler;

/// Where each setting was written, by `section.key`; `None` if a program made the settings.
struct Places<'a>(Option<&'a BTreeMap<String, String>>);

impl Places<'_> {
    fn of(&self, key: &str) -> String {
        let Some(places) = self.0 else { return key.to_owned() };
        match places.get(key) {
            Some(place) if place.starts_with("--") => format!("{place} ({key})"),
            Some(place) => place.clone(),
            None => format!("{key} (left at its default)"),
        }
    }

    /// `ok`, or an error that says what `key` must be.
    fn that(&self, key: &str, ok: bool, expected: &str, found: impl Display, fix: &str) -> Result<()> {
        if ok { Ok(()) } else { Err(Error::input(self.of(key), expected, found, fix)) }
    }

    fn at_least_one(&self, key: &str, value: usize) -> Result<()> {
        self.that(key, value >= 1, "a whole number of at least 1", value, "give 1 or more")
    }

    fn positive(&self, key: &str, value: f64) -> Result<()> {
        self.that(key, value.is_finite() && value > 0.0, "a number above 0", value, "give a number above 0")
    }

    fn not_negative(&self, key: &str, value: f64) -> Result<()> {
        self.that(key, value.is_finite() && value >= 0.0, "a number of at least 0", value, "give 0 or more")
    }

    /// A fraction from 0 to below 1.
    fn below_one(&self, key: &str, value: f64) -> Result<()> {
        self.that(
            key,
            (0.0..1.0).contains(&value),
            "a number from 0 to below 1",
            value,
            "give a share below 1",
        )
    }
}

/// Checks every setting of `config`; `places` says where each was written.
pub(super) fn check(config: &RunConfig, places: Option<&BTreeMap<String, String>>) -> Result<()> {
    let places = Places(places);
    waits(config, &places)?;
    data(config, &places)?;
    method(config, &places)?;
    anchors(config, &places)?;
    negatives(config, &places)?;
    reference(config, &places)?;
    places.positive("retain.weight", config.retain.weight)?;
    let (many, fix) = (config.retain.batch_size, "give a number in that range; 1 to 8 are usual");
    places.that(
        "retain.batch_size",
        (1..=65_536).contains(&many),
        "a whole number from 1 to 65536",
        many,
        fix,
    )?;
    places.at_least_one("retain.max_new_tokens", config.retained_tokens())?;
    lora(config, &places)?;
    train(config, &places)?;
    stop(config, &places)?;
    places.at_least_one("output.logging_steps", config.output.logging_steps)?;
    places.not_negative("output.save_minutes", config.output.save_minutes)?;
    places.at_least_one("output.completion_tokens", config.output.completion_tokens)?;
    places.at_least_one("output.save_total_limit", config.output.save_total_limit)?;
    places.at_least_one("output.save_steps", config.output.save_steps.unwrap_or(1))?;
    let fits = !config.gpu.fit || config.gpu.memory.is_some();
    let fix = format!("set the limit, as in {}", setting_to("memory", "4GB"));
    places.that("gpu.fit", fits, "gpu.memory to be set", "none", &fix)?;
    config.gpu.submit_budget.map_or(Ok(()), |budget| places.positive("gpu.submit_budget", budget))
}

/// Checks the settings that every run from files needs; the error names all that are missing.
pub(super) fn required(config: &RunConfig) -> Result<()> {
    let model = "a model (a directory, a GGUF file, a name on the Hub, or tiny)";
    let all = [
        (config.model.model.is_empty(), "model", model),
        (config.data.train.as_os_str().is_empty(), "train", "a JSONL file of examples"),
        (config.output.output_dir.as_os_str().is_empty(), "output_dir", "a folder for the run"),
    ];
    let missing = all.into_iter().filter(|(missing, ..)| *missing);
    let (places, expected): (Vec<String>, Vec<&str>) =
        missing.map(|(_, key, expected)| (setting(key), expected)).unzip();
    if places.is_empty() {
        return Ok(());
    }
    let found = if places.len() == 1 { "nothing" } else { "none of them" };
    let fix = "give them here or in a settings file";
    Err(Error::input(places.join(", "), expected.join(", "), found, fix))
}

fn data(config: &RunConfig, places: &Places) -> Result<()> {
    let data = &config.data;
    places.at_least_one("data.max_prompt_length", data.max_prompt_length)?;
    places.at_least_one("data.max_completion_length", data.max_completion_length)?;
    places.at_least_one("data.max_samples", data.max_samples.unwrap_or(1))
}

fn method(config: &RunConfig, places: &Places) -> Result<()> {
    let method = &config.method;
    match method.method {
        // beta = 0 leaves NPO's loss, and alpha = 0 the anchors' alone: both are useful for comparison. With
        // both 0 there is nothing to learn.
        Method::D2o => {
            places.not_negative("method.beta", method.beta())?;
            let alpha = method.alpha(method.beta());
            places.not_negative("method.alpha", alpha)?;
            let ok = alpha + method.beta() > 0.0;
            places.that(
                if method.alpha.is_some() { "method.alpha" } else { "method.beta" },
                ok,
                "alpha or beta above 0",
                "both 0",
                "give one of them a weight",
            )?;
        }
        other if other.default_beta().is_some() => places.positive("method.beta", method.beta())?,
        _ => {}
    }
    let auto = method.beta != Some(Beta::Auto) || method.method == Method::D2o;
    let fix = "give a number, or use d2o";
    places.that("method.beta", auto, "a number for this method", "auto", fix)?;
    let gamma = method.gamma();
    places.that("method.gamma", gamma.is_finite(), "a number", gamma, "leave it out for the default")?;
    places.positive("method.negative_floor", method.negative_floor.unwrap_or(1.0))?;
    places.positive("method.delta", method.delta)?;
    places.not_negative("method.sft_weight", method.sft_weight)?;
    places.positive("method.desirable_weight", method.desirable_weight)?;
    places.positive("method.undesirable_weight", method.undesirable_weight)?;
    let (plus, minus) = (&config.reference.positive, &config.reference.negative);
    let one = method.method != Method::Kto || plus == minus;
    let fix = "set both to the same source";
    places.that(
        "reference.negative",
        one,
        "the same reference as reference.positive for kto",
        "a different one",
        fix,
    )?;
    let many = method.num_samples;
    let range = "a whole number from 1 to 1024";
    places.that("method.num_samples", (1..=1024).contains(&many), range, many, "the paper uses 11")?;
    let smoothing = method.label_smoothing;
    let ok = (0.0..0.5).contains(&smoothing);
    places.that("method.label_smoothing", ok, "a number from 0 to below 0.5", smoothing, "0 turns it off")
}

fn anchors(config: &RunConfig, places: &Places) -> Result<()> {
    let anchors = &config.anchors;
    places.not_negative("anchors.temperature", anchors.temperature)?;
    let copies = config.method.method == Method::D2o
        && anchors.temperature == 0.0
        && config.method.num_samples > 1
        && anchors.samples_file.is_none();
    let found = format!("0, which gives {} copies of one answer", config.method.num_samples);
    let fix = "raise the temperature, or set num_samples to 1";
    places.that("anchors.temperature", !copies, "a number above 0", found, fix)?;
    let top_p = anchors.top_p;
    let ok = top_p > 0.0 && top_p <= 1.0;
    places.that("anchors.top_p", ok, "a number above 0 and up to 1", top_p, "1 turns it off")?;
    places.positive("anchors.repetition_penalty", anchors.repetition_penalty)?;
    places.at_least_one("anchors.max_new_tokens", anchors.max_new_tokens)?;
    let range = "a whole number from 1 to 192";
    let many = anchors.max_num_seqs;
    places.that(
        "anchors.max_num_seqs",
        (1..=MAX_NUM_SEQS).contains(&many),
        range,
        many,
        "leave it out to use 192",
    )?;
    places.at_least_one("anchors.refresh_every", anchors.refresh_every)?;
    let share = anchors.fresh_share;
    let (expected, fix) = ("a number above 0 and up to 1", "1 samples all of them again");
    places.that("anchors.fresh_share", share > 0.0 && share <= 1.0, expected, share, fix)
}

fn negatives(config: &RunConfig, places: &Places) -> Result<()> {
    let negatives = &config.negatives;
    let share = negatives.fresh_share;
    let (expected, fix) = ("a number from 0 to 1", "0.5 takes each as often");
    places.that("negatives.fresh_share", (0.0..=1.0).contains(&share), expected, share, fix)?;
    if config.negative_choice() != NegativeChoice::Generated {
        return Ok(());
    }
    let fix = format!("give {}", setting_to("harmful_instruction", "Be rude to the customer."));
    let given = !negatives.harmful_instruction.is_empty();
    places.that("negatives.harmful_instruction", given, "what to tell the model", "nothing", &fix)?;
    let judged = config.anchors.choice != AnchorChoice::All;
    let fix = format!("set {} to pu, pu_weight or meter:METER", setting("anchors.choice"));
    let expected = "a choice that tells bad answers from good ones";
    places.that("anchors.choice", judged, expected, "all", &fix)
}

fn reference(config: &RunConfig, places: &Places) -> Result<()> {
    let reference = &config.reference;
    for (key, source) in
        [("reference.positive", &reference.positive), ("reference.negative", &reference.negative)]
    {
        match source {
            ReferenceSource::Initial | ReferenceSource::Checkpoint(_) => {}
            ReferenceSource::CopyEvery(steps) => places.at_least_one(key, *steps)?,
            ReferenceSource::Ema(decay) => places.below_one(key, *decay)?,
        }
    }
    Ok(())
}

/// Refuses what would wait for the GPU where nothing may wait: in a browser's tab.
fn waits(config: &RunConfig, places: &Places) -> Result<()> {
    let waiting = [
        ("model.offload", config.model.offload),
        ("gpu.background", config.gpu.background),
        ("gpu.paranoid", config.gpu.paranoid),
    ];
    waiting.into_iter().filter(|_| cfg!(target_arch = "wasm32")).try_for_each(|(key, given)| {
        places.that(
            key,
            !given,
            "false in a browser's tab, which cannot wait for the GPU",
            "true",
            "leave it out",
        )
    })
}

fn lora(config: &RunConfig, places: &Places) -> Result<()> {
    let lora = &config.lora;
    places.at_least_one("lora.r", lora.r)?;
    places.positive("lora.lora_alpha", lora.lora_alpha)?;
    places.below_one("lora.lora_dropout", lora.lora_dropout)?;
    let fix = "name layers, as in q_proj,v_proj, or write all-linear";
    if let TargetModules::Names(names) = &lora.target_modules {
        let ok = !names.is_empty() && names.iter().all(|name| !name.is_empty());
        places.that("lora.target_modules", ok, "names of layers", format!("{names:?}"), fix)?;
    }
    let clash = !lora.enabled && config.model.adapter.is_some();
    let fix = "merge the adapter with `aweigh export` first, or train an adapter";
    places.that("model.adapter", !clash, "no adapter with lora.enabled = false", "one", fix)?;
    let clash = !lora.enabled && config.model.quantize.is_some();
    let fix = "train an adapter, or leave quantize out";
    let offload = !config.model.offload || lora.enabled;
    places.that(
        "model.offload",
        offload,
        "false with lora.enabled = false",
        "true",
        "train an adapter, or leave offload out",
    )?;
    places.that("model.quantize", !clash, "no quantised weights with lora.enabled = false", "some", fix)
}

fn train(config: &RunConfig, places: &Places) -> Result<()> {
    let train = &config.train;
    places.positive("train.learning_rate", config.learning_rate())?;
    let ratio = train.warmup_ratio.unwrap_or(0.0);
    let ok = (0.0..=1.0).contains(&ratio);
    places.that("train.warmup_ratio", ok, "a number from 0 to 1", ratio, "give a share of all steps")?;
    let given = train.warmup_steps.is_some_and(|steps| steps > 0) || ratio > 0.0;
    let unused = train.lr_scheduler_type == LrScheduler::Constant && given;
    let fix = "use constant_with_warmup, or no warm-up";
    places.that("train.lr_scheduler_type", !unused, "a schedule with a warm-up", "constant", fix)?;
    places.not_negative("train.weight_decay", train.weight_decay)?;
    places.below_one("train.adam_beta1", train.adam_beta1)?;
    places.below_one("train.adam_beta2", train.adam_beta2)?;
    places.positive("train.adam_epsilon", train.adam_epsilon)?;
    places.not_negative("train.max_grad_norm", train.max_grad_norm)?;
    let groups = [
        ("train.per_device_train_batch_size", train.per_device_train_batch_size),
        ("train.gradient_accumulation_steps", train.gradient_accumulation_steps),
    ];
    for (key, value) in groups {
        let fix = "give a number in that range; 8 to 64 are usual";
        places.that(key, (1..=65_536).contains(&value), "a whole number from 1 to 65536", value, fix)?;
    }
    places.positive("train.num_train_epochs", train.num_train_epochs)?;
    places.at_least_one("train.max_steps", train.max_steps.unwrap_or(1))?;
    places.at_least_one("train.max_tokens_per_batch", train.max_tokens_per_batch.unwrap_or(1))
}

fn stop(config: &RunConfig, places: &Places) -> Result<()> {
    let stop = &config.stop;
    places.at_least_one("stop.eval_steps", stop.eval_steps)?;
    places.at_least_one("stop.max_skipped", stop.max_skipped)?;
    places.positive("stop.max_anchor_drop", stop.max_anchor_drop)?;
    places.positive("stop.max_kl", stop.max_kl)?;
    places.positive("stop.margin", stop.margin)?;
    places.at_least_one("stop.patience", stop.patience)?;
    places.positive("stop.max_perplexity_rise", stop.max_perplexity_rise)?;
    places.below_one("stop.target_unwanted", stop.target_unwanted)?;
    places.not_negative("stop.max_refusal_rise", stop.max_refusal_rise)?;
    places.not_negative("stop.max_distinct_drop", stop.max_distinct_drop)?;
    places.not_negative("stop.max_length_change", stop.max_length_change)
}

/// A sentence that names the changed settings that the method ignores.
fn unused(config: &RunConfig) -> Option<String> {
    use Method::*;
    let (given, usual, anchors) = (&config.method, MethodConfig::default(), &config.anchors);
    let method = given.method;
    let initial = |source: &ReferenceSource| *source == ReferenceSource::Initial;
    let referred = matches!(method, D2o | Dpo | Ipo | Hinge | Kto | Npo);
    let constants = [
        ("alpha", given.alpha.is_some(), method == D2o),
        ("beta", given.beta.is_some(), method.default_beta().is_some()),
        ("gamma", given.gamma.is_some(), method.default_gamma().is_some()),
        ("negative_floor", given.negative_floor.is_some(), method == D2o),
        ("label_smoothing", given.label_smoothing != 0.0, method == Dpo),
        ("delta", given.delta != usual.delta, method == Slic),
        ("sft_weight", given.sft_weight != usual.sft_weight, method == Slic),
        ("desirable_weight", given.desirable_weight != usual.desirable_weight, method == Kto),
        ("undesirable_weight", given.undesirable_weight != usual.undesirable_weight, method == Kto),
        ("anchors.choice", anchors.choice != AnchorChoice::All, method == D2o),
        ("negatives.choice", config.negatives.choice != config.negative_choice(), false),
        ("balance", config.negatives.balance > 0, method.is_of_negatives()),
        ("anchor_filter", anchors.anchor_filter.is_some(), method.is_of_negatives()),
        ("anchor_examples", anchors.anchor_examples.is_some(), method.is_of_negatives()),
        // Methods that learn from flagged answers only have anchors for their held-out prompts.
        ("num_samples", given.num_samples != usual.num_samples, method.is_of_negatives()),
        ("length_normalize", given.length_normalize, matches!(method, D2o | Dpo | Hinge | Slic | Kto | Npo)),
        ("reference.positive", !initial(&config.reference.positive), referred),
        ("reference.negative", !initial(&config.reference.negative), referred),
    ];
    let names: Vec<&str> =
        constants.iter().filter(|(_, changed, used)| *changed && !used).map(|(name, ..)| *name).collect();
    let method = serde_json::to_value(method).ok()?;
    let method = method.as_str()?;
    (!names.is_empty()).then(|| format!("{method} ignores {}", names.join(", ")))
}

/// Warnings about settings that are valid but rarely intended.
pub(super) fn warnings(config: &RunConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    let anchors = &config.anchors;
    let d2o = config.method.method == Method::D2o;
    let bare = anchors.online_sampler == OnlineSampler::Policy
        || (anchors.online_sampler == OnlineSampler::PolicyWithInstruction
            && anchors.safety_instruction.is_empty()
            && anchors.anchor_examples.is_none());
    if d2o && anchors.online_start_step.is_some() && bare {
        warnings.push(
            "online anchors are sampled from the policy without an instruction: their mean gradient is zero, \
             so they do not anchor the model; set online_sampler = \"reference\" or \
             \"policy_with_instruction\" (with a safety_instruction or anchor_examples)"
                .into(),
        );
    }
    let groups = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps;
    if config.method.method == Method::Kto && groups < 2 {
        warnings.push("KTO estimates its KL over the answers of a step, but here a step has only one".into());
    }
    if d2o && config.method.beta() == 0.0 {
        warnings.push("beta is 0: nothing keeps the model close to where it started".into());
    }
    if anchors.anchor_examples.is_some() && config.stop.max_kl != StopConfig::default().max_kl {
        warnings
            .push("max_kl is not applied with anchor_examples: those anchors show no KL divergence".into());
    }
    warnings.extend(unused(config));
    let (retain, usual) = (&config.retain, RetainConfig::default());
    let changed = [
        ("retain.weight", retain.weight != usual.weight),
        ("retain.batch_size", retain.batch_size != usual.batch_size),
        ("retain.max_new_tokens", retain.max_new_tokens.is_some()),
    ];
    for (name, _) in changed.iter().filter(|(_, changed)| *changed && retain.form == Retain::None) {
        warnings.push(format!("{} does nothing without {}", setting(name), setting("retain.form")));
    }
    if d2o && anchors.choice == AnchorChoice::PuWeight && config.method.num_samples == 1 {
        warnings.push(format!(
            "{} weighs a prompt's anchors against each other, but with one anchor there is nothing to weigh: \
             use pu",
            setting_to("anchors.choice", "pu_weight")
        ));
    }
    let (given, usual) = (&config.negatives, NegativeConfig::default());
    let generated = config.negative_choice() == NegativeChoice::Generated;
    let online = anchors.online_start_step.is_some();
    let changed = [
        ("harmful_instruction", !given.harmful_instruction.is_empty() && !generated, "negatives.choice"),
        ("fresh_negatives", given.fresh_share != usual.fresh_share && !generated, "negatives.choice"),
        ("fresh_anchors", anchors.fresh_share != 1.0 && !online, "online_start_step"),
    ];
    for (name, _, without) in changed.iter().filter(|(_, idle, _)| *idle) {
        let without = match *without {
            "negatives.choice" => setting_to(without, "generated"),
            other => setting(other),
        };
        warnings.push(format!("{} does nothing without {without}", setting(name)));
    }
    if config.stop.unwanted.is_some() && config.output.num_completions == 0 {
        warnings.push(
            "without num_completions no answers are read, so the rule for unwanted ones does nothing".into(),
        );
    }
    if !config.stop.enabled {
        warnings.push(
            "the stop rule is off: once the flagged behaviour is gone, further training breaks the model"
                .into(),
        );
    }
    warnings
}
