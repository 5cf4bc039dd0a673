//! Merging a LoRA adapter into its base weights: a plain Hugging Face model, or a GGUF file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::adapter::PEFT_SCORE;
use super::adapter::tensor_name;
use super::weights::Stored;
use super::{Adapter, DecoderConfig, ModelBytes, Weights, gguf};
use crate::error::setting_to;
use crate::gpu::DType;
use crate::nn::transposed;
use crate::{Error, Result};

/// The element type of an exported model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportDType {
    /// Each tensor keeps its type in the base model; quantised ones become F16.
    Auto,
    /// All tensors of this type.
    As(DType),
}

/// A model with an adapter merged into it, tensor by tensor: `W + lora_alpha / r · B A`, in f64 and rounded
/// once.
pub struct Merge<'a> {
    base: &'a Weights<'a>,
    adapter: Option<&'a Adapter<'a>>,
    /// The module of each tensor that the adapter changes.
    targets: HashMap<&'a str, &'a str>,
    /// Whether files store the blocks' matrices as (inputs, outputs).
    transposed: bool,
}

/// A tensor of a merged model.
pub enum Merged<'a> {
    /// Unchanged, as the base model stores it.
    Stored(Stored<'a>),
    /// Changed by the adapter; the base model stores it in this type.
    Values(Vec<f32>, DType),
}

impl Merged<'_> {
    /// The tensor's type in the base model.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Stored(stored) => stored.dtype,
            Self::Values(_, dtype) => *dtype,
        }
    }

    /// The tensor's elements as f32.
    pub fn to_f32(self) -> Vec<f32> {
        match self {
            Self::Stored(stored) => stored.to_f32(),
            Self::Values(values, _) => values,
        }
    }
}

impl<'a> Merge<'a> {
    /// Merges every layer of `adapter` into `base`, a model with the configuration `config`.
    ///
    /// # Errors
    /// When an adapter's layer is not in the model.
    pub fn new(
        base: &'a Weights<'a>,
        config: &DecoderConfig,
        adapter: Option<&'a Adapter<'a>>,
    ) -> Result<Self> {
        let modules: &[String] = match adapter.map(|a| &a.spec.target_modules) {
            Some(crate::model::TargetModules::Names(names)) => names,
            _ => &[],
        };
        if let Some(judge) = adapter.filter(|adapter| adapter.weights.has(PEFT_SCORE)) {
            let fix = "give an adapter for answers: a judge's head cannot be merged into a language model";
            return Err(Error::input(
                judge.weights.origin(),
                "an adapter without a judge's head",
                PEFT_SCORE,
                fix,
            ));
        }
        let (mut targets, layers) = (HashMap::new(), config.linear_layers());
        if let Some(odd) = modules
            .iter()
            .find(|module| !layers.contains(module) || config.tied && **module == config.names.head)
        {
            let (expected, fix) = match *odd == config.names.head {
                true => (
                    "LoRA on the blocks' linear layers: the head is the embedding here",
                    "merge it with PEFT, which then gives the model a separate head",
                ),
                false => ("a linear layer of the model", "give the model that the adapter was made for"),
            };
            return Err(Error::input(
                adapter.map_or("the adapter", |a| a.weights.origin()),
                expected,
                odd,
                fix,
            ));
        }
        for module in modules {
            let name = format!("{module}.weight");
            let Some(found) = base.find(&name) else {
                let fix = "give the model that the adapter was made for";
                return Err(Error::input(base.origin(), format!("tensor {name}"), "none", fix));
            };
            targets.insert(found, module.as_str());
        }
        Ok(Self { base, adapter, targets, transposed: config.names.transposed })
    }

