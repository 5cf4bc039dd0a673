//! Tensors from safetensors or GGUF files, one file or several shards.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use half::{bf16, f16};
use safetensors::Dtype;

use super::DecoderConfig;
use super::file_bytes::{FileBytes, Span};
use super::gguf::{Gguf, Kind, Named, TensorInfo, in_halves};
use super::safetensors_head::safetensors_head;
use crate::error::setting;
use crate::gpu::{Blocks, DType, Quantize};
use crate::nn::{Part, transposed};
use crate::{Error, Result};

/// One tensor as stored.
#[derive(Clone)]
pub struct Stored<'a> {
    /// The tensor's file.
    pub file: &'a str,
    /// F32, Bf16, F16 or a quantised type.
    pub dtype: DType,
    /// The elements.
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

    /// The index of the first element that is NaN or infinite.
    fn first_not_finite(&self) -> Option<usize> {
        let bytes = match &self.data {
            Elements::Plain(bytes) => bytes,
            Elements::Blocks(blocks) => return blocks.first_not_finite(),
        };
        // An exponent of all ones means infinity or NaN. Whole chunks are tested first, many elements at a
        // time.
        fn first<const N: usize>(bytes: &[u8], odd: impl Fn([u8; N]) -> bool) -> Option<usize> {
            let elements = bytes.as_chunks::<N>().0;
            let chunk =
                elements.chunks(1 << 12).position(|c| c.iter().fold(false, |any, &e| any | odd(e)))?;
            elements[chunk << 12..].iter().position(|&e| odd(e)).map(|at| (chunk << 12) + at)
        }
        let ones = |mask: u16| move |b: [u8; 2]| u16::from_le_bytes(b) & mask == mask;
        match self.dtype {
            DType::Bf16 => first(bytes, ones(0x7f80)),
            DType::F16 => first(bytes, ones(0x7c00)),
            _ => first(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        }
    }

    /// Fails if an element is NaN or infinite. The elements begin at element `start` of a tensor with this
    /// name and shape.
    fn check_finite(&self, name: &str, shape: &[usize], start: usize) -> Result<()> {
        let Some(at) = self.first_not_finite() else { return Ok(()) };
        let at = start + at;
        let index = shape.iter().rev().scan(at, |rest, &size| {
            let own = *rest % size.max(1);
            *rest /= size.max(1);
            Some(own)
        });
        let mut index: Vec<String> = index.map(|i| i.to_string()).collect();
        index.reverse();
        let value = match &self.data {
            Elements::Blocks(_) => "whose block has a scale that is NaN or infinite".to_string(),
            Elements::Plain(_) => {
                let value = self.to_f32().get(at - start).copied().unwrap_or(f32::NAN);
                format!("which is {value}")
            }
        };
        let place = format!("{}: tensor {name}", self.file);
        let found = format!("element [{}], {value}", index.join(", "));
        let fix = "download the weights again, or go back to an earlier checkpoint; if the model was \
                   converted to F16, values may have overflowed: convert it to BF16 or F32 instead";
        Err(Error::input(place, "finite numbers", found, fix))
    }

    /// The quantised elements.
    pub(super) fn blocks(&self) -> Option<&Blocks> {
        if let Elements::Blocks(blocks) = &self.data { Some(blocks) } else { None }
    }

    /// The bytes of elements that are not quantised; empty if they are.
    pub(super) fn plain(&self) -> &[u8] {
        if let Elements::Plain(bytes) = &self.data { bytes } else { &[] }
    }

    /// The transpose `(columns, rows)` of a matrix `(rows, columns)`; quantised elements become f32.
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

/// A tensor of any type, in the bytes of its file.
struct Located<'a> {
    file: &'a str,
    dtype: Type,
    shape: Vec<usize>,
    bytes: Span<'a>,
}

/// A tensor's type in its file.
#[derive(Clone, Copy)]
enum Type {
    Safetensors(Dtype),
    /// A type of a GGUF file, and the number of heads for queries and keys whose rows are reordered.
    Ggml(Kind, Option<usize>),
}

