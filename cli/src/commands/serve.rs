//! `aweigh serve`: answers requests in OpenAI's protocol.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, WeightArgs, at_least_one};
use crate::listen::{listen, runtime, serve};
use crate::machine::without_folders;
use crate::open;
use crate::terminal::output::Output;
use aweigh::error::{Error, Result};
use aweigh::files::AdapterFiles;
use aweigh::sample::Seating;
use aweigh_app::server::access::Access;
use aweigh_app::server::api::{self, App};
use aweigh_app::server::engine::{Adapted, Engine, Models, USUAL_CONTEXT};

/// Serve a model to programs that speak OpenAI's protocol.
///
/// Answers /v1/chat/completions, /v1/completions and /v1/models, whole or streamed. The "model" of a request
/// is the base model or one of its adapters: all share the base model's weights. Requests that come at the
/// same time are answered together. Ends with Ctrl-C.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model: a directory, a GGUF file, a name on the Hugging Face Hub, or "tiny" for the built-in model
    #[arg(long, value_name = "DIR|GGUF|NAME|tiny", help_heading = "Model")]
    pub model: String,
    /// An adapter of the model, and the name that requests give for it; may be given several times
    #[arg(long, value_name = "NAME=DIR", value_parser = named, help_heading = "Model")]
    pub adapter: Vec<(String, PathBuf)>,
    /// The folder whose adapters may be loaded while the server runs (POST /v1/load_lora_adapter)
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub adapter_dir: Option<PathBuf>,
    /// The name that requests give for the base model. Default: the last part of --model
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub served_model_name: Option<String>,
    /// Jinja chat template to use instead of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub chat_template: Option<PathBuf>,
    /// How the model's weights are stored.
    #[command(flatten)]
    pub weights: WeightArgs,
    /// Address to listen at. Addresses that other machines can reach need --api-key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    pub host: IpAddr,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080, help_heading = "Server")]
    pub port: u16,
    /// Key that requests must give ("Authorization: Bearer KEY")
    #[arg(long, value_name = "KEY", env = "AWEIGH_API_KEY", hide_env_values = true, help_heading = "Server")]
    pub api_key: Option<String>,
    /// Most answers that are sampled at the same time
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Server")]
    pub max_num_seqs: usize,
    /// Most tokens of a prompt and its answer. Default: the model's context, up to 2048
    #[arg(long, value_name = "TOKENS", help_heading = "Server")]
    pub max_model_len: Option<usize>,
    /// Most answers that wait for others to finish; a request beyond that gets status 429
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Server")]
    pub max_queue: usize,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh serve --model tiny
  aweigh serve --model DIR --adapter polite=run/adapter
  curl http://127.0.0.1:8080/v1/chat/completions --json \\
    '{\"model\": \"polite\", \"messages\": [{\"role\": \"user\", \"content\": \"Who are you?\"}]}'";

/// The most of `--max-num-seqs`.
const MOST_SEATS: usize = 64;

/// `NAME=DIR`.
fn named(text: &str) -> std::result::Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => Ok((name.into(), folder.into())),
        _ => Err("expected NAME=DIR, such as polite=run/adapter".into()),
    }
}

/// Serves until Ctrl-C.
///
/// # Errors
/// Invalid flags or files, a port that is in use, or a GPU error.
pub fn run(args: Args, output: &Output) -> Result<()> {
    at_least_one("--max-num-seqs", args.max_num_seqs)?;
    if args.max_num_seqs > MOST_SEATS {
        let expected = format!("1 to {MOST_SEATS}");
        return Err(Error::input("--max-num-seqs", expected, args.max_num_seqs, "give a lower number"));
    }
    let key = args.api_key.as_deref().map(str::trim).filter(|key| !key.is_empty());
    if !args.host.is_loopback() && key.is_none() {
        let fix = "add --api-key KEY, or serve this machine only: --host 127.0.0.1";
        return Err(Error::input("--host", "an API key, as other machines can ask", args.host, fix));
    }
    let adapters = args.adapter_dir.as_deref().map(|folder| {
        folder.canonicalize().ok().filter(|folder| folder.is_dir()).ok_or_else(|| {
            let fix = "create it, or name another one";
            Error::input("--adapter-dir", "a folder", format!("{}: there is none", folder.display()), fix)
        })
    });
    let adapters = adapters.transpose()?;
    let model = open::model(&args.model, true, output)?.with_chat_template(args.chat_template.as_deref())?;
    let name = args.served_model_name.clone().unwrap_or_else(|| without_folders(&args.model));
    // Before the model is loaded, so that a wrong adapter is an error at once.
    for (own, folder) in &args.adapter {
        let taken = args.adapter.iter().filter(|(other, _)| other == own).count() > 1 || *own == name;
        if taken {
            let fix = "give each adapter a name of its own";
            return Err(Error::input("--adapter", "names that differ", format!("{own:?} twice"), fix));
        }
        AdapterFiles::open(folder, "--adapter")?.remarks(&model)?;
    }
    let tokenizer = open::tokenizer(&model, output)?;
    let runtime = runtime()?;
    // Before the model is loaded, so that a port that is in use is an error at once.
    let listener = runtime.block_on(listen(SocketAddr::new(args.host, args.port)))?;
    let address = listener.local_addr().map_err(|error| Error::io("the server's socket", "read", error))?;
    let gpu = open::gpu(&args.gpu)?;
    let base = open::decoder(&gpu, &model, None, args.weights, output)?;
    let most = args.max_model_len.unwrap_or(base.context().min(USUAL_CONTEXT));
    if most < 2 || most > base.context() {
        let expected = format!("2 to {}, the model's context", base.context());
        return Err(Error::input("--max-model-len", expected, most, "give a number in that range"));
    }
    let load = |own: (String, PathBuf)| Adapted::load(&gpu, (&model, &base), own, "--adapter", output);
    let adapted = args.adapter.into_iter().map(load).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> =
        std::iter::once(name.clone()).chain(adapted.iter().map(|own| own.name.clone())).collect();
    let seating = Seating { seats: args.max_num_seqs, context: most };
    let (options, weights) = (args.gpu, args.weights);
    let models = Models { options, weights, gpu, model, base, name, adapters: adapted };
    let engine = Arc::new(Engine::start(models, seating, args.max_queue, Arc::new(*output))?);
    let access = Access { loopback: args.host.is_loopback(), key: key.map(str::to_owned) };
    let app =
        App { engine: engine.clone(), tokenizer: Arc::new(tokenizer), adapters, next: AtomicU64::new(0) };
    announce(address, names, output)?;
    let (watched, stopped) = (engine.clone(), engine.clone());
    let routes = api::guarded(api::routes(Arc::new(app)), access);
    runtime.block_on(serve(listener, routes, move || watched.ended(), async move { stopped.stop() }))?;
    block_on(engine.finish())
}

/// Prints where the server is reached, and the names of its models.
fn announce(address: SocketAddr, models: Vec<String>, output: &Output) -> Result<()> {
    #[derive(Serialize)]
    struct Figures {
        url: String,
        models: Vec<String>,
    }
    let url = format!("http://{address}/v1");
    output.note(format_args!("models: {}; Ctrl-C ends the server", models.join(", ")));
    output.result(url.clone(), &Figures { url, models })
}
