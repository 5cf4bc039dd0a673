use clap::{Args, FromArgMatches};

use super::*;

fn flags(arguments: &[&str]) -> PartialConfig {
    let command = PartialConfig::augment_args(clap::Command::new("align").no_binary_name(true));
    PartialConfig::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
}

const NEEDED: &str = "[model]\nmodel = 'tiny'\n[data]\ntrain = 'a.jsonl'\n[output]\noutput_dir = 'run'\n";

fn resolve(file: &str, arguments: &[&str]) -> Result<RunConfig> {
    RunConfig::resolve(vec![Layer::from_toml(file, "run.toml")?, Layer::from_flags(flags(arguments))])
}

/// The message of an error in `NEEDED` + `file` + `arguments`.
fn message(file: &str, arguments: &[&str]) -> String {
    resolve(&format!("{NEEDED}{file}"), arguments).unwrap_err().to_string()
}

#[test]
fn flags_go_over_the_file_and_the_file_over_the_defaults() {
    let file = format!("{NEEDED}[method]\nbeta = 1\nalpha = 0.3\n");
    let config = resolve(&file, &["--beta", "0.5", "--full", "--reference-negative", "ema:0.99"]).unwrap();
    let method = &config.method;
    assert_eq!((method.beta(), method.alpha(0.5), method.num_samples), (0.5, 0.3, 2));
    assert!(!config.lora.enabled);
    assert_eq!(config.reference.negative, ReferenceSource::Ema(0.99));
    assert_eq!(config.model.model, "tiny");
}