    /// The tensor of this name and shape.
    ///
    /// # Errors
    /// When the tensor is missing, or an adapter's layer has another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Merged<'a>> {
        let stored = self.base.get(name, shape)?;
        let module = self.base.find(name).and_then(|name| self.targets.get(name));
        let (Some(module), Some(adapter)) = (module, self.adapter) else { return Ok(Merged::Stored(stored)) };
        let &[rows, columns] = shape else {
            let place = format!("tensor {name}");
            return Err(Error::input(place, "a matrix", format!("shape {shape:?}"), "give the right model"));
        };
        // The model's layout counts, not the adapter's `fan_in_fan_out`: PEFT also corrects the latter.
        let merged = if self.transposed {
            let weight = transposed(&stored.to_f32(), rows, columns);
            transposed(&add_lora(weight, adapter, module, columns, rows)?, columns, rows)
        } else {
            add_lora(stored.to_f32(), adapter, module, rows, columns)?
        };
        Ok(Merged::Values(merged, stored.dtype))
    }
}

/// safetensors bytes of `base` with `adapter` merged.
///
/// # Errors
/// As [`Merge::new`] and [`Merge::tensor`].
pub fn merged(
    base: &Weights,
    config: &DecoderConfig,
    adapter: Option<&Adapter>,
    dtype: ExportDType,
) -> Result<Vec<u8>> {
    let config = base.config_of(config.clone())?;
    let merge = Merge::new(base, &config, adapter)?;
    let head = format!("{}.weight", config.names.head);
    let judge = "score.weight".to_string();
    let read = config.tensors().into_iter().map(|(name, _)| name).chain([head, judge]);
    let read: HashSet<String> = read.filter_map(|name| base.find(&name).map(str::to_owned)).collect();
    let mut out: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for name in base.names() {
        // Tensors that no layer reads are copied unchanged, for example masks of old checkpoints.
        if let Some((kind, shape, bytes)) = base.raw(name).filter(|_| !read.contains(name)) {
            let bytes = bytes.read().map_err(|error| Error::io(base.origin(), "read", error))?;
            out.insert(name.to_string(), (kind, shape.to_vec(), bytes.into_owned()));
            continue;
        }
        let shape = base.shape(name).unwrap_or_default().to_vec();
        let tensor = merge.tensor(name, &shape)?;
        let wanted = match dtype {
            // Safetensors has no types for quantised tensors.
            ExportDType::Auto if tensor.dtype().is_quantised() => DType::F16,
            ExportDType::Auto => tensor.dtype(),
            ExportDType::As(dtype) => dtype,
        };
        let bytes = match tensor {
            Merged::Stored(stored) if stored.dtype == wanted => stored.plain().to_vec(),
            tensor => encode(name, &tensor.to_f32(), wanted)?,
        };
        let kind = match wanted {
            DType::Bf16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        };
        out.insert(name.to_string(), (kind, shape, bytes));
    }
    let views = out.iter().map(|(name, (kind, shape, bytes))| Ok((name, view(*kind, shape, bytes)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    safetensors::serialize(views, metadata).map_err(unwritable)
}

/// Writes `model` with `adapter` merged as a GGUF file with matrices of `kind`, one tensor at a time.
/// `failed` turns an I/O error of `out` into an [`Error`].
///
/// # Errors
/// As [`gguf::describe`] and [`Merge::tensor`], and what `out` reports.
pub fn write_gguf(
    out: &mut impl Write,
    model: &ModelBytes,
    adapter: Option<&Adapter>,
    kind: gguf::Kind,
    failed: &dyn Fn(io::Error) -> Error,
) -> Result<()> {
    let weights = model.weights()?;
    let file = gguf::describe(model, kind)?;
    let merge = Merge::new(&weights, &weights.config_of(model.decoder_config()?)?, adapter)?;
    gguf::write_header(out, &file.metadata, &file.tensors).map_err(failed)?;
    for (described, source) in file.tensors.iter().zip(&file.sources) {
        let values = match source {
            gguf::Source::Values(values) => values.clone(),
            gguf::Source::Tensor(name, heads) => {
                let values = merge.tensor(name, &described.shape)?.to_f32();
                let turned = heads.map(|heads| gguf::as_neighbours(&values, described.shape[0], heads));
                let values = turned.unwrap_or(values);
                if described.kind == gguf::Kind::F16 {
                    check_f16(name, &values)?;
                }
                values
            }
        };
        gguf::write_tensor(out, &gguf::encode(&values, described.kind)).map_err(failed)?;
    }
    Ok(())
}

/// Writes `adapter` of `model` as a GGUF adapter with matrices of `kind`, F32 or F16. `failed` turns an I/O
/// error of `out` into an [`Error`].
///
/// # Errors
/// As [`gguf::describe_adapter`], values that exceed F16, and what `out` reports.
pub fn write_gguf_adapter(
    out: &mut impl Write,
    model: &ModelBytes,
    adapter: &Adapter,
    kind: gguf::Kind,
    failed: &dyn Fn(io::Error) -> Error,
) -> Result<()> {
    let file = gguf::describe_adapter(model, adapter, kind)?;
    gguf::write_header(out, &file.metadata, &file.tensors).map_err(failed)?;
    for (described, source) in file.tensors.iter().zip(&file.sources) {
        let gguf::Source::Values(values) = source else { continue };
        if kind == gguf::Kind::F16 {
            check_f16(&described.name, values)?;
        }
        gguf::write_tensor(out, &gguf::encode(values, kind)).map_err(failed)?;
    }
    Ok(())
}

fn add_lora(
    weight: Vec<f32>,
    adapter: &Adapter,
    module: &str,
    outputs: usize,
    inputs: usize,
) -> Result<Vec<f32>> {
    let (rank, scale) = (adapter.spec.rank(module), adapter.spec.scale(module));
    let a = adapter.weights.get(&tensor_name(module, 'A'), &[rank, inputs])?.to_f32();
    let b = adapter.weights.get(&tensor_name(module, 'B'), &[outputs, rank])?.to_f32();
    let mut merged = weight;
    for (row, b_row) in merged.chunks_exact_mut(inputs).zip(b.chunks_exact(rank)) {
        let mut delta = vec![0.0f64; inputs];
        for (factor, a_row) in b_row.iter().zip(a.chunks_exact(inputs)) {
            delta.iter_mut().zip(a_row).for_each(|(d, &x)| *d += f64::from(*factor) * f64::from(x));
        }
        row.iter_mut().zip(delta).for_each(|(w, d)| *w = (f64::from(*w) + scale * d) as f32);
    }
    Ok(merged)
}

/// Fails if a value is too large for F16.
fn check_f16(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| v.is_finite() && !f16::from_f32(**v).is_finite()) {
        None => Ok(()),
        Some(value) => {
            let dtype = setting_to("dtype", "bfloat16");
            let fix = format!("write it in another type: {dtype} or float32");
            Err(Error::input(format!("tensor {name}"), "values up to 65504, F16's largest", value, fix))
        }
    }
}

fn encode(name: &str, values: &[f32], dtype: DType) -> Result<Vec<u8>> {
    Ok(match dtype {
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => {
            check_f16(name, values)?;
            values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
        }
        _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
    })
}

fn view<'a>(kind: Dtype, shape: &[usize], bytes: &'a [u8]) -> Result<TensorView<'a>> {
    TensorView::new(kind, shape.to_vec(), bytes).map_err(unwritable)
}

fn unwritable(error: safetensors::SafeTensorError) -> Error {
    Error::Internal { doing: "writing safetensors", message: error.to_string() }
}

/// safetensors bytes of f32 tensors (name, shape, values), in PyTorch's format.
///
/// # Errors
/// When a shape and its values disagree: a bug in the caller.
pub fn serialize<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>) -> Result<Vec<u8>> {
    let mut views = Vec::new();
    for (name, shape, values) in tensors {
        views.push((name, view(Dtype::F32, shape, bytemuck::cast_slice(values))?));
    }
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    safetensors::serialize(views, metadata).map_err(unwritable)
}
