//! Trainable parameters in a few flat arenas: one optimizer dispatch, one norm reduction and one copy for
//! each arena.

use crate::Result;
use crate::gpu::{DType, Gpu, Memory, Purpose, Recorder, Tensor};

/// The most elements of an arena: 128 MiB of f32, WebGPU's default limit for one binding.
pub(crate) const MAX_ARENA: usize = 32 << 20;
/// Parameters start at multiples of this many elements, so that each can be bound by itself.
const ALIGN: usize = 64;

/// Which parameters AdamW decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Matrices only, as Hugging Face's Trainer: no biases, no norms.
    Matrices,
    /// Everything.
    All,
}

/// A tensor of a model, or some of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its Hugging Face (or PEFT) name.
    pub name: String,
    /// The shape of this part.
    pub shape: Vec<usize>,
    /// Index of this part's first row in the whole tensor.
    pub first_row: usize,
    /// Rows of the whole tensor: more than in this part if the tensor exceeds a binding.
    pub all_rows: usize,
    /// Whether it is stored transposed in files, as in GPT-2's.
    pub transposed: bool,
    /// Whether it is a frozen matrix of a block, which may be quantised when it is loaded.
    pub quantizable: bool,
}

impl Part {
    /// A whole tensor.
    pub fn whole(name: impl Into<String>, shape: &[usize]) -> Self {
        let all_rows = shape.first().copied().unwrap_or(1);
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            first_row: 0,
            all_rows,
            transposed: false,
            quantizable: false,
        }
    }

    /// `count` rows of the part, from `first` on.
    pub fn rows(&self, first: usize, count: usize) -> Self {
        let mut part = self.clone();
        part.shape[0] = count;
        part.first_row = self.first_row + first;
        part
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The shape of the whole tensor as stored in files.
    pub fn stored_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = self.all_rows;
        }
        if self.transposed {
            shape.reverse();
        }
        shape
    }
}

/// The location of a trained tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The tensor, or its part.
    pub part: Part,
    /// Index of the arena.
    pub arena: usize,
    /// Index of its first element in the arena.
    pub offset: usize,
}

impl Entry {
    /// Its Hugging Face (or PEFT) name.
    pub fn name(&self) -> &str {
        &self.part.name
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.part.count()
    }
}

/// The transpose `(columns, rows)` of elements `(rows, columns)`.
pub fn transposed<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
}

/// The trained tensors and their locations in the arenas. Values, gradients, moments and references share one
/// layout.
#[derive(Debug, Clone)]
pub struct Layout {
    entries: Vec<Entry>,
    /// For each arena, its number of elements and whether weight decay applies.
    arenas: Vec<(usize, bool)>,
    decay: Decay,
}

impl Layout {
    /// An empty layout.
    pub fn new(decay: Decay) -> Self {
        Self { entries: Vec::new(), arenas: Vec::new(), decay }
    }

    /// Adds tensors as one parameter, in which they are concatenated. They are all matrices or all vectors.
    pub fn add(&mut self, tensors: Vec<Part>) -> Param {
        let count = tensors.iter().map(Part::count).sum::<usize>();
        let padded = count.next_multiple_of(ALIGN);
        let decays = self.decay == Decay::All || tensors.iter().any(|part| part.shape.len() > 1);
        let open = self.arenas.iter().position(|&(used, d)| d == decays && used + padded <= MAX_ARENA);
        let arena = open.unwrap_or_else(|| {
            self.arenas.push((0, decays));
            self.arenas.len() - 1
        });
        let offset = self.arenas[arena].0;
        self.arenas[arena].0 += padded;
        let mut at = offset;
        for part in tensors {
            let entry = Entry { part, arena, offset: at };
            at += entry.count();
            self.entries.push(entry);
        }
        Param::Trained { arena, offset, count }
    }

    /// All tensors, in the order they were added.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// For each arena, its number of elements and whether weight decay applies.
    pub fn arenas(&self) -> &[(usize, bool)] {
        &self.arenas
    }

