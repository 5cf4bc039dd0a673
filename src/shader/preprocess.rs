//! `#import`, `#ifdef` and constants for WGSL, and the list of variants in `shaders/permutations`.
//!
//! Directives stand alone on their line: `#import common/index`, `#ifdef NAME` or `#ifdef NAME=VALUE`,
//! `#ifndef`, `#else`, `#endif`, and `#each I COUNT` with `#end`: the lines between are repeated with `$I`
//! replaced by 0, 1, .. COUNT - 1, where COUNT is a product or quotient of numbers and definitions
//! (`ROWS*STEPS/SG`). `#operand N NAME` declares a read-only operand at binding N, of vec4s of floats (of
//! `u32` with `#operand N NAME words`), and `load_NAME(index)`, which loads one of them: from a storage
//! buffer, or with TEXELS from a texture (`gpu/texels.rs`). Anything else that starts with `#` is an error. A
//! variant's definitions with values become constants at the top, after the `enable` lines, which WGSL
//! requires first.

use std::collections::BTreeMap;
use std::fmt;

use super::Lanes;

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        /// Every WGSL file under `shaders/`, by its path without the extension.
        pub const SOURCES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../shaders/", $name, ".wgsl")))),*];
    };
}

sources! {
    "common/activation", "common/adapters", "common/attention", "common/attention_keys",
    "common/attention_tile", "common/blocks", "common/columns", "common/epilogue", "common/index",
    "common/pack", "common/product", "common/reduce", "common/rng", "common/rows", "common/tiles",
    "common/weights", "activation", "activation_backward", "adamw", "adamw_8bit", "attention",
    "attention_delta", "attention_dkv", "attention_dkv_subgroup", "attention_dkv_tiled", "attention_dq",
    "attention_dq_subgroup", "attention_dq_tiled", "attention_subgroup", "attention_tiled", "clip_scale",
    "column_sum", "dropout", "ema", "fma_peak", "gather", "gather_backward", "head_norm",
    "head_norm_backward", "kv_write", "layer_norm", "layer_norm_backward", "log_prob", "log_prob_backward",
    "matmul", "matmul_coop", "matmul_subgroup", "matmul_tiled", "matvec", "preference", "retain", "rms_norm",
    "rms_norm_backward", "rope", "row_scale", "sample", "sentinel", "sequence_sum", "soft_cap", "sum_squares",
}

const PERMUTATIONS: &str = include_str!("../../shaders/permutations");

/// One compiled form of a shader: its file and its definitions, in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    /// The file under `shaders/`, without the extension.
    pub shader: String,
    /// Definitions by name; those with a value become constants.
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

/// All variants that may be compiled, from `shaders/permutations`. `{a|b|}` in a line stands for each choice
/// in turn, and `$name` for the choices of a set that a line `name: a|b` before it has defined.
///
/// # Errors
/// For a value that is not a number, or a set that is not defined.
pub fn permutations() -> Result<Vec<Variant>, String> {
    variants(PERMUTATIONS)
}

fn variants(text: &str) -> Result<Vec<Variant>, String> {
    let mut sets: Vec<(String, String)> = Vec::new();
    let mut all = Vec::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or("").trim()) {
        let mut line = line.to_string();
        for (name, choices) in &sets {
            line = line.replace(&format!("${name}"), choices);
        }
        if let Some(at) = line.find('$') {
            return Err(format!("shaders/permutations: {} is not defined", &line[at..]));
        }
        match line.split_once(": ") {
            Some((name, choices)) => sets.push((name.into(), choices.trim().into())),
            None if line.is_empty() => {}
            None => {
                let parsed = expand(&line).into_iter().map(|line| Variant::parse(&line));
                all.extend(parsed.collect::<Result<Vec<_>, _>>()?);
            }
        }
    }
    Ok(all)
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
/// For an unknown file or directive, or an unbalanced `#ifdef`: a sentence with the file and line.
pub fn source(variant: &Variant) -> Result<String, String> {
    let mut file = Expansion::new(&variant.defines);
    file.include(&variant.shader)?;
    let mut all = file.enables;
    for (name, value) in &variant.defines {
        if let Some(value) = value {
            all.push_str(&format!("const {name} = {value}u;\n"));
        }
    }
    all.push_str(&file.out);
    Ok(all)
}

