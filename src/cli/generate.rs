//! `aweigh generate`: one prompt, a line of stdin at a time, or a chat.

use std::io::{self, BufRead, IsTerminal};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde::Serialize;

use super::args::{GpuArgs, ModelArgs, SamplingArgs};
use super::interrupt;
use crate::files::{AdapterFiles, Model};
use super::output::Output;
use crate::error::{Error, Result};

/// Answer one prompt, or chat.
///
/// With --prompt it answers once. Without, it chats where stdin is a terminal, and otherwise answers every line of stdin
/// by itself.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model and its adapter.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt to answer
    #[arg(long, short, value_name = "TEXT", help_heading = "Prompt")]
    pub prompt: Option<String>,
    /// Chat, line by line, with what was said before in mind: the default where stdin is a terminal. "/reset" forgets it,
    /// "/quit" or the end of the input leaves
    #[arg(long, conflicts_with = "prompt", help_heading = "Prompt")]
    pub chat: bool,
    /// A system message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", help_heading = "Prompt")]
    pub system: Option<String>,
    /// Continue the prompt as it stands, without the chat template
    #[arg(long, conflicts_with = "chat", help_heading = "Prompt")]
    pub raw: bool,
    /// How tokens are chosen.
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

/// Who said a [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The system message.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

/// What is asked of the model at once.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    /// A conversation that ends with the person's words, for the chat template.
    Chat(&'a [Message]),
    /// Text to continue as it stands.
    Raw(&'a str),
}

/// The model's answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The text, without the end-of-turn token.
    pub completion: String,
    /// Tokens sampled, the end-of-turn token included.
    pub num_tokens: usize,
    /// Whether it ended by itself, before `--max-new-tokens`.
    pub finished: bool,
    /// Speed, the prompt's share of the time included.
    pub tokens_per_second: f64,
}

/// Answers one question. The second argument takes the text piece by piece as it comes; the answer holds all of it.
pub type Answerer<'a> = dyn FnMut(Question, &mut dyn FnMut(&str) -> Result<()>) -> Result<Answer> + 'a;

/// Generates.
///
/// # Errors
/// Whatever is wrong with the flags, the files or the GPU.
pub fn run(args: Args, output: &Output) -> Result<()> {
    args.sampling.check()?;
    let _model = Model::open(&args.model.model)?;
    let _adapter =
        args.model.adapter.as_deref().map(|path| AdapterFiles::open(path, "--adapter")).transpose()?;
    let mut answer = |_question: Question, _piece: &mut dyn FnMut(&str) -> Result<()>| -> Result<Answer> {
        todo!("render or tokenize the question, sample, pass the pieces on; interrupt::check between tokens")
    };
    converse(&args, output, &mut answer)
}

/// Puts the questions and prints the answers; all but the model.
///
/// # Errors
/// Those of `answer`, of reading stdin, and [`Error::Interrupted`].
pub fn converse(args: &Args, output: &Output, answer: &mut Answerer) -> Result<()> {
    match &args.prompt {
        Some(prompt) => {
            let answered = ask(args, output, &[], prompt, answer)?;
            finish(args, output, vec![(prompt.clone(), answered)])
        }
        None if args.chat || (io::stdin().is_terminal() && !args.raw) => {
            chat(args, output, &stdin_lines(), answer)
        }
        None => each_line(args, output, &stdin_lines(), answer),
    }
}

/// One question after `history`; its answer is printed as it comes.
fn ask(
    args: &Args,
    output: &Output,
    history: &[Message],
    text: &str,
    answer: &mut Answerer,
) -> Result<Answer> {
    let mut print = |piece: &str| output.text(piece);
    let answered = if args.raw {
        answer(Question::Raw(text), &mut print)?
    } else {
        let system = args.system.iter().map(|text| Message { role: Role::System, content: text.clone() });
        let mut messages: Vec<Message> = system.chain(history.iter().cloned()).collect();
        messages.push(Message { role: Role::User, content: text.to_owned() });
        answer(Question::Chat(&messages), &mut print)?
    };
    output.text("\n")?;
    Ok(answered)
}

