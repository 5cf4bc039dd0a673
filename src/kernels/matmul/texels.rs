//! Operands that a software adapter's kernels read through textures: what is copied of them.

use std::ops::Range;

use crate::gpu::Copied;
use crate::kernels::Mat;

/// The part of an operand that some outputs need, as it is copied into a texture.
pub(super) struct Part {
    /// The outputs: rows of the operand, or columns of it.
    pub outputs: Range<usize>,
    /// What is copied.
    pub copied: Copied,
    /// Elements between the rows of the copy.
    pub pitch: usize,
}

/// Divides an operand of a product into parts that fit into a texture; `None` if that cannot be. It has a
/// row of `k` elements for each of `outputs`, or with `across` `k` rows with an element for each. A part is
/// for at most `most` outputs.
pub(super) fn parts(of: Mat, across: bool, outputs: usize, k: usize, most: usize) -> Option<Vec<Part>> {
    let size = of.data.dtype().size(1);
    let part = |first: usize, end: usize| {
        let (rows, columns) = if across { (k, end - first) } else { (end - first, k) };
        let start = of.at + if across { first } else { first * of.stride };
        let [start, columns, stride] = [start, columns, of.stride].map(|count| (count * size) as u64);
        let (copied, pitch) = Copied::of(start, rows as u64, columns, stride)?;
        Some(Part { outputs: first..end, copied, pitch: pitch as usize / size })
    };
    // Parts start at multiples of 64: whole blocks of any kernel, and whole texels.
    let mut step = outputs.min(most);
    while step > 64 && part(0, step).is_none() {
        step = (step / 2).next_multiple_of(64);
    }
    (0..outputs).step_by(step.max(1)).map(|first| part(first, (first + step).min(outputs))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{DEFAULT_BINDING, DType, Memory, Purpose, Tensor};

    #[test]
    fn large_operands_are_divided() {
        let memory = Memory::on_paper(4 * DEFAULT_BINDING);
        let tensor = |len, dtype| Tensor::new(&memory, Purpose::Weights, "w", len, dtype).unwrap();
        let starts = |of: &Tensor, stride, across, (outputs, k), most| {
            let parts = parts(Mat::new(of, stride), across, outputs, k, most).unwrap();
            let ends: Vec<_> = parts.iter().map(|part| part.outputs.end).collect();
            assert_eq!(ends.last(), Some(&outputs));
            let starts: Vec<_> = parts.iter().map(|part| part.outputs.start).collect();
            assert_eq!(starts[1..], ends[..ends.len() - 1], "no output is left out or computed twice");
            assert!(starts.iter().all(|start| start.is_multiple_of(64)), "{starts:?}");
            starts
        };
        let (head, vocab, width) = (tensor(49_152 * 576, DType::F32), 49_152, 576);
        assert_eq!(starts(&head, width, false, (vocab, width), vocab), [0, 12_288, 24_576, 36_864]);
        let packed = tensor(vocab * width, DType::Bf16);
        assert_eq!(starts(&packed, width, false, (vocab, width), vocab), [0, 24_576]);
        assert_eq!(starts(&head, width, false, (1000, width), 320), [0, 320, 640, 960]);
        // Of 576 rows of 49,152 elements, a row of the texture holds 4096 of each: half of a half, and so on.
        let across = starts(&head, vocab, true, (vocab, width), vocab);
        assert_eq!((across.len(), across[1]), (16, 3072));
        assert!(parts(Mat { at: 1, ..Mat::new(&head, width) }, false, 8, width, 8).is_none());
    }
}
