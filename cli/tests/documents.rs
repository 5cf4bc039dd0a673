//! The documents against the program: commands are understood, flags exist, links lead somewhere.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use aweigh::bench::median;
use aweigh_cli::Cli;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use regex::Regex;
use serde_json::Value;

use super::room::of_repository;

/// Every document with its text. CHANGELOG.md may name what is gone.
fn documents() -> Vec<(String, String)> {
    let mut paths: Vec<PathBuf> = ["", "docs", "examples", "benches/peers", "cli"]
        .iter()
        .flat_map(|folder| fs::read_dir(of_repository(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "md") && !path.ends_with("CHANGELOG.md"))
        .collect();
    paths.sort();
    assert!(paths.len() > 20, "{paths:?}");
    paths.into_iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap())).collect()
}

/// The `aweigh` commands of a text: those in code blocks and between backticks. `\` continues a line.
fn commands(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let block = Regex::new(r"(?m)^(?: {4}|\$ )?(aweigh [^\n]*)$").unwrap();
    let inline = Regex::new(r"`(aweigh [^`]*)`").unwrap();
    let found = |regex: &Regex| -> Vec<String> {
        regex.captures_iter(&joined).map(|found| found[1].split(" #").next().unwrap().to_owned()).collect()
    };
    // Prose that begins a line with the program's name has no flags.
    let of_blocks = found(&block).into_iter().filter(|command| command.contains(" --"));
    of_blocks.chain(found(&inline)).collect()
}

#[test]
fn every_command_is_understood() {
    let mut count = 0;
    for (path, text) in documents() {
        for command in commands(&text) {
            // A command may be named without its flags, or with some of them left out.
            if ["...", "COMMAND", " = "].iter().any(|part| command.contains(part)) {
                continue;
            }
            count += 1;
            if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
                let incomplete = [
                    ErrorKind::MissingRequiredArgument,
                    ErrorKind::MissingSubcommand,
                    ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                ];
                assert!(incomplete.contains(&error.kind()), "{path}: {command}: {error}");
            }
        }
    }
    assert!(count > 30, "only {count} commands were found");
}

#[test]
fn every_flag_exists() {
    fn collect(command: &clap::Command, flags: &mut BTreeSet<String>) {
        let own = command.get_arguments().filter_map(|argument| argument.get_long());
        flags.extend(own.map(|name| format!("--{name}")));
        command.get_subcommands().for_each(|command| collect(command, flags));
    }
    let mut flags = BTreeSet::new();
    let mut command = Cli::command();
    command.build();
    collect(&command, &mut flags);
    // Flags of other programs.
    let others = ["--path", "--release", "--example", "--test", "--lib", "--no-deps", "--logdir"];
    flags.extend(others.map(str::to_owned));
    let flag = Regex::new(r"`[^`\n]*?(--[a-z][a-z0-9-]*)").unwrap();
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        let of_users = path.contains("/docs/") || path.ends_with("/README.md") && !path.contains("benches");
        for found in flag.captures_iter(&text).filter(|_| of_users) {
            unknown.extend((!flags.contains(&found[1])).then(|| format!("{path}: {}", &found[1])));
        }
    }
    assert!(unknown.is_empty(), "no such flags: {unknown:#?}");
}

#[test]
fn every_link_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let heading = Regex::new(r"(?m)^#+ (.+)$").unwrap();
    let mut count = 0;
    for (path, text) in documents() {
        for found in link.captures_iter(&text).map(|found| found[1].to_owned()) {
            if found.contains("://") {
                continue;
            }
            count += 1;
            let (file, part) = found.split_once('#').unwrap_or((&found, ""));
            let target = match file {
                "" => PathBuf::from(&path),
                file => PathBuf::from(&path).parent().unwrap().join(file),
            };
            assert!(target.exists(), "{path}: {found}: there is no such file");
            if part.is_empty() {
                continue;
            }
            // As GitHub makes them: lower case, no punctuation, dashes for spaces.
            let anchor = |title: &str| -> String {
                let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
                title.to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
            };
            let titles = fs::read_to_string(&target).unwrap();
            let mut titles = heading.captures_iter(&titles).map(|title| anchor(&title[1]));
            assert!(titles.any(|title| title == part), "{path}: {found}: there is no such heading");
        }
    }
    assert!(count > 60, "only {count} links were found");
}

/// docs/speed.md has a row for each file in benches/machines, which `aweigh bench --json` wrote.
#[test]
fn the_table_of_machines() {
    let mut paths: Vec<PathBuf> = fs::read_dir(of_repository("benches/machines"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    paths.sort();
    let mut table = String::from(
        "| file | processor | instruction sets | cores | GPU, driver | peak, GFLOP/s | NT, NN, TN | \
         step, all weights | sampling |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for path in paths {
        let figures: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let machine = &figures["machine"];
        let words = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let sets = machine["instruction_sets"].as_array().unwrap().last().map(words).unwrap_or_default();
        // The fastest kernel for f32 operands of 1024 x 1024.
        let best = |form: &str| {
            let rates = figures["rates"].as_array().unwrap().iter();
            let own = rates.filter(|rate| {
                let kernel = words(&rate["kernel"]);
                words(&rate["shape"]) == "m=1024 n=1024 k=1024"
                    && kernel.split(' ').any(|word| word == form)
                    && !kernel.contains("PACKED")
            });
            own.filter_map(|rate| rate["gflops"].as_f64()).fold(f64::NAN, f64::max)
        };
        let middle = |value: &Value| {
            let values = value.as_array().into_iter().flatten().filter_map(Value::as_f64);
            median(&values.collect::<Vec<_>>())
        };
        let shown = |value: f64, digits: usize, unit: &str| match value.is_nan() {
            true => String::new(),
            false => format!("{value:.digits$}{unit}"),
        };
        writeln!(
            table,
            "| [{name}](../benches/machines/{name}.json) | {} | {sets} | {} | {}, {} | {} | {} | {} | {} |",
            words(&machine["processor"]),
            machine["cores"],
            words(&figures["gpu"]),
            words(&figures["driver"]),
            shown(middle(&figures["peak"]["gflops"]), 0, ""),
            ["NT", "NN", "TN"].map(|form| shown(best(form), 1, "")).join(", "),
            shown(middle(&figures["step_full"]["seconds"]), 2, " s"),
            shown(middle(&figures["sample"]["together"]), 1, " tokens/s"),
        )
        .unwrap();
    }
    let path = of_repository("docs/speed.md");
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find("| file | processor |").expect("the table's place");
    let end = start + text[start..].find("\n\n").expect("an empty line behind the table") + 1;
    if std::env::var_os("AWEIGH_WRITE_DOCS").is_some() {
        fs::write(&path, [&text[..start], &table, &text[end..]].concat()).unwrap();
    } else {
        assert_eq!(&text[start..end], table, "`cargo xtask docs` writes it");
    }
}