#[test]
fn what_is_written_reads_back_the_same() {
    let arguments = [
        "--reference-positive=copy:5",
        "--reference-negative=checkpoint:some dir",
        "--target-modules=all-linear",
        "--max-steps=24",
        "--lr-scheduler-type=constant_with_warmup",
        "--safety-instruction=say \"no\"\nplease",
    ];
    let config = resolve(NEEDED, &arguments).unwrap();
    assert_eq!(resolve(&config.to_toml().unwrap(), &[]).unwrap(), config);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_its_neighbour() {
    let text = message("[train]\nseed = 1\nlearning_rat = 1e-4\n", &[]);
    assert!(text.starts_with("run.toml:9: train.learning_rat:"), "{text}");
    assert!(text.contains("did you mean \"learning_rate\"?"), "{text}");
    let text = message("[train]\nlr = 1e-4\n", &[]);
    assert!(text.contains("\"learning_rate\", under [train]"), "{text}");
    let text = message("[method]\ntemperature = 1.0\n", &[]);
    assert!(text.contains("\"temperature\", under [anchors]"), "{text}");
    let text = message("[anchor]\ntop_p = 1.0\n", &[]);
    assert!(text.starts_with("run.toml:7: anchor:") && text.contains("[anchors]"), "{text}");
    let text = resolve("beta = 0.1\n", &[]).unwrap_err().to_string();
    assert!(text.starts_with("run.toml:1: beta:") && text.contains("\"beta\", under [method]"), "{text}");
}

#[test]
fn a_wrong_kind_of_value_is_named_with_its_line() {
    let text = message("[method]\nbeta = 'high'\n", &[]);
    assert!(
        text.starts_with("run.toml:8: method.beta: expected a number or \"auto\", found the text \"high\""),
        "{text}"
    );
    let text = message("[train]\nmax_steps = '2'\n", &[]);
    assert!(
        text.contains("train.max_steps: expected a whole number of at least 0, found the text \"2\""),
        "{text}"
    );
    let text = message("[train]\nmax_steps = -2\n", &[]);
    assert!(text.contains("expected a whole number of at least 0, found -2"), "{text}");
    let text = message("[train]\nshuffle = 1\n", &[]);
    assert!(text.contains("expected true or false, found 1"), "{text}");
    let text = message("[method]\nmethod = 'dop'\n", &[]);
    assert!(text.contains("run.toml:8: method.method") && text.contains("`dpo`"), "{text}");
    let text = message("[reference]\npositive = 'ema:0.9'\n", &[]);
    assert!(text.contains("run.toml:8: reference.positive") && text.contains("{ ema = DECAY }"), "{text}");
    let text = message("[lora]\ntarget_modules = 7\n", &[]);
    assert!(text.contains("run.toml:8: lora.target_modules"), "{text}");
    let text = message("[train\n", &[]);
    assert!(text.starts_with("run.toml:7"), "{text}");
}

#[test]
fn a_value_out_of_range_is_named_with_its_source() {
    let text = message("", &["--learning-rate", "-1"]);
    assert!(
        text.starts_with("--learning-rate (train.learning_rate): expected a number above 0, found -1"),
        "{text}"
    );
    let text = message("[anchors]\ntop_p = 0.0\n", &[]);
    assert!(text.starts_with("run.toml:8: anchors.top_p: expected"), "{text}");
    for wrong in [
        &["--num-samples=0"][..],
        &["--temperature=0"],
        &["--temperature=nan"],
        &["--beta=0", "--alpha=0"],
        &["--method=dpo", "--beta=0"],
        &["--lora-dropout=1"],
        &["--target-modules="],
        &["--reference-positive=ema:1"],
        &["--reference-negative=copy:0"],
        &["--lr-scheduler-type=constant", "--warmup-steps=3"],
        &["--full", "--adapter=x"],
        &["--adam-beta2=1"],
        &["--label-smoothing=0.5"],
        &["--submit-budget=inf"],
        &["--max-steps=0"],
    ] {
        let text = message("", wrong);
        let flag = |argument: &&str| text.contains(argument.split('=').next().unwrap());
        assert!(wrong.iter().any(flag) && text.contains("what to do"), "{wrong:?}: {text}");
    }
    // One error names all missing settings.
    let text = RunConfig::resolve(vec![]).unwrap_err().to_string();
    let places = "model, train, output_dir: expected";
    assert!(text.starts_with(places) && text.contains("found none of them"), "{text}");
}

#[test]
fn every_flag_has_help_and_states_its_true_default() {
    let command = PartialConfig::augment_args(clap::Command::new("align"));
    let defaults = toml::Table::try_from(RunConfig::default()).unwrap();
    let mut arguments = command.get_arguments();
    for (section, keys) in PartialConfig::SECTIONS {
        for key in *keys {
            let argument = arguments.next().unwrap();
            let help =
                argument.get_long_help().or(argument.get_help()).unwrap().to_string().replace('\n', " ");
            assert!(help.len() > 20, "{section}.{key}: {help}");
            let Some((_, stated)) = help.split_once("[default: ") else { continue };
            let stated = stated.trim_end_matches(']');
            match &defaults[*section][*key] {
                toml::Value::Float(value) => {
                    assert_eq!(stated.parse::<f64>().unwrap(), *value, "{section}.{key}")
                }
                toml::Value::Array(value) => {
                    let names: Vec<_> = value.iter().filter_map(|name| name.as_str()).collect();
                    assert_eq!(stated, names.join(","), "{section}.{key}");
                }
                toml::Value::String(value) if value.is_empty() => assert_eq!(stated, "none"),
                value => assert_eq!(stated, value.to_string().trim_matches('"'), "{section}.{key}"),
            }
        }
    }
    assert_eq!(arguments.count(), 0);
}

#[test]
fn every_value_with_a_default_says_so() {
    let defaults = toml::Table::try_from(RunConfig::default()).unwrap();
    let command = PartialConfig::augment_args(clap::Command::new("align"));
    let mut arguments = command.get_arguments();
    for (section, keys) in PartialConfig::SECTIONS {
        for key in *keys {
            let argument = arguments.next().unwrap();
            let help = argument.get_long_help().or(argument.get_help()).unwrap().to_string();
            let spoken = ["[default", "(required)", "In a file: "].iter().any(|words| help.contains(words));
            let has = defaults[*section].get(*key).is_some();
            assert!(!has || spoken, "{section}.{key}: {help}");
        }
    }
}

#[test]
fn another_method_over_a_run_s_file_has_its_own_usual_constants() {
    let first = RunConfig {
        model: ModelConfig { model: "m".into(), ..ModelConfig::default() },
        ..RunConfig::default()
    };
    let again: RunConfig = toml::from_str(&first.to_toml().unwrap()).unwrap();
    assert!(again.method.is_measured());
    let simpo = MethodConfig { method: Method::Simpo, ..again.method };
    assert_eq!((simpo.beta(), simpo.gamma()), (2.0, 1.0));
}

#[test]
fn constants_of_another_method_are_warned_of() {
    let mut config = RunConfig::default();
    config.stop.enabled = true;
    assert_eq!(config.warnings(), Vec::<String>::new());
    config.method.method = Method::Ga;
    config.method.beta = Some(Beta::Of(0.2));
    config.method.alpha = Some(0.3);
    assert_eq!(config.warnings(), ["ga ignores alpha, beta"]);
    config.method.method = Method::Simpo;
    config.method.gamma = Some(0.5);
    assert_eq!(config.warnings(), ["simpo ignores alpha"]);
    config.method.num_samples = 4;
    config.method.length_normalize = true;
    config.reference.positive = ReferenceSource::Ema(0.9);
    let unused = "simpo ignores alpha, num_samples, length_normalize, reference.positive";
    assert_eq!(config.warnings(), [unused]);
    assert_eq!(config.method.beta(), 0.2);
}

#[test]
fn presets_are_settings_and_habit_is_the_default() {
    let over = |preset: Preset, arguments: &[&str]| {
        let needed = Layer::from_toml(NEEDED, "run.toml").unwrap();
        RunConfig::resolve(vec![preset.layer(), needed, Layer::from_flags(flags(arguments))]).unwrap()
    };
    assert_eq!(over(Preset::Habit, &[]), resolve(NEEDED, &[]).unwrap());
    assert_eq!(over(Preset::Habit, &["--method", "dpo"]), resolve(NEEDED, &["--method", "dpo"]).unwrap());
    let paper = over(Preset::Paper, &["--num-samples", "3"]);
    assert_eq!((paper.method.alpha(0.1), paper.method.beta(), paper.method.num_samples), (0.1, 0.1, 3));
    let refuse = over(Preset::Refuse, &["--learning-rate", "1e-4"]);
    assert_eq!((refuse.learning_rate(), refuse.retain.form), (1e-4, crate::loss::Retain::Kl));
    // Its anchors are no samples of the model, so they show no KL divergence from it.
    assert_eq!((refuse.max_kl(), paper.max_kl()), (f64::MAX, 0.2));
    assert!(refuse.warnings().is_empty());
    let limited = over(Preset::Refuse, &["--max-kl", "0.1"]);
    assert!(limited.warnings()[0].starts_with("max_kl is not applied"));
}

#[test]
fn none_takes_away_what_a_preset_has_set() {
    let over = |above: Layer| {
        let needed = Layer::from_toml(NEEDED, "run.toml").unwrap();
        RunConfig::resolve(vec![Preset::Refuse.layer(), needed, above]).unwrap()
    };
    let anchors = over(Layer::default()).anchors;
    assert_eq!(anchors.anchor_examples.as_deref(), Some("refusals"));
    assert_eq!(anchors.anchor_filter.0, Some(crate::data::Rule::refusal()));
    let off = over(Layer::from_flags(flags(&["--anchor-examples", "none", "--anchor-filter", "none"])));
    assert!(off.anchors.anchor_examples.is_none() && off.anchors.anchor_filter.is_none());
    // A run's own file, over the same preset, has it off too.
    assert_eq!(over(Layer::from_toml(&off.to_toml().unwrap(), "config.toml").unwrap()), off);
}

#[test]
fn the_learning_rate_follows_from_what_is_trained() {
    let rate = |arguments: &[&str]| resolve(NEEDED, arguments).unwrap().learning_rate();
    assert_eq!((rate(&[]), rate(&["--full"])), (2e-4, 2e-5));
    assert_eq!((rate(&["--method", "dpo"]), rate(&["--method", "sft", "--full"])), (1e-4, 1e-5));
    assert_eq!(rate(&["--full", "--learning-rate", "0.5"]), 0.5);
    let warmup = |arguments: &[&str]| resolve(NEEDED, arguments).unwrap().train.warmup(40);
    assert_eq!((warmup(&[]), warmup(&["--lr-scheduler-type", "constant"])), (3, 0));
    assert_eq!([1, 9, 15, 500].map(|steps| resolve(NEEDED, &[]).unwrap().train.warmup(steps)), [0, 0, 1, 3]);
    // The rate of an earlier run's file is its method's, so it is not written unless it was given.
    let file = resolve(NEEDED, &[]).unwrap().to_toml().unwrap();
    assert_eq!(resolve(&file, &["--full"]).unwrap().learning_rate(), 2e-5);
    assert_eq!((warmup(&["--warmup-ratio", "0.26"]), warmup(&["--warmup-steps", "0"])), (11, 0));
}
