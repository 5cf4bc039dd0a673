//! Merging a LoRA adapter into its base weights: a plain Hugging Face model, or a GGUF file.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::adapter::tensor_name;
use super::load::PEFT_SCORE;
use super::weights::Stored;
use super::{Adapter, ModelBytes, Weights, gguf};
use crate::gpu::DType;
use crate::nn::transposed;
use crate::{Error, Result};

/// The element type of an exported model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportDType {
    /// Each tensor as it is stored in the base model.
    Auto,
    /// All tensors of this type.
    As(DType),
}

/// A model with an adapter merged into it, tensor by tensor: `W + lora_alpha / r · B A`, in f64 and rounded once.
pub struct Merge<'a> {
    base: &'a Weights<'a>,
    adapter: Option<&'a Adapter<'a>>,
    /// The module of each tensor that the adapter changes.
    targets: HashMap<&'a str, &'a str>,
}

/// A tensor of a merged model.
pub enum Merged<'a> {
    /// As the base model has it.
    Stored(Stored<'a>),
    /// Changed; stored in this type before.
    Values(Vec<f32>, DType),
}

impl Merged<'_> {
    /// The type it has in the base model.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Stored(stored) => stored.dtype,
            Self::Values(_, dtype) => *dtype,
        }
    }

    /// Its elements.
    pub fn to_f32(self) -> Vec<f32> {
        match self {
            Self::Stored(stored) => stored.to_f32(),
            Self::Values(values, _) => values,
        }
    }
}

impl<'a> Merge<'a> {
    /// Of `base` with every layer of `adapter`.
    ///
    /// # Errors
    /// When an adapter's layer is not in the model.
    pub fn new(base: &'a Weights<'a>, adapter: Option<&'a Adapter<'a>>) -> Result<Self> {
        let modules: &[String] = match adapter.map(|a| &a.spec.target_modules) {
            Some(crate::config::TargetModules::Names(names)) => names,
            _ => &[],
        };
        if let Some(judge) = adapter.filter(|adapter| adapter.weights.has(PEFT_SCORE)) {
            let fix = "give an adapter of answers: a judge's head has no place in a language model";
            return Err(Error::input(
                judge.weights.origin(),
                "an adapter without a judge's head",
                PEFT_SCORE,
                fix,
            ));
        }
        let mut targets = HashMap::new();
        for module in modules {
            let name = format!("{module}.weight");
            let Some(found) = base.find(&name) else {
                let fix = "give the model that the adapter was made for";
                return Err(Error::input(base.origin(), format!("tensor {name}"), "none", fix));
            };
            targets.insert(found, module.as_str());
        }
        Ok(Self { base, adapter, targets })
    }

    /// The tensor of this name and shape.
    ///
    /// # Errors
    /// When it is not there, or an adapter's layer has another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Merged<'a>> {
        let stored = self.base.get(name, shape)?;
        let module = self.base.find(name).and_then(|name| self.targets.get(name));
        let (Some(module), Some(adapter)) = (module, self.adapter) else { return Ok(Merged::Stored(stored)) };
        let &[rows, columns] = shape else {
            let place = format!("tensor {name}");
            return Err(Error::input(place, "a matrix", format!("shape {shape:?}"), "give the right model"));
        };
        let merged = if adapter.spec.fan_in_fan_out {
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
pub fn merged(base: &Weights, adapter: Option<&Adapter>, dtype: ExportDType) -> Result<Vec<u8>> {
    let merge = Merge::new(base, adapter)?;
    let mut out: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for name in base.names() {
        let shape = base.shape(name).unwrap_or_default().to_vec();
        let tensor = merge.tensor(name, &shape)?;
        let wanted = match dtype {
            // A quantised tensor has no type of its own in a safetensors file.
            ExportDType::Auto if tensor.dtype().is_quantised() => DType::F16,
            ExportDType::Auto => tensor.dtype(),
            ExportDType::As(dtype) => dtype,
        };
        let bytes = match tensor {
            Merged::Stored(stored) if stored.dtype == wanted => stored.plain().to_vec(),
            tensor => encode(&tensor.to_f32(), wanted),
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

/// Writes `model` with `adapter` merged as a GGUF file with matrices of `kind`, a tensor at a time; `failed` makes an error of what `out`
/// reports.
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
    let merge = Merge::new(&weights, adapter)?;
    let file = gguf::describe(model, kind)?;
    gguf::write_header(out, &file.metadata, &file.tensors).map_err(failed)?;
    for (described, source) in file.tensors.iter().zip(&file.sources) {
        let values = match source {
            gguf::Source::Values(values) => values.clone(),
            gguf::Source::Tensor(name, heads) => {
                let values = merge.tensor(name, &described.shape)?.to_f32();
                let turned = heads.map(|heads| gguf::as_neighbours(&values, described.shape[0], heads));
                turned.unwrap_or(values)
            }
        };
        gguf::write_tensor(out, &gguf::encode(&values, described.kind)).map_err(failed)?;
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
    let rank = adapter.spec.r;
    let scale = adapter.spec.lora_alpha / rank as f64;
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

fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
    }
}

fn view<'a>(kind: Dtype, shape: &[usize], bytes: &'a [u8]) -> Result<TensorView<'a>> {
    TensorView::new(kind, shape.to_vec(), bytes).map_err(unwritable)
}

fn unwritable(error: safetensors::SafeTensorError) -> Error {
    Error::Gpu { doing: "writing safetensors".into(), message: error.to_string() }
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
