//! The program `aweigh`: one file per command under `commands/`, and what the commands share. Training,
//! sampling and scoring are in the library `aweigh`; the app, the server, comparisons, meters and reports are
//! in `aweigh-app`. Here are the terminal, signals and sockets.

pub mod commands;
pub mod listen;
mod machine;
pub mod open;
pub mod program;
pub mod terminal;
pub mod watch;

pub use aweigh_app::args;

use clap::{Parser, Subcommand};

use aweigh::error::Result;
use commands::{
    align, bench, completions, data, demo, devices, eval, export, generate, inspect, judge, mark, plan,
    report, sample, score, selftest, serve,
};
use terminal::{interrupt, output::Output};

/// Aligns small language models away from flagged answers, on any GPU.
///
/// Give it a model and examples of answers that you do not want. It samples the model's own answers as
/// anchors, trains with D²O (or one of twelve other methods), stops when held-out examples show that the
/// model gets worse, and writes an adapter that PEFT loads.
#[derive(Debug, Parser)]
#[command(name = "aweigh", version = env!("AWEIGH_VERSION"), max_term_width = 110)]
#[command(arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
    /// Print the command's figures, or its error, as one JSON object on stdout; everything else goes to
    /// stderr
    #[arg(long, global = true, help_heading = "Global")]
    pub json: bool,
    /// No progress and no notes on stderr; warnings and errors stay
    #[arg(long, short, global = true, help_heading = "Global")]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  aweigh demo                            align the built-in model and see what changed, in minutes
  aweigh app                             chat, flag answers, align and compare on a page in the browser
  aweigh devices                         the GPUs that can be used
  aweigh align --model DIR --train flagged.jsonl --output-dir run
  aweigh plan --model DIR --train flagged.jsonl      how much memory that takes
  aweigh generate --model DIR --adapter run/adapter
  aweigh serve --model DIR --adapter polite=run/adapter        for programs

RUST_LOG=info shows the engine's own log.
Exit codes: 0 success, 1 GPU failure or bug in Aweigh, 2 invalid input or set-up, 130 interrupted.";

/// The commands. The help text of each is the doc comment of its `Args`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Command {
    Devices(devices::Args),
    Align(Box<align::Args>),
    Plan(Box<plan::Args>),
    Sample(sample::Args),
    Mark(mark::Args),
    Generate(generate::Args),
    Serve(Box<serve::Args>),
    App(Box<commands::app::Args>),
    Score(score::Args),
    Eval(Box<eval::Args>),
    Report(report::Args),
    Export(export::Args),
    Data(data::Args),
    Inspect(inspect::Args),
    Judge(judge::Args),
    Selftest(selftest::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(completions::ManArgs),
}

/// Runs one parsed command line.
///
/// # Errors
/// The command's error; [`aweigh::error::Error::exit_code`] is the process's exit code.
pub fn run(cli: Cli) -> Result<()> {
    aweigh::error::name_settings_as_flags();
    let output = Output::new(cli.json, cli.quiet);
    interrupt::install();
    match cli.command {
        Command::Devices(args) => devices::run(args, &output),
        Command::Align(args) => align::run(*args, &output),
        Command::Plan(args) => plan::run(*args, &output),
        Command::Sample(args) => sample::run(args, &output),
        Command::Mark(args) => mark::run(args, &output),
        Command::Generate(args) => generate::run(args, &output),
        Command::Serve(args) => serve::run(*args, &output),
        Command::App(args) => commands::app::run(*args, &output),
        Command::Score(args) => score::run(args, &output),
        Command::Eval(args) => eval::run(*args, &output),
        Command::Report(args) => report::run(args, &output),
        Command::Export(args) => export::run(args, &output),
        Command::Data(args) => data::run(args, &output),
        Command::Inspect(args) => inspect::run(args, &output),
        Command::Judge(args) => judge::run(args, &output),
        Command::Selftest(args) => selftest::run(args, &output),
        Command::Demo(args) => demo::run(args, &output),
        Command::Bench(args) => bench::run(args, &output),
        Command::Completions(args) => completions::run(args, &output),
        Command::Man(args) => completions::man(args, &output),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_every_argument_is_explained() {
        let command = super::Cli::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
            for argument in sub.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", sub.get_name(), argument.get_id());
            }
        }
    }
}