/// A tensor's description in a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ListedTensor {
    /// Hugging Face's name.
    pub name: String,
    /// The tensor's type, as the file's format names it.
    pub dtype: String,
    /// The sizes of its dimensions, outermost first.
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
    /// Parses shards of (display name, bytes), safetensors or GGUF. `origin` names all of them together in
    /// messages.
    ///
    /// # Errors
    /// When a shard is not such a file or ends early.
    pub fn parse<B: Into<FileBytes<'a>>>(
        shards: impl IntoIterator<Item = (&'a str, B)>,
        origin: &str,
    ) -> Result<Self> {
        let mut tensors = HashMap::new();
        for (file, bytes) in shards {
            let bytes: FileBytes = bytes.into();
            let magic = bytes.start(4).map_err(|error| Error::io(file, "read", error))?;
            if *magic == *b"GGUF" {
                let parsed = Gguf::parse(bytes).map_err(|damage| damage.of(file))?;
                for Named { name, hf, reordered } in parsed.names().map_err(|damage| damage.of(file))? {
                    let TensorInfo { kind, shape, bytes } = parsed.tensors[name].clone();
                    let dtype = Type::Ggml(kind, reordered);
                    tensors.insert(hf, Located { file, dtype, shape, bytes });
                }
                continue;
            }
            let (start, metadata) = safetensors_head(bytes).map_err(|e| {
                if *magic == *b"PK\x03\x04" || magic.starts_with(&[0x80, 2]) {
                    let fix =
                        "save the model again as safetensors: a pickle can hold programs, and is not opened";
                    return Error::input(file, "a safetensors file", "a PyTorch pickle", fix);
                }
                let expected = "a complete safetensors file";
                let found = format!("a damaged file of {} bytes ({e})", bytes.len());
                Error::input(file, expected, found, "download it again")
            })?;
            for (name, info) in metadata.tensors() {
                let (from, to) = info.data_offsets;
                let bytes = Span { file: bytes, start: start + from, len: to - from };
                let dtype = Type::Safetensors(info.dtype);
                tensors.insert(plain_name(&name), Located { file, dtype, shape: info.shape.clone(), bytes });
            }
        }
        Ok(Self { tensors, origin: origin.to_string(), quantize: None, offload: false, judge: false })
    }

    /// Quantises the blocks' frozen matrices to this type when they are loaded, unless they are quantised
    /// already or their rows are not a multiple of the quantisation block.
    pub fn quantized(self, quantize: Option<Quantize>) -> Self {
        Self { quantize, ..self }
    }

    /// With `offload`, keeps the blocks' frozen matrices in host memory. A block's matrices are copied to the
    /// device each time a pass reaches the block.
    pub fn offloaded(self, offload: bool) -> Self {
        Self { offload, ..self }
    }

    /// With `judge`, gives the decoder's head a judge's two classes instead of the vocabulary:
    /// `score.weight`, or zeros if training starts without it.
    pub fn judging(self, judge: bool) -> Self {
        Self { judge, ..self }
    }

    /// The type that `part` is quantised to when it is loaded; `None` if it keeps its type `dtype`.
    fn made_of(&self, part: &Part, dtype: DType) -> Option<Quantize> {
        let whole =
            |q: &Quantize| part.shape.last().is_some_and(|width| width.is_multiple_of(q.dtype().block()));
        self.quantize.filter(|q| part.quantizable && !dtype.is_quantised() && whole(q))
    }

    /// The name of all files together in messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The name under which a tensor is stored. In checkpoints of a model without its head, such as GPT-2's
    /// own, all names lack their first part.
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

    /// The first tensor that shows that another program has quantised the model, with its type. Checkpoints
    /// of bitsandbytes, GPTQ, AWQ, compressed-tensors and FP8 have such tensors. Masks that old checkpoints
    /// store as integers do not count.
    pub(super) fn quantised_elsewhere(&self) -> Option<String> {
        let ends = [
            ".qweight",
            ".qzeros",
            ".SCB",
            ".absmax",
            ".weight_packed",
            ".weight_scale",
            ".weight_scale_inv",
        ];
        let is_float = |dtype| matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let odd = |(name, tensor): (&'_ String, &Located)| match tensor.dtype {
            Type::Safetensors(dtype) => {
                let weight = name.ends_with("weight") && !is_float(dtype);
                let beside = ends.iter().any(|end| name.ends_with(end));
                (weight || beside).then(|| format!("{name} is {dtype:?}"))
            }
            Type::Ggml(..) => None,
        };
        self.tensors.iter().filter_map(odd).min()
    }

    /// The configuration that fits these weights. If config.json ties the head to the embedding but the
    /// weights have a head with other values, that head is used, as in transformers 5.
    pub(super) fn untied(&self, config: DecoderConfig) -> DecoderConfig {
        let (names, shape) = (config.names, [config.vocab, config.width]);
        let head = format!("{}.weight", names.head);
        // Only by its full name: in a checkpoint whose names lack their first part, the embedding is not a
        // head.
        if !config.tied || !self.tensors.contains_key(&head) {
            return config;
        }
        let stored = [head.as_str(), names.embedding].map(|name| self.unchecked(name, &shape));
        let [Ok(head), Ok(embedding)] = stored else { return config };
        let same = match (&head.data, &embedding.data) {
            (Elements::Plain(a), Elements::Plain(b)) if head.dtype == embedding.dtype => a == b,
            _ => head.to_f32() == embedding.to_f32(),
        };
        DecoderConfig { tied: same, ..config }
    }

    /// The names of tensors that no part of such a model reads; transformers ignores them too, with a
    /// warning. The buffers of old checkpoints (masks, rotary frequencies, positions) are not listed, nor is
    /// a head that is tied to the embedding.
    pub fn unread(&self, config: &DecoderConfig) -> Vec<&str> {
        let known: HashSet<String> = config.tensors().into_iter().map(|(name, _)| name).collect();
        let head = format!("{}.weight", config.names.head);
        let beside = [
            "rotary_emb.inv_freq",
            "masked_bias",
            "attention.bias",
            "attn.bias",
            "self_attn.bias",
            "position_ids",
        ];
        let read: HashSet<&str> = known.iter().filter_map(|name| self.find(name)).collect();
        let odd = |name: &&str| {
            !read.contains(name)
                && *name != head
                && *name != "score.weight"
                && !beside.iter().any(|end| name.ends_with(end))
        };
        let mut all: Vec<&str> = self.names().filter(odd).collect();
        all.sort_unstable();
        all
    }

    /// A tensor as it is stored in a safetensors file, of any type; `None` for a GGUF file.
    pub(super) fn raw(&self, name: &str) -> Option<(Dtype, &[usize], Span<'a>)> {
        let located = self.tensors.get(name)?;
        match located.dtype {
            Type::Safetensors(dtype) => Some((dtype, &located.shape, located.bytes)),
            Type::Ggml(..) => None,
        }
    }

    /// The model's configuration, with a separate head if the weights have one.
    ///
    /// # Errors
    /// [`Error::Input`] names the first tensor that is missing, has another shape or has a type that is not
    /// supported.
    pub fn config_of(&self, config: DecoderConfig) -> Result<DecoderConfig> {
        let config = self.untied(config);
        let head = format!("{}.weight", config.names.head);
        let own = |(name, _): &(String, _)| config.classes.is_none() || *name != head;
        config
            .tensors()
            .into_iter()
            .filter(own)
            .try_for_each(|(name, shape)| self.located(&name, &shape).map(drop))?;
        Ok(config)
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

    /// The tensor's shape; `None` if there is no such tensor.
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
                let fix = "convert the tensors to one of these";
                return Err(Error::input(place(), "dtype F32, BF16 or F16", format!("{other:?}"), fix));
            }
        };
        Ok((located, dtype))
    }

    /// The tensor `name`, which must have `shape`, a float or quantised type of at most 32 bits, and finite
    /// elements.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Stored<'a>> {
        let stored = self.unchecked(name, shape)?;
        stored.check_finite(name, shape, 0)?;
        Ok(stored)
    }

    /// As [`Weights::get`], but the elements are not checked.
    fn unchecked(&self, name: &str, shape: &[usize]) -> Result<Stored<'a>> {
        let (&Located { file, dtype: stored, bytes, .. }, dtype) = self.located(name, shape)?;
        let bytes = bytes.read().map_err(|error| Error::io(file, "read", error))?;
        Ok(match stored {
            Type::Ggml(kind, heads) => ggml(file, kind, heads, bytes, shape),
            Type::Safetensors(_) => Stored { file, dtype, data: Elements::Plain(bytes) },
        })
    }

    /// The type of `part` on the device, without its elements.
    pub(super) fn dtype(&self, part: &Part) -> Result<DType> {
        let (_, dtype) = self.located(&part.name, &part.stored_shape())?;
        let dtype = if part.transposed && dtype.is_quantised() { DType::F32 } else { dtype };
        Ok(self.made_of(part, dtype).map_or(dtype, Quantize::dtype))
    }

    /// The elements of `part`, in its layout.
    ///
    /// # Errors
    /// As [`Weights::get`] of the whole tensor.
    pub fn part(&self, part: &Part) -> Result<Stored<'a>> {
        let whole = part.stored_shape();
        let &[rows, columns] = part.shape.as_slice() else { return self.get(&part.name, &whole) };
        let mut stored = match part.transposed {
            true => self.get(&part.name, &whole)?.transposed(columns, part.all_rows),
            false => self.unchecked(&part.name, &whole)?,
        };
        if rows < part.all_rows {
            stored = stored.rows(part.first_row, rows, columns);
        }
        if !part.transposed {
            stored.check_finite(&part.name, &whole, part.first_row * columns)?;
        }
        let Some(quantize) = self.made_of(part, stored.dtype) else { return Ok(stored) };
        let values = stored.to_f32();
        let blocks = Blocks::quantized(&values, quantize);
        if blocks.first_not_finite().is_some() {
            let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let place = format!("{}: tensor {}", stored.file, part.name);
            let expected = "weights that can be quantised: a block's scale is an f16, up to 65504";
            let fix = format!("use the model without {}", setting("quantize"));
            return Err(Error::input(place, expected, format!("a weight of {largest}"), fix));
        }
        Ok(Stored { dtype: quantize.dtype(), data: Elements::Blocks(blocks), ..stored })
    }
}

