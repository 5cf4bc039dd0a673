// The MLP's activation functions and their slopes.
#ifdef SILU
// silu(x) = x * sigmoid(x).
fn activate(x: vec4<f32>) -> vec4<f32> { return x / (1.0 + exp(-x)); }
fn slope(x: vec4<f32>) -> vec4<f32> {
    let s = 1.0 / (1.0 + exp(-x));
    return s * (1.0 + x * (1.0 - s));
}
#else
// x * Phi(x), Phi the distribution function of the normal distribution (Hendrycks & Gimpel, "Gaussian Error
// Linear Units", 1606.08415).
#ifdef GELU_TANH
// Phi(x) by tanh: (1 + tanh(u)) / 2 = sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
fn activate(x: vec4<f32>) -> vec4<f32> {
    return x / (1.0 + exp(-1.5957691216 * x * (1.0 + 0.044715 * x * x)));
}
fn slope(x: vec4<f32>) -> vec4<f32> {
    let s = 1.0 / (1.0 + exp(-1.5957691216 * x * (1.0 + 0.044715 * x * x)));
    return s + x * s * (1.0 - s) * 1.5957691216 * (1.0 + 0.134145 * x * x);
}
#else
// Phi(x) = erfc(-x / sqrt(2)) / 2, by a Chebyshev fit of erfc with a relative error of at most 1.2e-7 (Press
// et al., Numerical Recipes, 6.2).
fn normal_cdf(x: vec4<f32>) -> vec4<f32> {
    let z = abs(x) * 0.7071067812;
    let t = 1.0 / (1.0 + 0.5 * z);
    var fit = t * 0.17087277 - 0.82215223;
    fit = t * fit + 1.48851587;
    fit = t * fit - 1.13520398;
    fit = t * fit + 0.27886807;
    fit = t * fit - 0.18628806;
    fit = t * fit + 0.09678418;
    fit = t * fit + 0.37409196;
    fit = t * fit + 1.00002368;
    let tail = 0.5 * t * exp(t * fit - 1.26551223 - z * z);
    return select(tail, 1.0 - tail, x > vec4<f32>());
}
fn activate(x: vec4<f32>) -> vec4<f32> { return x * normal_cdf(x); }
fn slope(x: vec4<f32>) -> vec4<f32> { return normal_cdf(x) + x * 0.3989422804 * exp(-0.5 * x * x); }
#endif
#endif