/// The text of a variant while it is expanded.
struct Expansion<'a> {
    defines: &'a BTreeMap<String, Option<u32>>,
    imported: Vec<String>,
    /// The `enable` directives, which must come before everything else.
    enables: String,
    out: String,
    /// Nesting depth of `#each` blocks.
    each: usize,
    /// The names that each open block has declared.
    scopes: Vec<Vec<String>>,
}

/// A line with its number, for messages.
type Line = (usize, String);

impl<'a> Expansion<'a> {
    fn new(defines: &'a BTreeMap<String, Option<u32>>) -> Self {
        Self {
            defines,
            imported: Vec::new(),
            enables: String::new(),
            out: String::new(),
            each: 0,
            scopes: vec![Vec::new()],
        }
    }

    fn include(&mut self, name: &str) -> Result<(), String> {
        if self.imported.iter().any(|seen| seen == name) {
            return Ok(());
        }
        self.imported.push(name.to_string());
        let (_, text) = SOURCES
            .iter()
            .find(|(file, _)| *file == name)
            .ok_or_else(|| format!("no shader named {name}"))?;
        let lines: Vec<Line> = (1..).zip(text.lines().map(str::to_string)).collect();
        self.lines(name, &lines)
    }

    fn lines(&mut self, name: &str, lines: &[Line]) -> Result<(), String> {
        // One entry per open #ifdef: whether its lines are kept.
        let mut open: Vec<bool> = Vec::new();
        let mut at = 0;
        while let Some((number, line)) = lines.get(at) {
            at += 1;
            let fail = |what: &str| format!("shaders/{name}.wgsl:{number}: {what}");
            let kept = open.iter().all(|&kept| kept);
            let Some(directive) = line.trim_start().strip_prefix('#') else {
                if kept {
                    self.declare(line).map_err(|what| fail(&what))?;
                    let out = if line.starts_with("enable ") { &mut self.enables } else { &mut self.out };
                    out.push_str(line);
                    out.push('\n');
                }
                continue;
            };
            match directive.split_whitespace().collect::<Vec<_>>()[..] {
                ["import", file] => {
                    if kept {
                        self.include(file)?;
                    }
                }
                ["ifdef", flag] => open.push(self.defined(flag)),
                ["ifndef", flag] => open.push(!self.defined(flag)),
                ["else"] => {
                    let kept = open.last_mut().ok_or_else(|| fail("#else without #ifdef"))?;
                    *kept = !*kept;
                }
                ["endif"] => {
                    open.pop().ok_or_else(|| fail("#endif without #ifdef"))?;
                }
                ["operand", number, operand, ref kind @ ..] if kind.is_empty() || kind == ["words"] => {
                    if kept {
                        let texels = self.defined("TEXELS");
                        self.out.push_str(&declaration(number, operand, !kind.is_empty(), texels));
                    }
                }
                ["each", variable, count] => {
                    let length = block(&lines[at..]).ok_or_else(|| fail("#each without #end"))?;
                    let body = &lines[at..at + length];
                    at += length + 1;
                    if kept {
                        let count = self.count(count).ok_or_else(|| fail("no such count"))?;
                        self.each += 1;
                        for i in 0..count {
                            let one = |(number, line): &Line| {
                                (*number, line.replace(&format!("${variable}"), &i.to_string()))
                            };
                            self.lines(name, &body.iter().map(one).collect::<Vec<_>>())?;
                        }
                        self.each -= 1;
                    }
                }
                _ => return Err(fail(&format!("unknown directive #{directive}"))),
            }
        }
        if open.is_empty() { Ok(()) } else { Err(format!("shaders/{name}.wgsl: #ifdef without #endif")) }
    }

