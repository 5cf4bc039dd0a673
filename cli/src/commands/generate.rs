//! `aweigh generate`: answers one prompt, each line of stdin, or a chat.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use pollster::block_on;
use serde::Serialize;

use crate::args::{GpuArgs, ModelArgs, SamplingArgs, WeightArgs};
use crate::open::{self, Ran};
use crate::terminal::interrupt;
use crate::terminal::output::Output;
use aweigh::data::{ChatTokenizer, Message, Prompt};
use aweigh::error::{Error, Result};
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::sample::sampling_params;
use aweigh::sample::{self, Request, SamplingParams};
use aweigh_app::said::Said;

/// Answer one prompt, or chat.
///
/// With --prompt, answers that prompt. Without it, chats if stdin is a terminal, and otherwise answers each
/// line of stdin independently.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model and its adapter.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How the model's weights are stored.
    #[command(flatten)]
    pub weights: WeightArgs,
    /// The prompt to answer
    #[arg(long, short, value_name = "TEXT", help_heading = "Prompt")]
    pub prompt: Option<String>,
    /// Chat: each line is a message in one conversation. The default if stdin is a terminal. "/reset" clears
    /// the conversation, "/quit" or the end of the input exits
    #[arg(long, conflicts_with = "prompt", help_heading = "Prompt")]
    pub chat: bool,
    /// System message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", help_heading = "Prompt")]
    pub system: Option<String>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long, conflicts_with = "chat", help_heading = "Prompt")]
    pub raw: bool,
    /// How tokens are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// The GPU.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

const EXAMPLES: &str = "\
Examples:
  aweigh generate --model tiny
  aweigh generate --model DIR --adapter run/adapter --temperature 0 --prompt \"Who are you?\"
  aweigh generate --model DIR --raw --prompt \"Once upon a time\" --max-new-tokens 64
  aweigh generate --model DIR --json < questions.txt";

/// The model's answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The text, without the end-of-turn token.
    pub completion: String,
    /// Tokens sampled, the end-of-turn token included.
    pub num_tokens: usize,
    /// Whether it ended with an end token, and was not cut at `--max-new-tokens` or the end of the context.
    pub ended: bool,
    /// Sampled tokens per second; the time includes the prompt's forward pass.
    pub tokens_per_second: f64,
}

/// Answers one prompt. The second argument is called with each new piece of text; the result has the whole
/// text.
pub type Answerer<'a> = dyn FnMut(&Prompt, &mut dyn FnMut(&str) -> Result<()>) -> Result<Answer> + 'a;

/// Generates answers.
///
/// # Errors
/// Invalid flags or files, or a GPU error.
pub fn run(args: Args, output: &Output) -> Result<()> {
    args.sampling.check()?;
    let (model, adapter) = open::files(&args.model, output)?;
    let tokenizer = open::tokenizer(&model, output)?;
    if !args.raw && !tokenizer.has_template() {
        let fix = "add --raw to continue the prompt as plain text, or give a template: --chat-template FILE";
        return Err(Error::input("--model", "a model with a chat template", "none in its files", fix));
    }
    let gpu = open::gpu(&args.gpu)?;
    let decoder = open::decoder(&gpu, &model, adapter.as_ref(), args.weights, output)?;
    let settings = sampling_params(&args.sampling.to_config(), args.sampling.seed, tokenizer.end_tokens());
    let system = args.system.as_deref();
    open::note_of_system(&tokenizer, system.unwrap_or_default(), output);
    let (gpu, decoder, tokenizer) = (&*gpu, &decoder, &tokenizer);
    let mut speaker = Speaker { gpu, decoder, tokenizer, system, settings, asked: 0 };
    let answers = converse(&args, output, &mut |prompt, piece| speaker.answer(prompt, piece))?;
    finish(&args, output, Ran::new(gpu, &args.model), &answers)
}

/// Answers questions one after the other.
struct Speaker<'a> {
    gpu: &'a Gpu,
    decoder: &'a Decoder,
    tokenizer: &'a ChatTokenizer,
    system: Option<&'a str>,
    settings: SamplingParams,
    /// Number of questions so far: part of the random counter, so that a repeated question gets a new answer.
    asked: u32,
}

