//! `#import`, `#ifdef` and constants for WGSL, and the list of variants in `shaders/permutations`.
//!
//! Directives stand alone on their line: `#import common/index`, `#ifdef NAME`, `#ifndef NAME`, `#else`, `#endif`.
//! Anything else that starts with `#` is an error. A variant's valued definitions become constants at the top.

use std::collections::BTreeMap;
use std::fmt;

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        /// Every WGSL file under `shaders/`, by its path without the extension.
        pub const SOURCES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../shaders/", $name, ".wgsl")))),*];
    };
}

sources! {
    "common/index", "common/pack", "common/reduce", "common/rng", "common/rows",
    "adamw", "add", "attention", "attention_delta", "attention_dkv", "attention_dq", "clip_scale", "column_sum",
    "dropout", "ema", "gather", "gather_backward", "kv_write", "log_prob", "log_prob_backward",
    "matmul", "matmul_tiled", "preference", "rms_norm", "rms_norm_backward", "rope", "sample",
    "sequence_sum", "sum_squares", "swiglu", "swiglu_backward",
}

const PERMUTATIONS: &str = include_str!("../../shaders/permutations");

/// One compiled form of a shader: its file and its definitions, in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    /// The file under `shaders/`, without the extension.
    pub shader: String,
    /// Definitions; `Some` values become constants.
    pub defines: BTreeMap<String, Option<u32>>,
}

impl Variant {
    /// Parses `name FLAG NAME=VALUE ...`, the form of the permutations file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let shader = words.next().ok_or("an empty variant")?.to_string();
        let mut defines = BTreeMap::new();
        for word in words {
            let (name, value) = match word.split_once('=') {
                None => (word, None),
                Some((name, value)) => {
                    (name, Some(value.parse().map_err(|_| format!("{text}: \"{value}\" is not a number"))?))
                }
            };
            defines.insert(name.to_string(), value);
        }
        Ok(Self { shader, defines })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shader)?;
        for (name, value) in &self.defines {
            match value {
                None => write!(f, " {name}")?,
                Some(value) => write!(f, " {name}={value}")?,
            }
        }
        Ok(())
    }
}

/// All variants that may be compiled, from `shaders/permutations`. `{a|b|}` in a line stands for each choice in turn.
pub fn permutations() -> Result<Vec<Variant>, String> {
    let lines =
        PERMUTATIONS.lines().map(|l| l.split('#').next().unwrap_or("").trim()).filter(|l| !l.is_empty());
    lines.flat_map(expand).map(|line| Variant::parse(&line)).collect()
}

fn expand(line: &str) -> Vec<String> {
    match (line.find('{'), line.find('}')) {
        (Some(open), Some(close)) if open < close => line[open + 1..close]
            .split('|')
            .flat_map(|choice| expand(&format!("{}{choice}{}", &line[..open], &line[close + 1..])))
            .collect(),
        _ => vec![line.to_string()],
    }
}

/// The plain WGSL of a variant.
///
/// # Errors
/// An unknown file or directive, an unbalanced `#ifdef`: a sentence with the file and line.
pub fn source(variant: &Variant) -> Result<String, String> {
    let mut out = String::new();
    for (name, value) in &variant.defines {
        if let Some(value) = value {
            out.push_str(&format!("const {name} = {value}u;\n"));
        }
    }
    let mut imported = Vec::new();
    include(&variant.shader, &variant.defines, &mut imported, &mut out)?;
    Ok(out)
}

fn include(
    name: &str,
    defines: &BTreeMap<String, Option<u32>>,
    imported: &mut Vec<String>,
    out: &mut String,
) -> Result<(), String> {
    if imported.iter().any(|seen| seen == name) {
        return Ok(());
    }
    imported.push(name.to_string());
    let (_, text) =
        SOURCES.iter().find(|(file, _)| *file == name).ok_or_else(|| format!("no shader named {name}"))?;
    // One entry per open #ifdef: whether its lines are kept.
    let mut open: Vec<bool> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let fail = |what: &str| format!("shaders/{name}.wgsl:{}: {what}", number + 1);
        let Some(directive) = line.trim_start().strip_prefix('#') else {
            if open.iter().all(|&kept| kept) {
                out.push_str(line);
                out.push('\n');
            }
            continue;
        };
        match directive.split_whitespace().collect::<Vec<_>>()[..] {
            ["import", file] => {
                if open.iter().all(|&kept| kept) {
                    include(file, defines, imported, out)?;
                }
            }
            ["ifdef", flag] => open.push(defines.contains_key(flag)),
            ["ifndef", flag] => open.push(!defines.contains_key(flag)),
            ["else"] => {
                let kept = open.last_mut().ok_or_else(|| fail("#else without #ifdef"))?;
                *kept = !*kept;
            }
            ["endif"] => {
                open.pop().ok_or_else(|| fail("#endif without #ifdef"))?;
            }
            _ => return Err(fail(&format!("unknown directive #{directive}"))),
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("shaders/{name}.wgsl: #ifdef without #endif")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_to_every_choice() {
        assert_eq!(expand("m {A|} X={1|2}"), ["m A X=1", "m A X=2", "m  X=1", "m  X=2"]);
    }

    #[test]
    fn unknown_shaders_are_errors() {
        let variant = Variant::parse("nonsense").expect("parses");
        assert!(source(&variant).unwrap_err().contains("nonsense"));
    }

    #[test]
    fn values_become_constants() {
        let variant = Variant::parse("attention HEAD_DIM=64").expect("parses");
        assert!(source(&variant).expect("source").starts_with("const HEAD_DIM = 64u;\n"));
    }
}