    /// Records the names that a line declares. In an `#each` block, fails if a name shadows one of an
    /// enclosing block: WGSL allows that, but with the generated names (`a$J`) it is a mistake.
    fn declare(&mut self, line: &str) -> Result<(), String> {
        let code = line.split("//").next().unwrap_or("");
        let mut declares = false;
        for word in code.split_inclusive(|c: char| !(c.is_alphanumeric() || c == '_')) {
            let name = word.trim_end_matches(|c: char| !(c.is_alphanumeric() || c == '_'));
            if declares && !name.is_empty() {
                if self.each > 0 && self.scopes.iter().flatten().any(|known| known == name) {
                    return Err(format!("{name} shadows an earlier declaration: rename one of them"));
                }
                if let Some(scope) = self.scopes.last_mut() {
                    scope.push(name.into());
                }
            }
            declares = name == "let" || (declares && name.is_empty());
            if word.ends_with('{') {
                self.scopes.push(Vec::new());
            } else if word.ends_with('}') && self.scopes.len() > 1 {
                self.scopes.pop();
            }
        }
        Ok(())
    }

    /// Whether NAME is defined, or NAME=VALUE with this value.
    fn defined(&self, flag: &str) -> bool {
        match flag.split_once('=') {
            None => self.defines.contains_key(flag),
            Some((name, value)) => {
                self.defines.get(name).copied().flatten().is_some_and(|own| value.parse() == Ok(own))
            }
        }
    }

    /// The value of a count: numbers and definitions joined by `*` and `/`, from left to right.
    fn count(&self, text: &str) -> Option<u32> {
        let value = |word: &str| word.parse().ok().or_else(|| self.defines.get(word).copied().flatten());
        let mut total = 1;
        let mut rest = text;
        let mut divide = false;
        loop {
            let end = rest.find(['*', '/']).unwrap_or(rest.len());
            let factor = value(&rest[..end])?;
            total = if divide { u32::checked_div(total, factor)? } else { u32::checked_mul(total, factor)? };
            let Some(operator) = rest[end..].chars().next() else { return Some(total) };
            divide = operator == '/';
            rest = &rest[end + 1..];
        }
    }
}

/// The lines that `#operand` stands for.
fn declaration(number: &str, name: &str, words: bool, texels: bool) -> String {
    let scalar = if words { "u32" } else { "f32" };
    let (kind, load) = match texels {
        // A texture has rows of 1024 texels.
        true => (
            format!("var {name}: texture_2d<{scalar}>"),
            format!("textureLoad({name}, vec2<u32>(index & 1023u, index >> 10u), 0)"),
        ),
        false => (format!("var<storage, read> {name}: array<vec4<{scalar}>>"), format!("{name}[index]")),
    };
    format!(
        "@group(0) @binding({number}) {kind};\n\
         fn load_{name}(index: u32) -> vec4<{scalar}> {{ return {load}; }}\n"
    )
}

/// The number of lines before the `#end` that closes the `#each` just read.
fn block(lines: &[Line]) -> Option<usize> {
    let mut depth = 0;
    lines.iter().position(|(_, line)| {
        let directive = line.trim_start();
        if directive.starts_with("#each ") {
            depth += 1;
        }
        let closes = directive.trim_end() == "#end";
        if closes && depth > 0 {
            depth -= 1;
            return false;
        }
        closes
    })
}

