// The end of a matrix product: + bias(N) with BIAS, + residual(M,N) with RESIDUAL, + y with accumulate. The
// shader that imports this defines Element, the type of y's elements: f32, or vec4<f32> for four neighbours.
@group(0) @binding(3) var<storage, read_write> y: array<Element>;   // (M, N)
#ifdef BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;          // (N)
#endif
#ifdef TEXELS
// Copies of the residual and of y before the product, from y's first element on.
#operand 6 earlier
#ifdef RESIDUAL
#operand 5 residual
#endif
#else
#ifdef RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<Element>;  // y's layout
#endif
#endif

// Four outputs of a row plus their columns' biases. Past the last column its bias is repeated.
fn add_bias(outputs: vec4<f32>, col: u32) -> vec4<f32> {
    var sums = outputs;
#ifdef BIAS
#each J 4
    sums[$J] += bias[min(col + $Ju, p.n - 1u)];
#end
#endif
    return sums;
}

// An output plus what is added to it; `at` counts elements of y.
fn finished(at: u32, output: Element) -> Element {
    var sum = output;
#ifdef TEXELS
    let copied = at - p.y_at / 4u;
#ifdef RESIDUAL
    sum += load_residual(copied);
#endif
    if p.accumulate == 1u { sum += load_earlier(copied); }
#else
#ifdef RESIDUAL
    sum += residual[at];
#endif
    if p.accumulate == 1u { sum += y[at]; }
#endif
    return sum;
}

// Writes an element of y.
fn write_element(at: u32, output: Element) { y[at] = finished(at, output); }
