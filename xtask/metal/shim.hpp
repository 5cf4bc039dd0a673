// The part of Apple's metal_stdlib that the kernels' translations use, declared for clang's syntax check on a
// system without Apple's compiler: names, numbers of arguments, types and address spaces. `cargo xtask metal`
// includes it; nothing is ever run. Vectors are clang's, which have no constructors: `cargo xtask metal`
// writes `metal::make<metal::float4>(...)` for `metal::float4(...)`. After Apple's "Metal Shading Language
// Specification".
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long ulong;
typedef _Float16 half;

#define kernel
#define thread
#define device __attribute__((address_space(1)))
// C++ copies no struct out of an address space.
#define constant const
#define threadgroup __attribute__((address_space(2)))

template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));
typedef vec<float, 2> float2;
typedef vec<float, 3> float3;
typedef vec<float, 4> float4;
typedef vec<half, 2> half2;
typedef vec<half, 3> half3;
typedef vec<half, 4> half4;
typedef vec<int, 2> int2;
typedef vec<int, 3> int3;
typedef vec<int, 4> int4;
typedef vec<uint, 2> uint2;
typedef vec<uint, 3> uint3;
typedef vec<uint, 4> uint4;
// Comparisons of clang's vectors give integers of the operands' width.
typedef vec<int, 2> bool2;
typedef vec<int, 3> bool3;
typedef vec<int, 4> bool4;

namespace metal {

using ::uint;
#define VECTORS(T) using ::T##2; using ::T##3; using ::T##4;
VECTORS(float) VECTORS(half) VECTORS(int) VECTORS(uint) VECTORS(bool)
#undef VECTORS

template <class T> struct Shape {
    typedef T Component;
    static constexpr int COUNT = 1;
};
template <class T, int N> struct Shape<vec<T, N>> {
    typedef T Component;
    static constexpr int COUNT = N;
};

// A constructor of the vector type V: one scalar for all components, another vector of the same size, or as
// many components as V has.
template <class V, class... Parts> V make(Parts...) {
    constexpr int given = (Shape<Parts>::COUNT + ...);
    static_assert(given == Shape<V>::COUNT || given == 1 && sizeof...(Parts) == 1, "number of components");
    return V{};
}

struct float4x4 {
    float4 columns[4];
    float4x4() = default;
    float4x4(float4, float4, float4, float4);
    float4 &operator[](int column) { return columns[column]; }
    const float4 &operator[](int column) const { return columns[column]; }
};
float4 operator*(float4x4, float4);
float4 operator*(float4, float4x4);
float4x4 transpose(float4x4);

// Functions of one, two or three floating-point numbers or vectors.
#define ONE(name) \
    template <class T> T name(T a) { \
        static_assert(__is_floating_point(typename Shape<T>::Component), "a floating-point type"); \
        return a; \
    }
ONE(exp) ONE(log) ONE(sqrt) ONE(cos) ONE(sin) ONE(tanh) ONE(floor) ONE(rint)
#undef ONE
template <class T> T abs(T);
template <class T> T min(T, T);
template <class T> T max(T, T);
template <class T> T clamp(T, T, T);
template <class T> T pow(T, T);
template <class T> T fma(T, T, T) {
    static_assert(__is_floating_point(typename Shape<T>::Component), "a floating-point type");
    return T{};
}
template <class T, class Choice> T select(T, T, Choice) {
    static_assert(Shape<T>::COUNT == Shape<Choice>::COUNT || Shape<Choice>::COUNT == 1, "a choice");
    return T{};
}
template <int N> bool all(vec<int, N>);
template <int N> bool any(vec<int, N>);
bool all(bool);
bool any(bool);

enum class mem_flags { mem_none, mem_device, mem_threadgroup, mem_texture };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

template <class T> T simd_broadcast(T, ushort);
template <class T> T simd_sum(T);
template <class T> T simd_min(T);
template <class T> T simd_max(T);
bool simd_all(bool);
bool simd_any(bool);

enum class access { sample, read, write, read_write };
template <class T, access A> struct texture2d {
    static_assert(A == access::sample || A == access::read, "a texture that is read");
    vec<T, 4> read(uint2 texel, uint level = 0) const;
};

// Matrices of 8 x 8, shared by a SIMD group. Metal has no others.
template <class T> struct Matrix8 {
    Matrix8() = default;
    explicit Matrix8(T);
};
typedef Matrix8<float> simdgroup_float8x8;
typedef Matrix8<half> simdgroup_half8x8;
template <class T>
void simdgroup_load(Matrix8<T> &, const device T *, ulong stride, int origin, bool transpose);
template <class T>
void simdgroup_load(Matrix8<T> &, const threadgroup T *, ulong stride, int origin, bool transpose);
template <class T> void simdgroup_store(Matrix8<T>, device T *, ulong stride);
template <class T> void simdgroup_store(Matrix8<T>, threadgroup T *, ulong stride);
template <class T, class F>
void simdgroup_multiply_accumulate(Matrix8<T> &, Matrix8<F>, Matrix8<F>, Matrix8<T>);

} // namespace metal

template <class To, class From> To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "types of one size");
    return __builtin_bit_cast(To, from);
}
