//! Tensors from safetensors bytes, one file or several shards.

use std::borrow::Cow;
use std::collections::HashMap;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::gguf::{Gguf, Kind, Named, TensorInfo, in_halves};
use crate::gpu::{Blocks, DType, Quantize};
use crate::nn::{Part, transposed};
use crate::{Error, Result};

/// One tensor as stored.
#[derive(Clone)]
pub struct Stored<'a> {
    /// The file it is in.
    pub file: &'a str,
    /// F32, Bf16, F16 or a quantised type.
    pub dtype: DType,
    /// Its elements.
    pub data: Elements<'a>,
}

/// Elements on the host.
#[derive(Clone)]
pub enum Elements<'a> {
    /// Little-endian numbers.
    Plain(Cow<'a, [u8]>),
    /// Quantised.
    Blocks(Blocks),
}

impl<'a> Stored<'a> {
    /// The elements as f32; exact for all types.
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = match &self.data {
            Elements::Plain(bytes) => bytes,
            Elements::Blocks(blocks) => return blocks.values(),
        };
        let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self.dtype {
            DType::Bf16 => pairs().map(|b| bf16::from_bits(b).to_f32()).collect(),
            DType::F16 => pairs().map(|b| f16::from_bits(b).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }

    /// The quantised elements.
    pub(super) fn blocks(&self) -> Option<&Blocks> {
        if let Elements::Blocks(blocks) = &self.data { Some(blocks) } else { None }
    }

    /// The bytes of elements that are not quantised, else none.
    pub(super) fn plain(&self) -> &[u8] {
        if let Elements::Plain(bytes) = &self.data { bytes } else { &[] }
    }

    /// The tensor `(columns, rows)` of a matrix `(rows, columns)`; quantised rows become f32.
    fn transposed(self, rows: usize, columns: usize) -> Self {
        let (dtype, bytes) = match &self.data {
            Elements::Plain(bytes) if self.dtype.size(1) == 2 => {
                let turned = transposed::<[u8; 2]>(bytemuck::cast_slice(bytes), rows, columns);
                (self.dtype, turned.into_flattened())
            }
            _ => (DType::F32, bytemuck::cast_slice(&transposed(&self.to_f32(), rows, columns)).to_vec()),
        };
        Self { file: self.file, dtype, data: Elements::Plain(Cow::Owned(bytes)) }
    }

    /// Some rows of a matrix with rows of `width`.
    fn rows(self, first: usize, count: usize, width: usize) -> Self {
        let (start, len) = (first * width, count * width);
        let bytes = |start: usize, len: usize| self.dtype.size(start)..self.dtype.size(start + len);
        let data = match self.data {
            Elements::Plain(Cow::Borrowed(all)) => Elements::Plain(Cow::Borrowed(&all[bytes(start, len)])),
            Elements::Plain(Cow::Owned(all)) => Elements::Plain(Cow::Owned(all[bytes(start, len)].to_vec())),
            Elements::Blocks(blocks) => Elements::Blocks(blocks.slice(start, len)),
        };
        Self { data, ..self }
    }
}

/// A tensor of any type, where it lies.
struct Located<'a> {
    file: &'a str,
    dtype: Type,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

/// A tensor's type in its file.
#[derive(Clone, Copy)]
enum Type {
    Safetensors(Dtype),
    /// Of a GGUF file; of queries and keys whose rows are reordered, the number of heads.
    Ggml(Kind, Option<usize>),
}

/// What a file says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ListedTensor {
    /// Hugging Face's name.
    pub name: String,
    /// Its type, by the file's own name.
    pub dtype: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: u64,
}

/// All tensors of a model or adapter, by name.
pub struct Weights<'a> {
    tensors: HashMap<String, Located<'a>>,
    origin: String,
    quantize: Option<Quantize>,
    /// Whether blocks' frozen matrices stay in host memory.
    pub(super) offload: bool,
    /// Whether the decoder gets a judge's head.
    pub(super) judge: bool,
}

impl<'a> Weights<'a> {
    /// Parses shards of (display name, bytes), safetensors or GGUF. `origin` names the whole in messages.
    ///
    /// # Errors
    /// When a shard is no such file or ends early.
    pub fn parse(shards: impl IntoIterator<Item = (&'a str, &'a [u8])>, origin: &str) -> Result<Self> {
        let mut tensors = HashMap::new();
        for (file, bytes) in shards {
            if bytes.starts_with(b"GGUF") {
                let parsed = Gguf::parse(bytes).map_err(|damage| damage.of(file))?;
                for Named { name, hf, reordered } in parsed.names().map_err(|damage| damage.of(file))? {
                    let TensorInfo { kind, shape, bytes } = parsed.tensors[name].clone();
                    let dtype = Type::Ggml(kind, reordered);
                    tensors.insert(hf, Located { file, dtype, shape, bytes });
                }
                continue;
            }
            let parsed = SafeTensors::deserialize(bytes).map_err(|e| {
                let expected = "a whole safetensors file";
                Error::input(
                    file,
                    expected,
                    format!("{} bytes that are none ({e})", bytes.len()),
                    "download it again",
                )
            })?;
            for (name, _) in parsed.iter() {
                // `iter` borrows from the local; the views below borrow from the bytes.
                let view = parsed
                    .tensor(name)
                    .map_err(|e| Error::input(file, format!("tensor {name}"), e, "download it again"))?;
                let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
                let bytes = &bytes[start..start + view.data().len()];
                let located = Located {
                    file,
                    dtype: Type::Safetensors(view.dtype()),
                    shape: view.shape().to_vec(),
                    bytes,
                };
                tensors.insert(name.to_string(), located);
            }
        }
        Ok(Self { tensors, origin: origin.to_string(), quantize: None, offload: false, judge: false })
    }

