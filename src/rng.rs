//! The counter-based random number generator that shaders and the host share: equal inputs give equal bits on
//! every device.

/// pcg4d of Jarzynski & Olano, "Hash Functions for GPU Rendering" (JCGT 2020): four words in, four well-mixed
/// words out, with wrapping u32 arithmetic only.
pub fn pcg4d(v: [u32; 4]) -> [u32; 4] {
    let [mut x, mut y, mut z, mut w] = v.map(|e| e.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    for round in 0..2 {
        if round == 1 {
            [x, y, z, w] = [x, y, z, w].map(|e| e ^ (e >> 16));
        }
        x = x.wrapping_add(y.wrapping_mul(w));
        y = y.wrapping_add(z.wrapping_mul(x));
        z = z.wrapping_add(x.wrapping_mul(y));
        w = w.wrapping_add(y.wrapping_mul(z));
    }
    [x, y, z, w]
}

/// The top 24 bits as a number in [0, 1): exact in f32, so that comparisons have the same result on host and
/// device.
pub fn uniform(u: u32) -> f32 {
    (u >> 8) as f32 / 16_777_216.0
}

/// `n` test values in [-1, 1) that depend only on `seed`; each is exact in f32.
pub fn values(seed: u32, n: usize) -> Vec<f64> {
    (0..n).map(|i| 2.0 * f64::from(uniform(pcg4d([i as u32, seed, 0, 0])[0])) - 1.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pcg4d_gives_the_published_steps() {
        // Computed outside of Rust, with big integers modulo 2^32.
        assert_eq!(pcg4d([0, 0, 0, 0]), PCG_ZERO);
        assert_eq!(pcg4d([1, 2, 3, 4]), PCG_1234);
        assert_eq!(pcg4d([u32::MAX, 7, 0x8000_0000, 123_456_789]), PCG_MIXED);
    }

    const PCG_ZERO: [u32; 4] = [0x0f02_f829, 0x2d56_8769, 0x32b0_c43b, 0xd325_48ea];
    const PCG_1234: [u32; 4] = [0x3622_cd16, 0xf114_71d8, 0xe110_9b3f, 0x02b9_4c2f];
    const PCG_MIXED: [u32; 4] = [0x6a8d_a6fe, 0xcc9f_4fcf, 0x986d_2359, 0x5502_8bb2];

    #[test]
    fn uniform_stays_below_one_and_is_even() {
        assert_eq!(uniform(0), 0.0);
        assert_eq!(uniform(u32::MAX), 1.0 - f32::EPSILON / 2.0);
        let sample = values(3, 20_000);
        let mean = sample.iter().sum::<f64>() / 20_000.0;
        let square = sample.iter().map(|v| v * v).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.02 && (square - 1.0 / 3.0).abs() < 0.01, "mean {mean}, square {square}");
        assert!(sample.iter().all(|&v| f64::from(v as f32) == v));
    }
}
