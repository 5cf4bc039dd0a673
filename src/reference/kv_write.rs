//! Writes new keys or values into their slots of the cache.

/// The cache (slots, width) with row `slot[t]` replaced by row t of x (T, width).
///
/// If a slot occurs more than once, it keeps the last row.
pub fn forward(cache: &[f64], x: &[f64], slot: &[u32], width: usize) -> Vec<f64> {
    let mut out = cache.to_vec();
    for (row, &slot) in x.chunks_exact(width).zip(slot) {
        out[slot as usize * width..][..width].copy_from_slice(row);
    }
    out
}

#[test]
fn by_hand() {
    let out = forward(&[0.0; 6], &[1.0, 2.0, 3.0, 4.0], &[2, 0], 2);
    assert_eq!(out, [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
}