    /// The same, but blocks' frozen matrices are given in this type, unless they are quantised already or their rows are no whole
    /// blocks.
    pub fn quantized(self, quantize: Option<Quantize>) -> Self {
        Self { quantize, ..self }
    }

    /// The same, but blocks' frozen matrices stay in host memory, and each block's are brought to the device when it is passed.
    pub fn offloaded(self, offload: bool) -> Self {
        Self { offload, ..self }
    }

    /// The same, but the decoder's head tells a judge's two classes apart instead of tokens: `score.weight`, zeros where there is none.
    pub fn judging(self, judge: bool) -> Self {
        Self { judge, ..self }
    }

    /// What `part`, of this type otherwise, is quantised to.
    fn made_of(&self, part: &Part, dtype: DType) -> Option<Quantize> {
        let whole =
            |q: &Quantize| part.shape.last().is_some_and(|width| width.is_multiple_of(q.dtype().block()));
        self.quantize.filter(|q| part.quantizable && !dtype.is_quantised() && whole(q))
    }

    /// What messages call the whole.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The name under which a tensor is stored. Checkpoints of a model without its head lack the first part of all names, as
    /// GPT-2's own does.
    pub fn find(&self, name: &str) -> Option<&str> {
        let entry = self.tensors.get_key_value(name);
        let entry = entry.or_else(|| self.tensors.get_key_value(name.split_once('.')?.1));
        entry.map(|(name, _)| name.as_str())
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, by name.
    pub fn list(&self) -> Vec<ListedTensor> {
        let one = |(name, tensor): (&String, &Located)| ListedTensor {
            name: name.clone(),
            dtype: match tensor.dtype {
                Type::Safetensors(dtype) => format!("{dtype:?}"),
                Type::Ggml(kind, _) => kind.name().to_string(),
            },
            shape: tensor.shape.clone(),
            bytes: tensor.bytes.len() as u64,
        };
        let mut all: Vec<ListedTensor> = self.tensors.iter().map(one).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The tensor's shape, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// The tensor `name`, which must have `shape`, and its type on the device.
    fn located(&self, name: &str, shape: &[usize]) -> Result<(&Located<'a>, DType)> {
        let Some(located) = self.find(name).and_then(|name| self.tensors.get(name)) else {
            let found = format!("none among {} tensors", self.tensors.len());
            return Err(Error::input(&self.origin, format!("tensor {name}"), found, mend(name)));
        };
        let place = || format!("{}: tensor {name}", located.file);
        if located.shape != shape {
            let found = format!("{:?}", located.shape);
            return Err(Error::input(place(), format!("shape {shape:?}"), found, mend(name)));
        }
        let dtype = match located.dtype {
            Type::Ggml(kind, _) => kind.dtype(),
            Type::Safetensors(Dtype::F32) => DType::F32,
            Type::Safetensors(Dtype::BF16) => DType::Bf16,
            Type::Safetensors(Dtype::F16) => DType::F16,
            Type::Safetensors(other) => {
                let fix = "convert the model to one of these";
                return Err(Error::input(place(), "dtype F32, BF16 or F16", format!("{other:?}"), fix));
            }
        };
        Ok((located, dtype))
    }

    /// The tensor `name`, which must have `shape` and a float or quantised type of at most 32 bits.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Stored<'a>> {
        let (&Located { file, dtype: stored, bytes, .. }, dtype) = self.located(name, shape)?;
        Ok(match stored {
            Type::Ggml(kind, heads) => ggml(file, kind, heads, bytes, shape),
            Type::Safetensors(_) => Stored { file, dtype, data: Elements::Plain(Cow::Borrowed(bytes)) },
        })
    }

    /// The type of `part` on the device, without its elements.
    pub(super) fn dtype(&self, part: &Part) -> Result<DType> {
        let (_, dtype) = self.located(&part.name, &part.stored_shape())?;
        let dtype = if part.transposed && dtype.is_quantised() { DType::F32 } else { dtype };
        Ok(self.made_of(part, dtype).map_or(dtype, Quantize::dtype))
    }

    /// The elements of `part`, laid out as it is.
    ///
    /// # Errors
    /// As [`Weights::get`] of the whole tensor.
    pub fn part(&self, part: &Part) -> Result<Stored<'a>> {
        let mut stored = self.get(&part.name, &part.stored_shape())?;
        let &[rows, columns] = part.shape.as_slice() else { return Ok(stored) };
        if part.transposed {
            stored = stored.transposed(columns, part.all_rows);
        }
        if rows < part.all_rows {
            stored = stored.rows(part.first_row, rows, columns);
        }
        let Some(quantize) = self.made_of(part, stored.dtype) else { return Ok(stored) };
        let data = Elements::Blocks(Blocks::quantized(&stored.to_f32(), quantize));
        Ok(Stored { dtype: quantize.dtype(), data, ..stored })
    }
}

/// A GGUF file's tensor, with its rows in Hugging Face's order.
fn ggml<'a>(file: &'a str, kind: Kind, heads: Option<usize>, bytes: &'a [u8], shape: &[usize]) -> Stored<'a> {
    let bytes = match heads {
        Some(heads) => Cow::Owned(in_halves(bytes, shape[0], heads)),
        None => Cow::Borrowed(bytes),
    };
    let data = kind.blocks(&bytes).map_or(Elements::Plain(bytes), Elements::Blocks);
    Stored { file, dtype: kind.dtype(), data }
}

/// What to do about a tensor that is not as the model's configuration says.
fn mend(name: &str) -> &'static str {
    if name.contains(".lora_") {
        "use an adapter that was made for this model, with the rank that its adapter_config.json says"
    } else {
        "use a complete model directory; config.json and the weights must belong together"
    }
}
