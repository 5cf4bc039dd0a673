//! The arithmetic of the kernel that measures an adapter's peak arithmetic rate.

/// The sum of sixteen chains. They start at 0 to 15, and each computes value = value·a + b sixteen times per
/// round.
pub fn forward(rounds: u32, a: f64, b: f64) -> f64 {
    let chain = |start: u32| (0..16 * rounds).fold(f64::from(start), |value, _| value * a + b);
    (0..16).map(chain).sum()
}

#[test]
fn by_hand() {
    assert_eq!(forward(0, 0.5, 1.0), 120.0);
    // After sixteen times, a chain that started at v is v / 65,536 + 1 + 1/2 + .. + 1/32,768.
    assert_eq!(forward(1, 0.5, 1.0), 120.0 / 65_536.0 + 16.0 * (2.0 - 1.0 / 32_768.0));
}
