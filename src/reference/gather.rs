//! Rows selected by index: the embedding, and the rows that go to the output head.

/// out (index.len(), width): row r is table row `index[r]`.
pub fn forward(table: &[f64], index: &[u32], width: usize) -> Vec<f64> {
    index.iter().flat_map(|&i| &table[i as usize * width..][..width]).copied().collect()
}

/// The earlier `dtable` plus dout (index.len(), width), each row added to the table row it came from.
///
/// An index may occur any number of times; rows are added in the order of `index`.
pub fn backward(dout: &[f64], index: &[u32], width: usize, dtable: &[f64]) -> Vec<f64> {
    let mut sum = dtable.to_vec();
    for (row, &i) in dout.chunks_exact(width).zip(index) {
        for (c, d) in row.iter().enumerate() {
            sum[i as usize * width + c] += d;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::super::finite;
    use super::*;
    use crate::rng::values;

    #[test]
    fn gradients() {
        let (table, index, c, before) = (values(1, 12), [2, 0, 2, 2], values(2, 12), values(3, 12));
        assert_eq!(forward(&table, &index, 3)[..3], table[6..9]);
        let dtable = backward(&c, &index, 3, &before);
        finite::check("dtable", &table, &dtable, |t| {
            finite::dot(&c, &forward(t, &index, 3)) + finite::dot(&before, t)
        });
    }
}
