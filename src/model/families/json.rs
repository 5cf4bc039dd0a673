//! Reads config.json: typed values of keys, and the rotary settings in their old and new form.

use serde_json::{Map, Value};

use crate::kernels::activation::Function;
use crate::model::config::{BlockConfig, Rope, RopeScaling};
use crate::{Error, Result};

/// An object of config.json.
#[derive(Clone, Copy)]
pub struct Json<'a> {
    pub object: &'a Map<String, Value>,
    /// The file, for messages.
    pub origin: &'a str,
}

impl<'a> Json<'a> {
    /// The value of `key`; null counts as missing.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(&self, key: &str, kind: &str, take: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| self.wrong(format!("\"{key}\": {kind}"), value))
    }

    pub fn wrong(&self, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
        Error::input(self.origin, expected, found, "give the config.json that belongs to the model")
    }

    /// A whole number.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A whole number; the key is required.
    pub fn need_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.wrong(format!("\"{key}\""), "none"))
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    /// A boolean.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    /// A list.
    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        self.read(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Option<Json<'a>>> {
        let object = self.read(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Json { object, origin: self.origin }))
    }

    /// The activation function named by the first of `keys` that is present.
    pub fn activation(&self, keys: &[&str], default: &'static str) -> Result<Function> {
        let mut name = None;
        for key in keys {
            name = name.or(self.text(key)?);
        }
        match name.unwrap_or(default) {
            "silu" | "swish" => Ok(Function::Silu),
            "gelu" => Ok(Function::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Function::GeluTanh),
            other => {
                let expected = "the activation silu, gelu, gelu_new or gelu_pytorch_tanh";
                let fix = "use a model with one of these";
                Err(Error::input(self.origin, expected, format!("\"{other}\""), fix))
            }
        }
    }

    /// The rotary settings: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling`.
    pub fn rope(&self, head_dim: usize, theta: f64) -> Result<Rope> {
        let settings = match self.object("rope_parameters")?.filter(|new| !new.object.is_empty()) {
            Some(new) => Some(new),
            None => self.object("rope_scaling")?,
        };
        if let Some(settings) = settings {
            // Here all layers share one set of settings. The mapping of Gemma 3 reads its two sets itself.
            let nested = |key: &&str| settings.object.get(*key).is_some_and(Value::is_object);
            if let Some(key) = ["full_attention", "sliding_attention"].into_iter().find(nested) {
                let fix = "use a model with one set of rope settings";
                return Err(Error::input(
                    self.origin,
                    "one set of rope settings",
                    format!("one for \"{key}\""),
                    fix,
                ));
            }
        }
        let theta = self.number("rope_theta")?.unwrap_or(theta);
        let share = self.number("partial_rotary_factor")?.unwrap_or(1.0);
        settings.map_or(Ok(Rope::new(head_dim, theta, share)), |own| own.own_rope(head_dim, theta, share))
    }

    /// The rotary settings in this object itself. The arguments are the defaults of missing keys.
    pub fn own_rope(&self, head_dim: usize, theta: f64, share: f64) -> Result<Rope> {
        let theta = self.number("rope_theta")?.unwrap_or(theta);
        let share = self.number("partial_rotary_factor")?.unwrap_or(share);
        Ok(Rope { scaling: self.scaling()?, ..Rope::new(head_dim, theta, share) })
    }

    fn scaling(&self) -> Result<Option<RopeScaling>> {
        let kind = self.text("rope_type")?.or(self.text("type")?).unwrap_or("default");
        let typed = self.get("rope_type").or(self.get("type")).is_some();
        if !typed && self.number("factor")?.is_some_and(|factor| factor != 1.0) {
            let expected = "\"rope_type\" with \"factor\" in the rope settings";
            return Err(self.wrong(expected, "none"));
        }
        let need = |key: &str| {
            self.number(key)?.ok_or_else(|| self.wrong(format!("\"{key}\" in the rope settings"), "none"))
        };
        match kind {
            "default" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear(need("factor")?))),
            "llama3" => Ok(Some(RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max: need("original_max_position_embeddings")?,
            })),
            other => {
                let expected = "rope type \"default\", \"linear\" or \"llama3\"";
                let fix = "use a model with one of these";
                Err(Error::input(self.origin, expected, format!("\"{other}\""), fix))
            }
        }
    }

    /// The blocks. A block has `window` if `layer_types` calls it sliding or, without `layer_types`, if
    /// `sliding` says so. All blocks use the first rope.
    pub fn blocks(
        &self,
        count: usize,
        window: Option<usize>,
        sliding: impl Fn(usize) -> bool,
    ) -> Result<Vec<BlockConfig>> {
        if count > 1 << 12 {
            return Err(self.wrong("at most 4096 layers", count));
        }
        let types = self.list("layer_types")?;
        if let Some(types) = types.filter(|types| types.len() != count) {
            return Err(self.wrong(format!("{count} layer_types, one a layer"), types.len()));
        }
        let mut blocks = Vec::new();
        for index in 0..count {
            let local = match types.map(|types| types[index].as_str()) {
                None => sliding(index),
                Some(Some("sliding_attention")) => true,
                Some(Some("full_attention")) => false,
                Some(other) => {
                    let expected = "layer_types sliding_attention or full_attention";
                    return Err(self.wrong(expected, format!("{other:?}")));
                }
            };
            blocks.push(BlockConfig { window: window.filter(|_| local), rope: Some(0) });
        }
        Ok(blocks)
    }
}

impl Rope {
    fn new(head_dim: usize, theta: f64, share: f64) -> Self {
        Self { theta, scaling: None, dim: (head_dim as f64 * share) as usize }
    }
}