    /// Converts the entries' values to tensors as stored in files: the name, shape and values of each, in the
    /// order in which they were added.
    pub fn stored(&self, values: &[Vec<f32>]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut all: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        for (entry, values) in self.entries.iter().zip(values) {
            let part = &entry.part;
            match all.iter_mut().find(|(name, ..)| part.first_row > 0 && *name == part.name) {
                Some((_, _, rows)) => rows.extend(values),
                None => all.push((part.name.clone(), part.stored_shape(), values.clone())),
            }
        }
        let turned = |entry: &&Entry| entry.part.transposed && entry.part.first_row == 0;
        for entry in self.entries.iter().filter(turned) {
            if let Some((_, shape, values)) = all.iter_mut().find(|(name, ..)| *name == entry.part.name) {
                *values = transposed(values, shape[1], shape[0]);
            }
        }
        all
    }

    /// Splits the arenas' values into the values of each entry.
    pub fn of_arenas(&self, arenas: &[Vec<f32>]) -> Vec<Vec<f32>> {
        self.entries.iter().map(|e| arenas[e.arena][e.offset..e.offset + e.count()].to_vec()).collect()
    }

    /// Trainable elements, without padding.
    pub fn count(&self) -> usize {
        self.entries.iter().map(Entry::count).sum()
    }
}

/// One f32 value for each trained element: parameters, gradients, moments, or a reference's snapshot.
#[derive(Clone)]
pub struct Arenas(Vec<Tensor>);

impl Arenas {
    /// Zeroed arenas for `layout`.
    ///
    /// # Errors
    /// When a tensor exceeds the adapter's binding limit.
    pub fn new(memory: &Memory, layout: &Layout, purpose: Purpose, label: &str) -> Result<Self> {
        let make = |(i, &(count, _)): (usize, &(usize, bool))| {
            Tensor::new(memory, purpose, &format!("{label} {i}"), count, DType::F32)
        };
        layout.arenas.iter().enumerate().map(make).collect::<Result<_>>().map(Self)
    }

    /// The tensor of each arena.
    pub fn tensors(&self) -> &[Tensor] {
        &self.0
    }

    /// The tensor of an entry.
    pub fn of(&self, entry: &Entry) -> Tensor {
        self.0[entry.arena].slice(entry.offset, entry.count())
    }

    /// Records a copy of all arenas into `target`.
    pub fn copy_to(&self, rec: &mut Recorder, target: &Arenas) {
        for (from, to) in self.0.iter().zip(&target.0) {
            from.copy_to(rec, to);
        }
    }

    /// Records zeroing of all arenas.
    pub fn clear(&self, rec: &mut Recorder) {
        for arena in &self.0 {
            arena.clear(rec);
        }
    }

    /// Reads every tensor back, in the layout's order.
    pub async fn read(&self, gpu: &Gpu, layout: &Layout) -> Result<Vec<Vec<f32>>> {
        let mut arenas = Vec::new();
        for arena in &self.0 {
            arenas.push(arena.read_f32(gpu).await?);
        }
        Ok(layout.of_arenas(&arenas))
    }
}

/// A parameter: frozen in a buffer of its own, or trained in an arena.
#[derive(Clone)]
pub enum Param {
    /// As loaded; no gradient, no moments.
    Frozen(Tensor),
    /// In the arenas, f32.
    Trained {
        /// Index of the arena.
        arena: usize,
        /// Index of the first element.
        offset: usize,
        /// Number of elements.
        count: usize,
    },
}

impl Param {
    /// Its tensor, given the values (or gradients) of trained parameters.
    pub fn in_arenas(&self, arenas: &Arenas) -> Tensor {
        match *self {
            Self::Frozen(ref tensor) => tensor.clone(),
            Self::Trained { arena, offset, count } => arenas.0[arena].slice(offset, count),
        }
    }

    /// Its gradient's tensor; `None` when frozen.
    pub fn gradient(&self, gradients: &Arenas) -> Option<Tensor> {
        matches!(self, Self::Trained { .. }).then(|| self.in_arenas(gradients))
    }
}
