//! The settings of LoRA adapters: ranks and factors, layer by layer.

use std::marker::PhantomData;

use regex::Regex;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::TargetModules;
use crate::{Error, Result};

/// The settings of a LoRA adapter, with PEFT's names and meanings.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// Rank of the layers that `rank_pattern` does not name.
    pub r: usize,
    /// The adapter's output is scaled by lora_alpha / r.
    pub lora_alpha: f64,
    /// Ranks of single layers: regular expressions for the end of a layer's name; the first one that matches
    /// counts.
    pub rank_pattern: Vec<Pattern<usize>>,
    /// The same for lora_alpha.
    pub alpha_pattern: Vec<Pattern<f64>>,
    /// Whether the scale is lora_alpha / √r instead (Kalajdzievski, 2312.03732).
    pub use_rslora: bool,
    /// Share of an adapter's inputs dropped in training.
    pub lora_dropout: f64,
    /// Layers that get an adapter.
    pub target_modules: TargetModules,
    /// Whether the base model stores its matrices as (inputs, outputs), as GPT-2 does. A fresh adapter takes
    /// its model's setting.
    pub fan_in_fan_out: bool,
}

/// A regular expression for names of layers, and the value for those layers.
#[derive(Debug, Clone)]
pub struct Pattern<T> {
    text: String,
    expression: Regex,
    value: T,
}

impl<T: PartialEq> PartialEq for Pattern<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.value == other.value
    }
}

impl<T> Pattern<T> {
    /// Compiles patterns with PEFT's meaning: a pattern matches a whole name, or the end of a name after a
    /// dot.
    pub(super) fn all(written: Ordered<T>, origin: &str, fix: &str) -> Result<Vec<Self>> {
        let one = |(text, value): (String, T)| match Regex::new(&format!(r"^(.*\.)?({text})$")) {
            Ok(expression) => Ok(Self { text, expression, value }),
            Err(error) => {
                let expected = "regular expressions in rank_pattern and alpha_pattern";
                Err(Error::input(origin, expected, format!("{text:?}: {error}"), fix))
            }
        };
        written.0.into_iter().map(one).collect()
    }
}

impl Default for LoraSpec {
    /// PEFT's defaults, on the seven projections of a Llama block.
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            fan_in_fan_out: false,
        }
    }
}

/// The value of the first pattern that matches the layer `module`.
fn first_match<T: Copy>(patterns: &[Pattern<T>], module: &str) -> Option<T> {
    patterns.iter().find(|pattern| pattern.expression.is_match(module)).map(|pattern| pattern.value)
}

/// Patterns in the form in which adapter_config.json stores them.
pub(super) fn written<T: Copy>(patterns: &[Pattern<T>]) -> Option<Ordered<T>> {
    Some(Ordered(patterns.iter().map(|pattern| (pattern.text.clone(), pattern.value)).collect()))
}

impl LoraSpec {
    /// Fails if a number, or the value of a pattern, is out of range.
    pub(super) fn check(&self, origin: &str, fix: &str) -> Result<()> {
        let ranks = self.rank_pattern.iter().map(|pattern| pattern.value).chain([self.r]).min();
        let alphas = self.alpha_pattern.iter().map(|pattern| pattern.value).chain([self.lora_alpha]);
        if ranks == Some(0) || !alphas.sum::<f64>().is_finite() || !(0.0..1.0).contains(&self.lora_dropout) {
            let Self { r, lora_alpha, lora_dropout, .. } = self;
            let found = format!("r {r}, lora_alpha {lora_alpha}, lora_dropout {lora_dropout}, and patterns");
            let expected = "r >= 1, a finite lora_alpha, lora_dropout in [0, 1)";
            return Err(Error::input(origin, expected, found, fix));
        }
        Ok(())
    }

    /// The rank of the adapter on the layer `module`.
    pub fn rank(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).unwrap_or(self.r)
    }

    /// The factor on the output of the adapter on the layer `module`: lora_alpha / r, or with rsLoRA
    /// lora_alpha / √r.
    pub fn scale(&self, module: &str) -> f64 {
        let (rank, alpha) = (self.rank(module) as f64, first_match(&self.alpha_pattern, module));
        alpha.unwrap_or(self.lora_alpha) / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Whether adapters with these settings and with `other` have the same ranks and factors on all layers.
    pub fn scales_like(&self, other: &Self) -> bool {
        let all = |spec: &Self| (spec.r, spec.lora_alpha, spec.use_rslora);
        all(self) == all(other)
            && self.rank_pattern == other.rank_pattern
            && self.alpha_pattern == other.alpha_pattern
    }
}

/// A JSON object that keeps the order of its file: if two patterns match a layer, the first counts.
#[derive(Default)]
pub(super) struct Ordered<T>(Vec<(String, T)>);

impl<T: Serialize> Serialize for Ordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Ordered(all))
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}
