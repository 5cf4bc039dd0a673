//! One source of settings: a TOML file or the command line.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::PartialConfig;
use crate::error::{Error, Result};

/// The settings from one source, with the place where each was written.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// The settings.
    pub(super) values: PartialConfig,
    /// Maps `section.key` to `file:line: section.key` or `--flag`.
    pub(super) places: BTreeMap<String, String>,
}

/// Names from other programs (or short forms), too different from ours to be found by edit distance.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("lr", "learning_rate"),
    ("epochs", "num_train_epochs"),
    ("steps", "max_steps"),
    ("batch_size", "per_device_train_batch_size"),
    ("grad_accum", "gradient_accumulation_steps"),
    ("scheduler", "lr_scheduler_type"),
    ("rank", "r"),
    ("dropout", "lora_dropout"),
    ("k", "num_samples"),
    ("num_generations", "num_samples"),
    ("system", "safety_instruction"),
    ("max_length", "max_prompt_length"),
    ("loss", "method"),
    ("loss_type", "method"),
    ("output", "output_dir"),
];

impl Layer {
    /// Reads a TOML file's `text`; `origin` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Input`] with the line, for invalid TOML, an unknown key (the message suggests the nearest
    /// known one) or a value of the wrong type. Ranges are checked later, by [`super::RunConfig::resolve`].
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let table = DeTable::parse(text).map_err(|error| wrong_value(text, origin, &error, None))?;
        let mut places = BTreeMap::new();
        let mut spans = Vec::new();
        for (section, content) in table.get_ref() {
            let line = line_of(text, section.span());
            let Some((_, keys)) = PartialConfig::SECTIONS.iter().find(|known| known.0 == section.get_ref())
            else {
                return Err(unknown_section(origin, line, section.get_ref()));
            };
            let DeValue::Table(content) = content.get_ref() else {
                return Err(Error::input(
                    format!("{origin}:{line}: {}", section.get_ref()),
                    format!("a section, [{}]", section.get_ref()),
                    "a single value",
                    place_for(section.get_ref()),
                ));
            };
            for (key, value) in content {
                let line = line_of(text, key.span());
                let name = format!("{}.{}", section.get_ref(), key.get_ref());
                let place = format!("{origin}:{line}: {name}");
                if !keys.contains(&key.get_ref().as_ref()) {
                    return Err(unknown_key(place, section.get_ref(), key.get_ref()));
                }
                spans.push((key.span().start..value.span().end, place.clone()));
                places.insert(name, place);
            }
        }
        let values = toml::from_str(text).map_err(|error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let place = spans.iter().find(|(span, _)| span.contains(&start)).map(|(_, place)| place.clone());
            wrong_value(text, origin, &error, place)
        })?;
        Ok(Self { values, places })
    }

    /// The settings given as flags.
    #[cfg(feature = "clap")]
    pub fn from_flags(values: PartialConfig) -> Self {
        let places = values.given().into_iter().map(|key| {
            let flag = PartialConfig::flag(&key);
            (key, flag)
        });
        Self { places: places.collect(), values }
    }

    /// Whether it has the setting `key`, as in `model.model`.
    pub fn has(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Merges two layers: `self` overrides `below`.
    pub(super) fn over(self, below: Self) -> Self {
        let mut places = below.places;
        places.extend(self.places);
        Self { values: self.values.over(below.values), places }
    }
}

/// The number of the line in which a byte range of `text` starts, counted from 1.
fn line_of(text: &str, span: Range<usize>) -> usize {
    text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1
}

/// The error for invalid TOML or a value of the wrong type. serde's message "X, expected Y" is split into
/// what was found and what was expected.
fn wrong_value(text: &str, origin: &str, error: &toml::de::Error, place: Option<String>) -> Error {
    let place = place.unwrap_or_else(|| match error.span() {
        Some(span) => format!("{origin}:{}", line_of(text, span)),
        None => origin.to_owned(),
    });
    let message = error.message().trim();
    let (found, expected) = message.split_once(", expected ").unwrap_or((message, "valid TOML"));
    let (found, expected) = (plain_found(found), plain_kind(expected));
    let fix = if place.contains(": reference.") {
        "write \"initial\", { checkpoint = \"DIR\" }, { copy_every = N } or { ema = DECAY }"
    } else {
        "correct this line; `aweigh align --help` describes every setting"
    };
    Error::input(place, expected, found, fix)
}

/// serde's name of a type, in plain words.
fn plain_kind(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" => "a whole number of at least 0",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "a string in quotes",
        other => other,
    }
}

/// What serde found, in plain words: `invalid type: string "2"` becomes `the text "2"`.
fn plain_found(found: &str) -> String {
    let Some((_, value)) = found.strip_prefix("invalid ").and_then(|rest| rest.split_once(": ")) else {
        return found.into();
    };
    for (kind, name) in
        [("string ", "the text "), ("integer ", ""), ("floating point ", ""), ("boolean ", "")]
    {
        if let Some(value) = value.strip_prefix(kind) {
            return format!("{name}{}", value.trim_matches('`'));
        }
    }
    match value {
        "sequence" => "a list".into(),
        "map" => "a table".into(),
        other => other.into(),
    }
}

fn unknown_section(origin: &str, line: usize, found: &str) -> Error {
    let names: Vec<_> = PartialConfig::SECTIONS.iter().map(|section| format!("[{}]", section.0)).collect();
    let place = format!("{origin}:{line}: {found}");
    Error::input(place, names.join(", "), format!("{found:?}, which is not a section"), place_for(found))
}

fn unknown_key(place: String, section: &str, found: &str) -> Error {
    Error::input(place, format!("a key of [{section}]"), format!("{found:?}, which does not exist"), {
        let here = PartialConfig::SECTIONS.iter().find(|known| known.0 == section);
        let here = here.map_or(&[][..], |known| known.1);
        match nearest(found, here.iter().copied()).filter(|(_, distance)| *distance <= 2) {
            Some((key, _)) => format!("did you mean {key:?}?"),
            None => place_for(found),
        }
    })
}

/// Suggests what an unknown name was meant to be: the nearest section, or the nearest key of any section.
fn place_for(found: &str) -> String {
    let target = OTHER_NAMES.iter().find(|(other, _)| *other == found).map_or(found, |(_, ours)| ours);
    let section_names = PartialConfig::SECTIONS.iter().map(|section| section.0);
    let keys = PartialConfig::SECTIONS
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(move |key| (*section, *key)));
    let section = nearest(target, section_names);
    let key =
        keys.map(|(section, key)| (section, key, distance(target, key))).min_by_key(|candidate| candidate.2);
    match (section, key) {
        (Some((section, distance)), Some((_, _, other))) if distance <= other => {
            format!("the nearest section is [{section}]")
        }
        (_, Some((section, key, _))) => format!("the nearest known key is {key:?}, under [{section}]"),
        _ => "see `aweigh align --help`".into(),
    }
}

/// The candidate with the smallest edit distance, and that distance.
fn nearest<'a>(found: &str, candidates: impl Iterator<Item = &'a str>) -> Option<(&'a str, usize)> {
    candidates.map(|candidate| (candidate, distance(found, candidate))).min_by_key(|(_, distance)| *distance)
}

/// Levenshtein distance between two names; ignores case and treats `-` and `_` as equal.
fn distance(a: &str, b: &str) -> usize {
    let letters = |text: &str| text.to_lowercase().replace('-', "_").chars().collect::<Vec<_>>();
    let (a, b) = (letters(a), letters(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
