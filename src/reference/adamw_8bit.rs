//! The 8-bit moments of AdamW, stored in blocks (Dettmers et al., 2110.02861), decoded to f64. The step
//! itself is [`super::adamw`].

/// Number of elements that share a scale.
const BLOCK: usize = 256;

/// The first and second moments of `count` parameters, decoded from a kernel's words and its table.
pub fn moments(words: &[u32], table: &[f32], count: usize) -> [Vec<f64>; 2] {
    let vectors = count.div_ceil(4);
    [0, 1].map(|which| {
        let value = |i: usize| {
            let code = words[which * vectors + i / 4] >> (8 * (i % 4)) & 255;
            let scale = f32::from_bits(words[2 * (vectors + i / BLOCK) + which]);
            f64::from(table[256 * which + code as usize]) * f64::from(scale)
        };
        (0..count).map(value).collect()
    })
}

/// The rounding error of each value when it is stored in 8 bits: its distance to the nearest table entry
/// times the block's scale. The scale is the largest absolute value in the block.
pub fn rounding(values: &[f64], table: &[f32]) -> Vec<f64> {
    let slack = |block: &[f64]| -> Vec<f64> {
        let scale = block.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        let one = |value: &f64| {
            let nearest = |number: &f32| (f64::from(*number) * scale - value).abs();
            table.iter().map(nearest).fold(f64::INFINITY, f64::min)
        };
        block.iter().map(one).collect()
    };
    values.chunks(BLOCK).flat_map(slack).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_lie_four_to_a_word() {
        let table: Vec<f32> = (0..512).map(|i| i as f32).collect();
        let words = [0x0403_0201, 5, 0x0807_0605, 9, 2.0f32.to_bits(), 0.5f32.to_bits()];
        let [first, second] = moments(&words, &table, 5);
        assert_eq!(first, [2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(second, [130.5, 131.0, 131.5, 132.0, 132.5]);
    }

    #[test]
    fn a_number_of_the_table_is_not_rounded() {
        assert_eq!(rounding(&[2.0, -1.0, 0.75], &[-0.5, 0.0, 0.25, 1.0]), [0.0, 0.0, 0.25]);
    }
}