impl Speaker<'_> {
    fn answer(&mut self, prompt: &Prompt, piece: &mut dyn FnMut(&str) -> Result<()>) -> Result<Answer> {
        let start = Instant::now();
        let ids = self.tokenizer.encode_prompt(prompt, self.system)?;
        let room = self.decoder.context().saturating_sub(ids.len());
        if room == 0 || ids.is_empty() {
            let expected =
                format!("1 to {} tokens, the model's context minus one", self.decoder.context() - 1);
            let fix = "shorten it; in a chat, /reset clears the conversation";
            return Err(Error::input("the prompt", expected, format!("{} tokens", ids.len()), fix));
        }
        let max_new_tokens = self.settings.max_new_tokens.min(room as u32);
        let settings = SamplingParams { max_new_tokens, ..self.settings.clone() };
        let request = Request { prompt: &ids, first_sample: 0, samples: 1, index: self.asked };
        self.asked += 1;
        let mut said = Said::default();
        let mut each = |drawn: &[u32]| {
            interrupt::check()?;
            match said.more(&self.tokenizer.decode_answer(&ids, drawn)?) {
                "" => Ok(()),
                text => piece(text),
            }
        };
        let pass = self.decoder.policy();
        let drawn = block_on(sample::stream(self.gpu, self.decoder, pass, &request, &settings, &mut each))?;
        let completion = self.tokenizer.decode_answer(&ids, &drawn.ids)?;
        piece(said.rest(&completion))?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Answer {
            completion,
            num_tokens: drawn.ids.len(),
            ended: drawn.ended,
            tokens_per_second: drawn.ids.len() as f64 / seconds.max(1e-9),
        })
    }
}

/// Reads the prompts, passes them to `answer`, and prints the answers. Returns both.
///
/// # Errors
/// Those of `answer`, of reading stdin, and [`Error::Interrupted`].
pub fn converse(args: &Args, output: &Output, answer: &mut Answerer) -> Result<Vec<(String, Answer)>> {
    match &args.prompt {
        Some(prompt) => Ok(vec![(prompt.clone(), ask(args, output, &[], prompt, answer)?)]),
        None if args.chat || (io::stdin().is_terminal() && !args.raw) => {
            chat(args, output, &stdin_lines(), answer)
        }
        None => each_line(args, output, &stdin_lines(), answer),
    }
}

/// Asks one question after `history` and prints the answer while it is generated.
fn ask(
    args: &Args,
    output: &Output,
    history: &[Message],
    text: &str,
    answer: &mut Answerer,
) -> Result<Answer> {
    let mut print = |piece: &str| output.text(piece);
    let prompt = if args.raw {
        Prompt::Text(text.to_owned())
    } else {
        Prompt::Messages(history.iter().cloned().chain([Message::new("user", text)]).collect())
    };
    let answered = answer(&prompt, &mut print)?;
    output.text("\n")?;
    Ok(answered)
}

fn chat(
    args: &Args,
    output: &Output,
    lines: &Receiver<io::Result<String>>,
    answer: &mut Answerer,
) -> Result<Vec<(String, Answer)>> {
    if io::stdin().is_terminal() {
        output.note("Type a message and press Enter. /reset clears the conversation, /quit exits.");
    }
    let mut history = Vec::new();
    let mut answers = Vec::new();
    loop {
        if io::stdin().is_terminal() {
            let _ = write!(io::stderr(), "> ");
        }
        let Some(line) = next_line(lines)? else { break };
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/reset" => history.clear(),
            text => {
                let answered = match ask(args, output, &history, text, answer) {
                    // In a terminal the user can shorten a question that is too long; elsewhere it is an
                    // error.
                    Err(error @ Error::Input { .. }) if io::stdin().is_terminal() => {
                        output.warn(error);
                        continue;
                    }
                    answered => answered?,
                };
                history.push(Message::new("user", text));
                history.push(Message::new("assistant", answered.completion.clone()));
                answers.push((text.to_owned(), answered));
            }
        }
    }
    Ok(answers)
}