/// A tensor's name without additions: the prefix of torch.compile's wrapper, and the adapter's name in PEFT's
/// own state dict.
fn plain_name(name: &str) -> String {
    let name = name.replace("_orig_mod.", "");
    for matrix in [".lora_A.", ".lora_B."] {
        if let Some((module, "default.weight")) = name.split_once(matrix) {
            return format!("{module}{matrix}weight");
        }
    }
    name
}

/// A GGUF file's tensor, with its rows in Hugging Face's order.
fn ggml<'a>(
    file: &'a str,
    kind: Kind,
    heads: Option<usize>,
    bytes: Cow<'a, [u8]>,
    shape: &[usize],
) -> Stored<'a> {
    let bytes = match heads {
        Some(heads) => Cow::Owned(in_halves(&bytes, shape[0], heads)),
        None => bytes,
    };
    let data = kind.blocks(&bytes).map_or(Elements::Plain(bytes), Elements::Blocks);
    Stored { file, dtype: kind.dtype(), data }
}

/// The advice for a tensor that does not match the model's configuration.
fn mend(name: &str) -> &'static str {
    if name.contains(".lora_") {
        "use an adapter that was made for this model, with the rank that its adapter_config.json says"
    } else {
        "use a complete model directory; config.json and the weights must belong together"
    }
}
