//! The top-level modules of `src/` and the imports between them. A module imports only modules above it in
//! the table, and of these only those that the table lists for it. No two files import each
//! other, directly or through other files.
//!
//! ARCHITECTURE.md prints the table; `AWEIGH_WRITE_DOCS=1 cargo test --test layers` writes it there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// A module, the modules that it may import, and its contents.
const MODULES: [(&str, &str, &str); 22] = [
    ("error", "", "the error type, and how messages name settings"),
    ("rng", "", "random numbers as functions of a counter, the same on the host and the device"),
    ("loss", "", "the methods by name, and their formulas in f64"),
    ("reference", "rng loss", "every kernel in f64, as plain loops; a whole decoder; the tolerances"),
    ("shader", "", "the WGSL preprocessor, and the list of compiled variants (`shaders/permutations`)"),
    ("gpu", "error shader", "device, tensors, recording, pipelines, memory: the only module that uses wgpu"),
    ("data", "error", "JSONL, chat templates, tokens, packing"),
    ("kernels", "error loss gpu", "one file per kernel: parameters, shape checks, functions that record it"),
    ("nn", "error gpu kernels", "linear layers with LoRA, attention, MLP, blocks; trained parameters"),
    ("optim", "error gpu kernels nn", "AdamW, clipping, schedules"),
    (
        "model",
        "error rng loss gpu data kernels nn",
        "configuration, families, weights, adapters, the decoder",
    ),
    ("config", "error loss gpu data nn optim model", "a run's settings, from files and flags"),
    (
        "sample",
        "error gpu data kernels nn model config",
        "decoding, with a KV cache that a prompt's samples share",
    ),
    ("score", "error gpu data nn model", "log-probs of given answers"),
    (
        "eval",
        "error loss gpu data model sample score",
        "trained judges, word lists, statistics, comparisons; shares of bad answers",
    ),
    (
        "train",
        "error loss gpu data kernels nn optim model config sample score eval",
        "a run: setup, plan, anchors, references, steps, evaluation, stop rule, its state",
    ),
    (
        "tiny",
        "error gpu data kernels nn model config sample score",
        "the built-in model, its generated texts and their exact judge",
    ),
    ("files", "error gpu data model train tiny", "folders, memory maps, checkpoints, the Hub"),
    ("selftest", "error rng loss reference gpu data kernels nn model", "every kernel against its reference"),
    (
        "paranoid",
        "error rng loss reference gpu kernels",
        "any dispatch of a run against its kernel's reference",
    ),
    (
        "run",
        "error loss gpu data model config sample score eval train files paranoid",
        "a whole run: plan, checkpoints, recovery, results",
    ),
    ("bench", "error rng loss gpu data kernels nn optim model sample train", "what `aweigh bench` times"),
];

/// The one import cycle: the device makes tensors, kernels and recorders, and these refer to the device.
const OF_THE_DEVICE: [&str; 9] = [
    "gpu::context",
    "gpu::kernel",
    "gpu::memory",
    "gpu::options",
    "gpu::pipelines",
    "gpu::recorder",
    "gpu::sentinel",
    "gpu::tensor",
    "gpu::witness",
];

/// The imports of a file: paths from the root, such as `gpu::Tensor`.
type Imports = BTreeSet<Vec<String>>;

/// The source files of a folder by their module paths, with the imports of their code outside tests.
fn house(root: &str) -> BTreeMap<Vec<String>, Imports> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    let module = |path: &Path| -> Vec<String> {
        let inner = path.strip_prefix(&root).expect("inside").with_extension("");
        let parts = inner.iter().map(|part| part.to_string_lossy().into_owned());
        parts.filter(|part| part != "mod" && part != "lib").collect()
    };
    let is_test = |name: &str| name == "tests" || name == "testing" || name == "finite";
    let files = paths.iter().map(|path| (module(path), path));
    files
        .filter(|(module, _)| !module.last().is_some_and(|name| is_test(name)))
        .map(|(module, path)| {
            let text = fs::read_to_string(path).expect("readable");
            let imports = imports(&text, &module);
            (module, imports)
        })
        .collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|end| ["rs", "wgsl", "py"].iter().any(|one| end == *one)) {
            found.push(path);
        }
    }
}

