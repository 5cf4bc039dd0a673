//! The processor, on which a software adapter runs.

/// Those instruction sets of this processor that decide how fast a software adapter is. Mesa's variable
/// `GALLIUM_OVERRIDE_CPU_CAPS=avx` keeps its software adapter from using AVX-512, to measure it as on a
/// processor without.
#[cfg(target_arch = "x86_64")]
pub fn instruction_sets() -> Vec<&'static str> {
    let masked = std::env::var("GALLIUM_OVERRIDE_CPU_CAPS").is_ok_and(|caps| caps == "avx");
    let all = [
        ("AVX", is_x86_feature_detected!("avx")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("AVX-512F", !masked && is_x86_feature_detected!("avx512f")),
        ("AVX-512BW", !masked && is_x86_feature_detected!("avx512bw")),
    ];
    all.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
}

/// Those of this processor that decide how fast a software adapter is.
#[cfg(target_arch = "aarch64")]
pub fn instruction_sets() -> Vec<&'static str> {
    let all = [
        ("NEON", std::arch::is_aarch64_feature_detected!("neon")),
        ("SVE", std::arch::is_aarch64_feature_detected!("sve")),
        ("SVE2", std::arch::is_aarch64_feature_detected!("sve2")),
    ];
    all.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
}

/// Those of this processor that decide how fast a software adapter is: none are known.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}
