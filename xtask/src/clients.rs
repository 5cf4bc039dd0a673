//! Other projects' own programs, from PyPI and npm: OpenAI's clients against `aweigh serve`, and Hugging
//! Face's datasets against what Aweigh reads.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::python::{environment, program};
use crate::tools::{cargo, done, npm};

/// A server that ends with this program.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Trains an adapter of the built-in model, serves both, and runs the clients in tests/clients.
pub fn clients() -> Result<(), String> {
    let tools = Path::new("target/tools/clients");
    done(Command::new(environment(tools)?).args(["install", "--quiet", "openai==3.57.0"]))?;
    let package = npm("openai@6.49.0", "openai")?;
    done(cargo().args(["build", "--package", "aweigh-cli"]))?;
    let aweigh = format!("target/debug/aweigh{}", std::env::consts::EXE_SUFFIX);
    let folder = Path::new("target/tools/served");
    let _ = fs::remove_dir_all(folder);
    let mut train = Command::new(&aweigh);
    train.args(["align", "--quiet", "--model", "tiny", "--train", "assets/tiny/negatives.jsonl.gz"]);
    train.args(["--max-samples", "20", "--num-samples", "2", "--max-new-tokens", "8", "--max-steps", "3"]);
    train.args(["--learning-rate", "0.02", "--no-stop", "--output-dir"]).arg(folder);
    done(train.stdout(Stdio::null()))?;
    let adapter = format!("changed={}", folder.join("adapter").display());
    let mut serve = Command::new(&aweigh);
    serve.args(["serve", "--quiet", "--model", "tiny", "--port", "0", "--adapter", &adapter]);
    let child = serve.stdout(Stdio::piped()).spawn().map_err(|error| format!("{aweigh}: {error}"))?;
    let mut server = Server(child);
    let mut url = String::new();
    let stdout = server.0.stdout.take().ok_or("no stdout")?;
    BufReader::new(stdout).read_line(&mut url).map_err(|error| error.to_string())?;
    let url = url.trim();
    done(Command::new(program(tools, "python")).args(["tests/clients/openai_client.py", url]))?;
    done(Command::new("node").args(["tests/clients/openai_client.mjs", url]).arg(package))
}

/// Compares how data is read with what Hugging Face's datasets reads. With `write`, also writes the file that
/// tests/hostile.rs reads.
pub fn datasets(write: bool) -> Result<(), String> {
    let tools = Path::new("target/tools/datasets");
    done(Command::new(environment(tools)?).args(["install", "--quiet", "datasets==5.2.0"]))?;
    done(cargo().args(["build", "--package", "aweigh-cli"]))?;
    let aweigh = format!("target/debug/aweigh{}", std::env::consts::EXE_SUFFIX);
    let mut check = Command::new(program(tools, "python"));
    check.args(["tests/python/check_datasets.py", &aweigh, "target/tools/data"]);
    if write {
        check.arg("tests/golden/data");
    }
    // Its own files are all that it reads.
    done(check.env("HF_HUB_OFFLINE", "1"))
}