/// The paths that start at `crate` or `super` in `text`, the file of `module`. Comments, test modules and
/// re-exports (`pub use`) are left out.
fn imports(text: &str, module: &[String]) -> Imports {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or("").to_owned() + "\n").collect();
    // Test modules are at the end of a file.
    let tests = Regex::new(r"#\[cfg\(test\)\]\n(pub(\(crate\))? )?mod ").expect("valid");
    let code = tests.split(&code).next().unwrap_or_default();
    // Re-exports of the folder's own files are no imports; re-exports from elsewhere are.
    let own = Regex::new(r"pub(?:\([a-z]+\))? use ([a-z_]\w*)::[^;]*;").expect("valid");
    let code = own.replace_all(code, |found: &regex::Captures| match &found[1] {
        "crate" | "super" => found[0].to_owned(),
        _ => String::new(),
    });
    let path = Regex::new(
        r"\b(crate|super)((?:::[A-Za-z_]\w*)*)(?:::(\{[^;]*?\}));|\b(crate|super)((?:::[A-Za-z_]\w*)+)",
    )
    .expect("valid");
    let mut all = Imports::new();
    for found in path.captures_iter(&code) {
        let (start, prefix) = match found.get(1) {
            Some(start) => (start.as_str(), &found[2]),
            None => (&found[4], &found[5]),
        };
        let mut base: Vec<String> = match start {
            "crate" => Vec::new(),
            _ => module[..module.len().saturating_sub(1)].to_vec(),
        };
        for part in prefix.split("::").filter(|part| !part.is_empty()) {
            if part == "super" {
                base.pop();
            } else {
                base.push(part.to_owned());
            }
        }
        match found.get(3) {
            None => drop(all.insert(base)),
            Some(tree) => {
                all.extend(leaves(tree.as_str()).into_iter().map(|leaf| [&base[..], &leaf].concat()))
            }
        }
    }
    all
}

/// The paths of a use tree such as `{a, b::{c, d}}`.
fn leaves(tree: &str) -> Vec<Vec<String>> {
    let inner = tree.trim().trim_start_matches('{').strip_suffix('}').unwrap_or_default();
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (i, letter) in inner.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let mut all = Vec::new();
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        let (prefix, rest) = part.split_at(part.find('{').unwrap_or(part.len()));
        let prefix = prefix.split(" as ").next().unwrap_or_default();
        let names = prefix.split("::").map(str::trim).filter(|name| !name.is_empty() && *name != "self");
        let names: Vec<String> = names.map(str::to_owned).collect();
        match rest.is_empty() {
            true => all.push(names),
            false => all.extend(leaves(rest).into_iter().map(|leaf| [&names[..], &leaf].concat())),
        }
    }
    all
}

/// The top-level module of a path from the root; `Error` and `Result` belong to `error`.
fn top(path: &[String]) -> &str {
    match path.first().map_or("", String::as_str) {
        "Error" | "Result" => "error",
        other => other,
    }
}

/// The imports between top-level modules that the table does not allow.
fn wrong_arrows(house: &BTreeMap<Vec<String>, Imports>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (module, imports) in house.iter().filter(|(module, _)| !module.is_empty()) {
        let own = module[0].as_str();
        let Some((_, may, _)) = MODULES.iter().find(|(name, ..)| *name == own) else {
            wrong.push(format!("src/{own} is not in the table"));
            continue;
        };
        for path in imports.iter().filter(|path| !path.is_empty()) {
            let other = top(path);
            if other != own && !may.split_whitespace().any(|name| name == other) {
                wrong.push(format!("{} imports crate::{}", module.join("::"), path.join("::")));
            }
        }
    }
    wrong
}

