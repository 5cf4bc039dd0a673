//! The documents against the program: commands are understood, flags exist, links lead somewhere.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use aweigh::bench::median;
use aweigh_app::report_page::chart::{Chart, Series};
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

/// The words of a command as a shell takes them: quotes keep spaces.
fn words(command: &str) -> Vec<String> {
    let word = Regex::new(r#""([^"]*)"|'([^']*)'|(\S+)"#).unwrap();
    let found = word.captures_iter(command);
    found.map(|found| found.iter().skip(1).flatten().map(|part| part.as_str()).collect()).collect()
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
            if let Err(error) = Cli::try_parse_from(words(&command)) {
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
    let others =
        others.into_iter().chain(["--package", "--check", "--checked", "--only", "--lora", "--serve"]);
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

/// docs/machines.md has a row for each file in benches/machines, a report of `aweigh selftest` or of
/// `aweigh bench`.
#[test]
fn the_tables_of_machines() {
    let mut paths: Vec<PathBuf> = fs::read_dir(of_repository("benches/machines"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    paths.sort();
    let mut verdicts = String::from(
        "| report | system | GPU, driver | backend | checks passed | version |\n|---|---|---|---|---|---|\n",
    );
    let mut table = String::from(
        "| report | processor | instruction sets | cores | GPU, driver | peak, GFLOP/s | NT, NN, TN | \
         step, all weights | sampling |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for path in paths {
        let figures: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let machine = &figures["machine"];
        let words = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if let Some(checks) = figures["checks"].as_array() {
            let (gpu, passed) =
                (&figures["gpu"], checks.iter().filter(|check| check["passed"] == true).count());
            let version = words(&figures["version"]);
            writeln!(
                verdicts,
                "| [{name}](../benches/machines/{name}.json) | {}, {} | {} | {} | {passed} of {}{} | {} |",
                words(&machine["processor"]),
                words(&machine["system"]),
                // Browsers do not tell the driver.
                format!("{}, {}", words(&gpu["name"]), words(&gpu["driver"])).trim_end_matches(", "),
                words(&gpu["backend"]),
                checks.len(),
                match (figures["quick"] == true, words(&figures["precision"]) == "f16") {
                    (false, false) => "",
                    (true, false) => ", quick",
                    (false, true) => ", f16",
                    (true, true) => ", quick, f16",
                },
                version.split(", ").take(2).collect::<Vec<_>>().join(", ").replace('(', ""),
            )
            .unwrap();
            continue;
        }
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
    let path = of_repository("docs/machines.md");
    let mut text = fs::read_to_string(&path).unwrap();
    for (first, table) in [("| report | system |", verdicts), ("| report | processor |", table)] {
        let start = text.find(first).expect("the table's place");
        let end = start + text[start..].find("\n\n").expect("an empty line behind the table") + 1;
        if std::env::var_os("AWEIGH_WRITE_DOCS").is_some() {
            text.replace_range(start..end, &table);
        } else {
            assert_eq!(&text[start..end], table, "`cargo xtask docs` writes it");
        }
    }
    if std::env::var_os("AWEIGH_WRITE_DOCS").is_some() {
        fs::write(&path, text).unwrap();
    }
}

/// The cells of the table whose heading begins with `heading`. An empty first cell repeats the one above.
fn cells(text: &str, heading: &str) -> Vec<Vec<String>> {
    let start = text.find(heading).unwrap_or_else(|| panic!("no table {heading}"));
    let lines = text[start..].lines().take_while(|line| line.starts_with('|'));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in lines.filter(|line| !line.starts_with("|---")) {
        let mut row: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        if row[0].is_empty() {
            row[0] = rows.last().expect("a row above")[0].clone();
        }
        rows.push(row);
    }
    rows
}

/// The curves of docs/figures.md show the figures of its tables.
#[test]
fn the_charts_of_figures() {
    let text = fs::read_to_string(of_repository("docs/figures.md")).unwrap();
    let number = |cell: &String| -> f64 {
        let digits = cell.replace([' ', '%', '+'], "");
        digits.parse().unwrap_or_else(|_| panic!("{cell} is not a number"))
    };
    // Of 100 harmful requests and of 64 ordinary prompts.
    let rows = cells(&text, "| method | step | PKU");
    let harmful = |row: &[String]| number(&row[2]) + number(&row[3]);
    let ordinary = |row: &[String]| (number(&row[4]) + number(&row[5])) / 64.0 * 100.0;
    let against = |title: &str, most: f64, x: &dyn Fn(&[String]) -> f64| {
        let mut series: Vec<Series> = Vec::new();
        for row in &rows[2..] {
            if series.last().is_none_or(|last| last.name != row[0]) {
                let start = (x(&rows[1]), harmful(&rows[1]));
                series.push(Series { name: row[0].clone(), points: vec![start], dashed: false });
            }
            let point = (x(row), harmful(row));
            // A broken model would squeeze all others into a corner.
            series.last_mut().unwrap().points.extend((point.0 <= most).then_some(point));
        }
        Chart { title: title.into(), series, ..Chart::default() }
    };
    // The answers that the engine's runs read, in percent of 24: the means of a habit's runs at the steps
    // that all of them have.
    let rows = &cells(&text, "| run | step | unwanted")[1..];
    let mut means: Vec<Series> = Vec::new();
    for habit in ["you", "can"] {
        let own: Vec<_> = rows.iter().filter(|row| row[0].starts_with(habit)).collect();
        let runs = own.iter().filter(|row| row[1] == "0").count();
        for (column, kind, dashed) in [(2, "held-out", false), (3, "ordinary", true)] {
            let mut points = Vec::new();
            for first in own.iter().filter(|row| row[0] == own[0][0]) {
                let same: Vec<f64> =
                    own.iter().filter(|row| row[1] == first[1]).map(|row| number(&row[column])).collect();
                if same.len() == runs {
                    points.push((number(&first[1]), same.iter().sum::<f64>() / (24 * runs) as f64 * 100.0));
                }
            }
            means.push(Series { name: format!("{habit}, {kind}"), points, dashed });
        }
    }
    let by_step = Chart {
        title: "Unwanted answers, %, by step: means of three runs".into(),
        series: means,
        ..Chart::default()
    };
    let refused = "Refused: % of harmful requests (up), of ordinary prompts (across)";
    let perplexity = "Refused harmful requests, % (up), and rise of the perplexity, % (across)";
    let charts = [
        ("habit-by-step", by_step),
        ("refusals-ordinary", against(refused, 100.0, &ordinary)),
        ("refusals-perplexity", against(perplexity, 10.0, &|row| number(&row[6]))),
    ];
    for (name, chart) in charts {
        let path = of_repository("docs/figures").join(format!("{name}.svg"));
        if std::env::var_os("AWEIGH_WRITE_DOCS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, chart.file()).unwrap();
        } else {
            let written = fs::read_to_string(&path).unwrap_or_default();
            assert!(written == chart.file(), "{name}: `cargo xtask docs` draws it");
        }
    }
}