fn each_line(
    args: &Args,
    output: &Output,
    lines: &Receiver<io::Result<String>>,
    answer: &mut Answerer,
) -> Result<Vec<(String, Answer)>> {
    let mut answers = Vec::new();
    while let Some(line) = next_line(lines)? {
        if !line.trim().is_empty() {
            let answered = ask(args, output, &[], &line, answer)?;
            answers.push((line, answered));
        }
    }
    if answers.is_empty() {
        let fix = "give --prompt TEXT, or --chat";
        return Err(Error::input("stdin", "prompts, one per line", "nothing", fix));
    }
    Ok(answers)
}

/// With `--json`, prints the answers as one object. Otherwise they are already printed, and `--prompt` gets a
/// note on length and speed.
fn finish(args: &Args, output: &Output, ran: Ran, answers: &[(String, Answer)]) -> Result<()> {
    if output.json() {
        #[derive(Serialize)]
        struct Turn<'a> {
            prompt: &'a str,
            #[serde(flatten)]
            answer: &'a Answer,
        }
        #[derive(Serialize)]
        struct Figures<'a> {
            #[serde(flatten)]
            ran: Ran,
            answers: Vec<Turn<'a>>,
        }
        let answers = answers.iter().map(|(prompt, answer)| Turn { prompt, answer }).collect();
        return output.result("", &Figures { ran, answers });
    }
    if let Some((_, answer)) = answers.last().filter(|_| args.prompt.is_some()) {
        let cut = if answer.ended { "" } else { "cut at " };
        output.note(format_args!(
            "{cut}{} tokens; {:.1} tokens/s, peak GPU memory {}",
            answer.num_tokens,
            answer.tokens_per_second,
            ran.memory()
        ));
    }
    Ok(())
}

/// Reads stdin on its own thread, so that Ctrl-C is noticed while waiting for a line.
fn stdin_lines() -> Receiver<io::Result<String>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The next line; `None` at the end of the input.
fn next_line(lines: &Receiver<io::Result<String>>) -> Result<Option<String>> {
    loop {
        interrupt::check()?;
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => return line.map(Some).map_err(|error| Error::io("stdin", "read", error)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches};

    use super::*;

    fn args(arguments: &[&str]) -> Args {
        let command = Args::augment_args(clap::Command::new("generate").no_binary_name(true));
        Args::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
    }

    /// Feeds `lines` to `run`; returns the number of messages in each prompt, 0 for plain text.
    fn lengths(
        arguments: &[&str],
        lines: &[&str],
        run: impl Fn(&Args, &Receiver<io::Result<String>>, &mut Answerer),
    ) -> Vec<usize> {
        let (sender, receiver) = channel();
        lines.iter().for_each(|line| sender.send(Ok((*line).to_owned())).unwrap());
        drop(sender);
        let mut seen = Vec::new();
        run(&args(arguments), &receiver, &mut |prompt, _| {
            seen.push(match prompt {
                Prompt::Messages(messages) => messages.len(),
                Prompt::Text(_) => 0,
            });
            Ok(Answer { completion: "yes".into(), num_tokens: 2, ended: true, tokens_per_second: 1.0 })
        });
        seen
    }

    #[test]
    fn a_chat_remembers_and_lines_do_not() {
        let output = Output::new(true, true);
        let lines = ["one", "", "two", "/reset", "three", "/quit", "four"];
        let chat = |args: &Args, lines: &_, answer: &mut Answerer| {
            super::chat(args, &output, lines, answer).unwrap();
        };
        assert_eq!(lengths(&["--model=tiny", "--chat"], &lines, chat), [1, 3, 1]);
        let each = |args: &Args, lines: &_, answer: &mut Answerer| {
            each_line(args, &output, lines, answer).unwrap();
        };
        assert_eq!(lengths(&["--model=tiny"], &["one", "two"], each), [1, 1]);
        assert_eq!(lengths(&["--model=tiny", "--raw"], &["one", "two"], each), [0, 0]);
    }
}