/// Groups of files that import each other, directly or through other files.
fn circles(house: &BTreeMap<Vec<String>, Imports>, root: &str) -> Vec<BTreeSet<String>> {
    let faces = faces(root);
    let file = |path: &Vec<String>| -> Option<Vec<String>> {
        let mut path = path.clone();
        // A path that a folder's `mod.rs` re-exports belongs to the file that defines it.
        while let Some(home) = faces.get(&path) {
            path.clone_from(home);
        }
        (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|module| house.contains_key(module))
    };
    let mut reach: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> = house
        .iter()
        .map(|(module, imports)| {
            let others = imports.iter().filter_map(&file).filter(|other| other != module);
            (module, others.collect())
        })
        .collect();
    // Repeats until nothing new is reached.
    loop {
        let before: usize = reach.values().map(BTreeSet::len).sum();
        let known = reach.clone();
        for others in reach.values_mut() {
            let more: Vec<_> =
                others.iter().filter_map(|other| known.get(other)).flatten().cloned().collect();
            others.extend(more);
        }
        if reach.values().map(BTreeSet::len).sum::<usize>() == before {
            break;
        }
    }
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (module, others) in reach.iter().filter(|(module, others)| others.contains(**module)) {
        let back = others.iter().filter(|other| reach.get(other).is_some_and(|far| far.contains(*module)));
        let circle: BTreeSet<String> = back.map(|other| other.join("::")).collect();
        if !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

/// The re-exports of the `mod.rs` files: the path that others import, and the path of the definition.
fn faces(root: &str) -> BTreeMap<Vec<String>, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    let hands_on = Regex::new(r"pub(?:\([a-z]+\))? use ([a-z_]\w*)::([^;]*);").expect("valid");
    let mut all = BTreeMap::new();
    for path in paths.iter().filter(|path| path.ends_with("mod.rs")) {
        let inner = path.parent().expect("a folder").strip_prefix(&root).expect("inside");
        let folder: Vec<String> = inner.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let text = fs::read_to_string(path).expect("readable");
        for found in hands_on.captures_iter(&text).filter(|found| !["crate", "super"].contains(&&found[1])) {
            for leaf in leaves(&format!("{{{}}}", &found[2])) {
                let from = [&folder[..], &leaf[leaf.len().saturating_sub(1)..]].concat();
                all.insert(from, [&folder[..], &[found[1].to_owned()], &leaf].concat());
            }
        }
    }
    all
}

#[test]
fn modules_import_as_the_table_says() {
    let above = |at: usize| MODULES[..at].iter().map(|(name, ..)| *name).collect::<Vec<_>>();
    for (at, (name, may, _)) in MODULES.iter().enumerate() {
        for other in may.split_whitespace() {
            assert!(above(at).contains(&other), "{name} may not import {other}, which is below it");
        }
    }
    let house = house("src");
    let wrong = wrong_arrows(&house);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Every import that the table allows is used.
    for (name, may, _) in MODULES {
        let of_module = || house.iter().filter(|(module, _)| module.first().is_some_and(|top| top == name));
        assert!(of_module().next().is_some(), "src/{name} does not exist");
        for other in may.split_whitespace() {
            let used = of_module().any(|(_, imports)| imports.iter().any(|path| top(path) == other));
            assert!(used, "{name} imports nothing of {other}: take it out of the table");
        }
    }
}

#[test]
fn no_files_import_each_other() {
    let mut found = circles(&house("src"), "src");
    found.retain(|circle| !circle.iter().all(|file| OF_THE_DEVICE.contains(&file.as_str())));
    for folder in ["app/src", "cli/src"] {
        found.extend(circles(&house(folder), folder));
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// A kernel has the name of its reference; what kernels share is in folders.
#[test]
fn every_kernel_has_a_reference() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names = |folder: &str| -> BTreeSet<String> {
        let entries =
            fs::read_dir(root.join(folder)).expect("readable").map(|entry| entry.expect("an entry").path());
        let files = entries.filter(|path| path.extension().is_some_and(|end| end == "rs"));
        files.map(|path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned()).collect()
    };
    let (kernels, references) = (names("kernels"), names("reference"));
    let without: Vec<_> = kernels.difference(&references).collect();
    assert!(kernels.len() > 20 && without.is_empty(), "kernels without a reference: {without:?}");
}

/// Raw strings (JSON, regular expressions) may be longer, and so may tests whose inputs are.
#[test]
fn lines_have_at_most_110_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("shaders/permutations")];
    for folder in ["src", "app", "cli", "tests", "examples", "python", "xtask/src", "fuzz", "shaders", "web"]
    {
        collect(&root.join(folder), &mut paths);
    }
    let mut long = Vec::new();
    for path in paths.iter().filter(|path| !path.to_string_lossy().ends_with("tests.rs")) {
        let text = fs::read_to_string(path).expect("readable");
        let raw = |line: &str| line.contains("r#\"") || line.contains(" r\"");
        let lines = (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > 110 && !raw(line));
        long.extend(lines.map(|(number, _)| format!("{}:{number}", path.display())));
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn a_wrong_import_is_found() {
    let module = ["gpu".to_owned(), "tensor".to_owned()];
    let text = "use crate::{Error, train::{State, stop}};\n\
                pub use crate::eval::stats::Estimate;\n\
                // crate::eval is only spoken of\n\
                fn f() -> crate::model::Decoder { super::memory::g() }\n\
                #[cfg(test)]\nmod tests { use crate::cli; }\n";
    let house = BTreeMap::from([(module.to_vec(), imports(text, &module))]);
    let wrong = wrong_arrows(&house);
    let expected = [
        "crate::eval::stats::Estimate",
        "crate::model::Decoder",
        "crate::train::State",
        "crate::train::stop",
    ];
    assert_eq!(wrong, expected.map(|path| format!("gpu::tensor imports {path}")));
    let both = |module: &str, text: &str| {
        let module = [module.to_owned()];
        (module.to_vec(), imports(text, &module))
    };
    let mut house =
        BTreeMap::from([both("loss", "use crate::rng::f;"), both("rng", "use crate::reference::g;")]);
    assert!(circles(&house, "src").is_empty());
    house.extend([both("reference", "use crate::loss::Loss;")]);
    assert_eq!(circles(&house, "src").len(), 1);
}

#[test]
fn the_architecture_prints_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).expect("ARCHITECTURE.md");
    let row = |(name, may, what): (&str, &str, &str)| {
        let may = if may.is_empty() { "nothing".into() } else { may.replace(' ', ", ") };
        format!("| `{name}` | {what} | {may} |\n")
    };
    let rows: String = MODULES.into_iter().map(row).collect();
    let table = format!("| module | contents | may import |\n|---|---|---|\n{rows}");
    let start = text.find("| module |").expect("the table's place");
    let end = start + text[start..].find("\n\n").expect("an empty line behind the table") + 1;
    if std::env::var_os("AWEIGH_WRITE_DOCS").is_some() {
        fs::write(&path, [&text[..start], &table, &text[end..]].concat()).expect("written");
    } else {
        assert_eq!(&text[start..end], table, "AWEIGH_WRITE_DOCS=1 cargo test --test layers writes it");
    }
}