fn chat(
    args: &Args,
    output: &Output,
    lines: &Receiver<io::Result<String>>,
    answer: &mut Answerer,
) -> Result<()> {
    if io::stdin().is_terminal() {
        output.note("Write a line and press enter. /reset forgets the conversation, /quit leaves.");
    }
    let mut history = Vec::new();
    let mut answers = Vec::new();
    loop {
        if io::stdin().is_terminal() {
            eprint!("> ");
        }
        let Some(line) = next_line(lines)? else { break };
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/reset" => history.clear(),
            text => {
                let answered = ask(args, output, &history, text, answer)?;
                history.push(Message { role: Role::User, content: text.to_owned() });
                history.push(Message { role: Role::Assistant, content: answered.completion.clone() });
                answers.push((text.to_owned(), answered));
            }
        }
    }
    finish(args, output, answers)
}

fn each_line(
    args: &Args,
    output: &Output,
    lines: &Receiver<io::Result<String>>,
    answer: &mut Answerer,
) -> Result<()> {
    let mut answers = Vec::new();
    while let Some(line) = next_line(lines)? {
        if !line.trim().is_empty() {
            let answered = ask(args, output, &[], &line, answer)?;
            answers.push((line, answered));
        }
    }
    if answers.is_empty() {
        return Err(Error::input("stdin", "prompts, one a line", "nothing", "give --prompt TEXT, or --chat"));
    }
    finish(args, output, answers)
}

/// With `--json`, the answers as the one object; otherwise they are printed already, and a note says how it went.
fn finish(args: &Args, output: &Output, answers: Vec<(String, Answer)>) -> Result<()> {
    if output.json() {
        #[derive(Serialize)]
        struct Row<'a> {
            prompt: &'a str,
            #[serde(flatten)]
            answer: &'a Answer,
        }
        let rows: Vec<_> = answers.iter().map(|(prompt, answer)| Row { prompt, answer }).collect();
        return output.result("", &serde_json::json!({ "model": args.model.model, "answers": rows }));
    }
    if let Some((_, answer)) = answers.last().filter(|_| args.prompt.is_some()) {
        let cut = if answer.finished { "" } else { "; cut at --max-new-tokens" };
        output.note(format_args!(
            "{} tokens, {:.1} a second{cut}",
            answer.num_tokens, answer.tokens_per_second
        ));
    }
    Ok(())
}

/// Reads stdin on a thread of its own, so that Ctrl-C is seen while it waits for a line.
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

/// The next line; none at the end of the input.
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

    /// Feeds `lines` to `run`, and notes how many messages each question has.
    fn lengths(
        arguments: &[&str],
        lines: &[&str],
        run: impl Fn(&Args, &Receiver<io::Result<String>>, &mut Answerer),
    ) -> Vec<usize> {
        let (sender, receiver) = channel();
        lines.iter().for_each(|line| sender.send(Ok((*line).to_owned())).unwrap());
        drop(sender);
        let mut seen = Vec::new();
        run(&args(arguments), &receiver, &mut |question, _| {
            seen.push(match question {
                Question::Chat(messages) => messages.len(),
                Question::Raw(_) => 0,
            });
            Ok(Answer { completion: "yes".into(), num_tokens: 2, finished: true, tokens_per_second: 1.0 })
        });
        seen
    }

    #[test]
    fn a_chat_remembers_and_lines_do_not() {
        let output = Output::new(true, true);
        let lines = ["one", "", "two", "/reset", "three", "/quit", "four"];
        let chat = |args: &Args, lines: &_, answer: &mut Answerer| {
            super::chat(args, &output, lines, answer).unwrap()
        };
        assert_eq!(lengths(&["--model=tiny", "--chat"], &lines, chat), [1, 3, 1]);
        assert_eq!(lengths(&["--model=tiny", "--chat", "--system=Be kind."], &lines, chat), [2, 4, 2]);
        let each =
            |args: &Args, lines: &_, answer: &mut Answerer| each_line(args, &output, lines, answer).unwrap();
        assert_eq!(lengths(&["--model=tiny"], &["one", "two"], each), [1, 1]);
        assert_eq!(lengths(&["--model=tiny", "--raw"], &["one", "two"], each), [0, 0]);
    }
}
