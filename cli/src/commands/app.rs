//! `aweigh app`: a page to chat, flag, align and compare on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, WeightArgs};
use crate::listen::{listen, runtime, serve};
use crate::terminal::output::Output;
use aweigh::error::{Error, Result};
use aweigh_app::app::workspace::Workspace;
use aweigh_app::app::{App, Settings, routes};

/// Open a page to chat with a model, flag answers, align it and compare.
///
/// The page is served to this machine alone and opens in the browser; it loads nothing from the network.
/// Conversations, flags, runs and what is made from them are kept in a folder. Programs can use the model
/// meanwhile, through OpenAI's protocol at the same address. Ends with Ctrl-C; a run saves its state first
/// and can be resumed.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model to open: a directory, a GGUF file, a name on the Hugging Face Hub, or "tiny" for the
    /// built-in model. Without it, the page offers a choice
    #[arg(long, value_name = "DIR|GGUF|NAME|tiny", help_heading = "Model")]
    pub model: Option<String>,
    /// How the model's weights are stored while it chats.
    #[command(flatten)]
    pub weights: WeightArgs,
    /// Folder for conversations, flags and runs. Default: aweigh in the user's data directory
    #[arg(long, value_name = "DIR", help_heading = "Server")]
    pub dir: Option<PathBuf>,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8090, help_heading = "Server")]
    pub port: u16,
    /// Do not open the browser
    #[arg(long, help_heading = "Server")]
    pub no_open: bool,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh app
  aweigh app --model HuggingFaceTB/SmolLM2-135M-Instruct
  aweigh app --dir ./work --port 0 --no-open";

/// Serves the page until Ctrl-C.
///
/// # Errors
/// A folder or a port that is in use.
pub fn run(args: Args, output: &Output) -> Result<()> {
    let folder = match args.dir {
        Some(folder) => folder,
        None => dirs::data_dir().map(|data| data.join("aweigh")).ok_or_else(|| {
            Error::input("--dir", "a folder", "no data directory on this system", "give one")
        })?,
    };
    let runtime = runtime()?;
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), args.port);
    let listener = runtime.block_on(listen(address))?;
    let workspace = Workspace::open(&folder)?;
    let address = listener.local_addr().map_err(|error| Error::io("the server's socket", "read", error))?;
    let settings = Settings { gpu: args.gpu, weights: args.weights, messages: Arc::new(*output) };
    let app = App::new(settings, workspace);
    if let Some(model) = &args.model {
        app.open(model)?;
    }
    let url = format!("http://{address}/");
    announce(&url, &folder.display().to_string(), output)?;
    if !args.no_open
        && let Err(error) = opener::open_browser(&url)
    {
        output.note(format_args!("no browser was opened ({error}): go to {url}"));
    }
    let ended = app.clone();
    let stop = async move { ended.end().await };
    runtime.block_on(serve(listener, routes::routes(app.clone()), || false, stop))?;
    block_on(app.end());
    Ok(())
}

/// Prints where the page is.
fn announce(url: &str, folder: &str, output: &Output) -> Result<()> {
    #[derive(Serialize)]
    struct Figures<'a> {
        url: &'a str,
        folder: &'a str,
    }
    output.note(format_args!("files are kept in {folder}; Ctrl-C ends the app"));
    output.result(url, &Figures { url, folder })
}
