//! Damaged and hostile files: however a good file is damaged, every parser returns an error or a result,
//! never panics, and takes little time and memory. libFuzzer uses the same targets in fuzz/.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Read;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use aweigh::rng::pcg4d;
use flate2::read::GzDecoder;

/// The number of damaged files made from each good one.
const ROUNDS: u32 = 4000;
/// The most bytes of one allocation. The largest good file here has 2 MB.
const MOST_AT_ONCE: usize = 256 << 20;
/// The longest time for one file. Endless templates run out of fuel within it, also in a debug build.
const LONGEST: Duration = Duration::from_secs(20);

/// The system's allocator, with a record of each thread's largest request.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // While a thread ends, its record may be destroyed already.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: passes every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn file(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Good files to damage.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let text = |text: &str| text.as_bytes().to_vec();
    match target {
        "safetensors" => vec![file("tests/golden/tiny_tied/adapter/adapter_model.safetensors")],
        "gguf" => vec![file("tests/golden/gguf/small.gguf")],
        "tokenizer" => vec![file("assets/tiny/tokenizer.json")],
        "template" => {
            let config: serde_json::Value =
                serde_json::from_slice(&file("assets/tiny/tokenizer_config.json")).unwrap();
            vec![
                text(config["chat_template"].as_str().unwrap()),
                text(
                    "{% for m in messages %}{{ m.role | upper }}{% for i in range(9) %}{{ i * 3 }}{% endfor \
                     %}{% endfor %}",
                ),
                text(
                    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(9) \
                     }}{{ 'ab' * 9 }}",
                ),
            ]
        }
        "config" => ["llama3", "gemma3", "gpt2", "phi3", "gpt_neox"]
            .map(|family| file(&format!("tests/golden/families/{family}/config.json")))
            .into_iter()
            .chain([file("tests/golden/tiny_tied/adapter/adapter_config.json")])
            .collect(),
        "settings" => vec![text(
            "[model]\nmodel = \"tiny\"\n[data]\ntrain = \"a.jsonl\"\n[method]\nbeta = 0.1\nnum_samples = \
             11\n[reference]\n\
             positive = { ema = 0.9 }\n[lora]\ntarget_modules = [\"q_proj\"]\n[output]\noutput_dir = \
             \"o\"\n[gpu]\nmemory = \"4GB\"\n",
        )],
        _ => {
            let packed = file("assets/tiny/negatives.jsonl.gz");
            let mut lines = String::new();
            GzDecoder::new(packed.as_slice()).read_to_string(&mut lines).unwrap();
            let some: Vec<&str> = lines.lines().take(4).collect();
            vec![text(&some.join("\n")), packed, file("tests/golden/data/pairs.parquet")]
        }
    }
}

/// Numbers that break sizes, brackets that nest, and bytes of extreme values.
const PIECES: [&[u8]; 14] = [
    b"0",
    b"-1",
    b"4294967295",
    b"4294967296",
    b"18446744073709551615",
    b"1e308",
    b"null",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b"\"\"",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0\0\0\0\0",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"{% for i in range(999999999) %}",
];

/// `seed` with a few random changes, which depend on `target` and `round`.
fn damaged(seed: &[u8], target: u32, round: u32) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    let mut draws = (0..).map(|i| pcg4d([round, i, target, 0xfa22])[0] as usize);
    let mut draw = move |below: usize| draws.next().unwrap_or(0) % below.max(1);
    for _ in 0..1 + draw(4) {
        let at = draw(bytes.len());
        let end = (at + 1 + draw(24)).min(bytes.len());
        match draw(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                let to = draw(bytes.len());
                bytes.splice(to..to, piece);
            }
            3 | 4 => {
                // A whole number is replaced by another piece.
                let digits = |byte: &u8| byte.is_ascii_digit();
                let first = bytes[at..].iter().position(digits).map_or(at, |i| at + i);
                let last =
                    bytes[first..].iter().position(|byte| !digits(byte)).map_or(bytes.len(), |i| first + i);
                bytes.splice(first..last, PIECES[draw(7)].iter().copied());
            }
            5 => drop(bytes.splice(at..end, PIECES[draw(PIECES.len())].iter().copied())),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = [0, 255, b'"', b'{', draw(256) as u8][draw(5)];
                }
            }
        }
    }
    bytes
}

fn survive(target: &str) {
    let rounds = std::env::var("AWEIGH_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let index = targets::TARGETS.iter().position(|(name, _)| *name == target).expect("a target");
    let run = targets::TARGETS[index].1;
    for (i, seed) in seeds(target).iter().enumerate() {
        run(seed);
        for round in 0..rounds {
            let bytes = damaged(seed, (index * 100 + i) as u32, round);
            LARGEST.set(0);
            let started = Instant::now();
            let place = format!("{target}: seed {i}, round {round}");
            assert!(catch_unwind(|| run(&bytes)).is_ok(), "{place}: {:?}", String::from_utf8_lossy(&bytes));
            assert!(started.elapsed() < LONGEST, "{place}: {:?}", started.elapsed());
            let largest = LARGEST.get();
            assert!(largest < MOST_AT_ONCE, "{place}: {largest} bytes at once");
        }
    }
}

/// The memory bound can be exceeded: a large request is recorded.
#[test]
fn a_large_request_is_seen() {
    LARGEST.set(0);
    drop(std::hint::black_box(Vec::<u8>::with_capacity(MOST_AT_ONCE)));
    assert!(LARGEST.get() >= MOST_AT_ONCE);
}

macro_rules! targets {
    ($($name:ident),*) => { $(#[test] fn $name() { survive(stringify!($name)); })* };
}

targets!(safetensors, gguf, tokenizer, template, config, settings, jsonl);
