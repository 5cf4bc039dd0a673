//! Shared by the peers' programs: flags, the common inputs, timing, and the JSON object that each prints.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use serde_json::Value;

/// A result whose error is a message for the user.
pub type Result<T> = std::result::Result<T, String>;

/// Puts `what` before an error's text.
pub fn context<T, E: Display>(result: std::result::Result<T, E>, what: impl Display) -> Result<T> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// The flags of a command line, each with one value: `--tokens 128`.
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Reads the process's arguments; only the flags in `known` are allowed.
    ///
    /// # Errors
    /// Names the first unknown argument, and the known flags.
    pub fn parse(known: &[&str]) -> Result<Self> {
        let mut flags = BTreeMap::new();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").filter(|name| known.contains(name));
            let Some(name) = name else {
                return Err(format!("{argument}: expected one of --{}", known.join(", --")));
            };
            let value = arguments.next().ok_or_else(|| format!("{argument}: expected a value"))?;
            flags.insert(name.to_owned(), value);
        }
        Ok(Self(flags))
    }

    /// A flag's text.
    ///
    /// # Errors
    /// If the flag is missing.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.0.get(name).map(String::as_str).ok_or_else(|| format!("--{name} is missing"))
    }

    /// A flag's number, or `default` if the flag is missing.
    ///
    /// # Errors
    /// If the text is not a number of this type.
    pub fn number<T: FromStr<Err: Display>>(&self, name: &str, default: T) -> Result<T> {
        self.0.get(name).map_or(Ok(default), |text| context(text.parse(), format_args!("--{name} {text}")))
    }
}

/// The common sequence: id i is (7919 i + 13) mod the vocabulary's size.
#[must_use]
pub fn token_ids(tokens: usize, vocabulary: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((7919 * i + 13) % vocabulary) as u32).collect()
}

/// The common matrix, row by row: a multiplicative hash of the index, spread over [-1, 1).
#[must_use]
pub fn matrix(elements: usize, seed: u32) -> Vec<f32> {
    (0..elements as u32)
        .map(|i| {
            let hash = i.wrapping_add(seed).wrapping_mul(2_654_435_761);
            ((hash ^ (hash >> 15)).wrapping_mul(2_246_822_519) >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// Largest difference between `c` and a b (all n by n), computed in f64, on about 64 elements spread over `c`.
#[must_use]
pub fn matmul_error(a: &[f32], b: &[f32], c: &[f32], n: usize) -> f64 {
    let step = (n * n / 64 + 1) | 1;
    let difference = |at: usize| {
        let (row, column) = (at / n, at % n);
        let sum: f64 = (0..n).map(|k| f64::from(a[row * n + k]) * f64::from(b[k * n + column])).sum();
        (sum - f64::from(c[at])).abs()
    };
    (0..n * n).step_by(step).map(difference).fold(0.0, f64::max)
}

/// Measured times, in seconds.
pub struct Times {
    /// The first run, which compiles shaders and tunes kernels.
    pub first: f64,
    /// The timed runs, after the warm-up.
    pub seconds: Vec<f64>,
}

/// Runs `work` `warmup` times (at least once), and then times `runs` runs.
///
/// # Errors
/// The first error of `work`.
pub fn clock(warmup: usize, runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<Times> {
    let mut timed = || {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let first = timed()?;
    for _ in 1..warmup {
        timed()?;
    }
    Ok(Times { first, seconds: (0..runs).map(|_| timed()).collect::<Result<_>>()? })
}

/// The version of a dependency that this program was built with.
#[must_use]
pub fn version(dependency: &str) -> &'static str {
    let name = format!("name = \"{dependency}\"");
    let mut lines = include_str!("../Cargo.lock").lines();
    let found = lines.find(|line| *line == name).and_then(|_| lines.next());
    found.and_then(|line| line.split('"').nth(1)).unwrap_or("unknown")
}

/// Prints the JSON object on stdout, or the error on stderr.
#[must_use]
pub fn finish(result: Result<Value>) -> ExitCode {
    match result {
        Ok(object) => {
            println!("{object}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