/// Parses and preprocesses a variant into a naga module.
///
/// # Errors
/// For invalid WGSL: a sentence with the variant and the error.
pub fn parse(variant: &Variant, lanes: Lanes) -> Result<naga::Module, String> {
    let text = lanes.of(source(variant)?);
    naga::front::wgsl::parse_str(&text).map_err(|e| format!("{variant}: {}", e.emit_to_string(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_to_every_choice() {
        assert_eq!(expand("m {A|} X={1|2}"), ["m A X=1", "m A X=2", "m  X=1", "m  X=2"]);
    }

    #[test]
    fn sets_stand_for_their_choices() {
        let text = "some: |B\nall: A|$some  # a set of sets\nm {$all} X={1|2}";
        let names = variants(text).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names, ["m A X=1", "m A X=2", "m X=1", "m X=2", "m B X=1", "m B X=2"]);
        assert!(variants("m {$none}").unwrap_err().contains("$none} is not defined"));
    }

    #[test]
    fn a_name_of_each_hides_no_other() {
        let hidden = "let a1 = 0;\n{\n#each J 2\nlet a$J = $J;\n#end\n}";
        assert_eq!(
            expanded(hidden, "").unwrap_err(),
            "shaders/x.wgsl:4: a1 shadows an earlier declaration: rename one of them"
        );
        let apart = "{\nlet a1 = 0;\n}\n#each J 2\n{ let b = $J; }\nlet a$J = $J;\n#end";
        assert!(expanded(apart, "").is_ok());
    }

    #[test]
    fn unknown_shaders_are_errors() {
        let variant = Variant::parse("nonsense").expect("parses");
        assert!(source(&variant).unwrap_err().contains("nonsense"));
    }

    fn expanded(text: &str, defines: &str) -> Result<String, String> {
        let variant = Variant::parse(&format!("x {defines}")).expect("parses");
        let lines: Vec<Line> = (1..).zip(text.lines().map(str::to_string)).collect();
        let mut file = Expansion::new(&variant.defines);
        file.lines("x", &lines).map(|()| file.out)
    }

    #[test]
    fn each_repeats_its_lines() {
        let text = "#each I N/2\na$I\n#each J 2\nb$I$J\n#end\n#end\nc";
        assert_eq!(expanded(text, "N=4").unwrap(), "a0\nb00\nb01\na1\nb10\nb11\nc\n");
        assert_eq!(expanded("#each I 2*N*2\n#ifdef F\n$I\n#endif\n#end", "N=1 F").unwrap(), "0\n1\n2\n3\n");
        assert!(expanded("#each I 2\na", "").unwrap_err().ends_with("x.wgsl:1: #each without #end"));
        assert!(expanded("\n#each I M\n#end", "").unwrap_err().ends_with("x.wgsl:2: no such count"));
        assert!(expanded("#end", "").unwrap_err().contains("unknown directive #end"));
    }

    #[test]
    fn operands_are_buffers_or_textures() {
        let buffer = expanded("#operand 2 w words", "").unwrap();
        assert!(buffer.contains("@binding(2) var<storage, read> w: array<vec4<u32>>;"), "{buffer}");
        assert!(buffer.contains("fn load_w(index: u32) -> vec4<u32> { return w[index]; }"), "{buffer}");
        let texture = expanded("#operand 1 x", "TEXELS").unwrap();
        assert!(texture.contains("@binding(1) var x: texture_2d<f32>;"), "{texture}");
        assert!(texture.contains("textureLoad(x, vec2<u32>(index & 1023u, index >> 10u), 0)"), "{texture}");
        assert!(expanded("#operand 1 x halves", "").unwrap_err().contains("unknown directive"));
    }

    #[test]
    fn conditions_ask_for_names_and_values() {
        let text = "#ifdef N=2\ntwo\n#else\nother\n#endif\n#ifndef N\nnone\n#endif";
        assert_eq!(expanded(text, "N=2").unwrap(), "two\n");
        assert_eq!(expanded(text, "N=3").unwrap(), "other\n");
        assert_eq!(expanded(text, "").unwrap(), "other\nnone\n");
    }

    #[test]
    fn values_become_constants() {
        let variant = Variant::parse("attention HEAD_DIM=64").expect("parses");
        assert!(source(&variant).expect("source").starts_with("const HEAD_DIM = 64u;\n"));
    }

    #[test]
    fn enables_come_first() {
        let variant = Variant::parse("matmul_tiled EDGE=4 HALF NT").expect("parses");
        assert!(source(&variant).expect("source").starts_with("enable f16;\nconst EDGE = 4u;\n"));
    }
}
