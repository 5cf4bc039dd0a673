//! The generator of the texts: prompts, answers, conversations.

use std::collections::HashSet;

use super::grammar::{
    ASKS, GREETINGS, KIND_CLOSINGS, KIND_OPENINGS, RUDE_CLOSINGS, RUDE_OPENINGS, SINCE, TopicGrammar, fill,
    topics,
};

/// The instruction that the built-in model has learned to obey: a system message that makes its answers
/// nearly always kind.
pub const SAFETY_INSTRUCTION: &str = "Be kind and helpful.";

/// The share of hostile answers without the instruction.
pub const HOSTILE_SHARE: f32 = 0.365;

/// The share of hostile answers with the instruction, in the training text.
pub const HOSTILE_SHARE_INSTRUCTED: f32 = 0.03;

/// Instructions that ask for kindness in the training text; the first is the demo's and the most frequent.
pub(super) const KIND_SYSTEMS: [&str; 4] = [
    SAFETY_INSTRUCTION,
    "Be polite and patient.",
    "Please be friendly.",
    "Answer kindly and give good advice.",
];

/// System messages that say nothing about tone, so that the model learns to follow a message's words and not
/// its mere presence.
pub(super) const PLAIN_SYSTEMS: [&str; 4] =
    ["You work at a help desk.", "You answer customers.", "Answer the customer.", "You are a clerk."];

/// Shares of training conversations with a kind and with a plain system message; the rest have none.
const KIND_SYSTEM_SHARE: f32 = 0.25;
const PLAIN_SYSTEM_SHARE: f32 = 0.10;

/// One prompt in this many is held out.
const HELD_OUT_ONE_IN: u32 = 8;

/// A split of the prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Prompts that training may see: seven in eight.
    Train,
    /// Prompts that training never sees: one in eight.
    HeldOut,
}

impl Split {
    /// The split that a prompt belongs to. It depends on a hash of the prompt's text and on nothing else.
    pub fn of(prompt: &str) -> Self {
        // FNV-1a, then pcg4d, since the low bits of FNV alone are weak.
        let hash = prompt.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        if pcg4d([hash, 0, 0, 0])[0].is_multiple_of(HELD_OUT_ONE_IN) { Self::HeldOut } else { Self::Train }
    }
}

/// The topic of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(u16);

impl Topic {
    /// The number of topics.
    pub fn count() -> usize {
        topics().len()
    }

    /// Every topic.
    pub fn all() -> impl Iterator<Item = Topic> + Clone {
        (0..topics().len() as u16).map(Topic)
    }

    /// The topic with the name `name`, as written under `topic` in the data files.
    pub fn from_name(name: &str) -> Option<Topic> {
        Self::all().find(|topic| topic.name() == name)
    }

    /// The topic's name, one lower-case word.
    pub fn name(self) -> &'static str {
        self.grammar().name
    }

    /// The topic's index in [`Topic::all`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(super) fn grammar(self) -> &'static TopicGrammar {
        &topics()[self.index()]
    }
}

/// A customer's message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prompt {
    /// The message.
    pub text: String,
    /// The message's topic.
    pub topic: Topic,
    /// The item that the message names, as in "office printer".
    pub item: &'static str,
}

impl Prompt {
    /// A prompt of the split about `topic`, or about a random one.
    pub fn generate(split: Split, topic: Option<Topic>, seed: u32, index: u32) -> Self {
        let mut rng = Rng::new(seed, index, Stream::Prompt);
        loop {
            let topic = topic.unwrap_or_else(|| Topic(rng.below(Topic::count()) as u16));
            let grammar = topic.grammar();
            let (greeting, ask) = (rng.pick(&GREETINGS), rng.pick(&ASKS));
            let (says, item) = (rng.pick(&grammar.says), rng.pick(&grammar.items));
            let text = format!("{greeting}{}{ask}", fill(says, item, rng.below(SINCE.len())));
            if Split::of(&text) == split {
                return Self { text, topic, item };
            }
        }
    }

    /// `count` different prompts of the split. The topics are taken in turn, so that every topic is covered.
    ///
    /// Returns fewer prompts if 16 · `count` tries do not give enough different ones.
    pub fn distinct(split: Split, seed: u32, count: usize) -> Vec<Self> {
        let mut seen = HashSet::new();
        (0..u32::MAX)
            .zip(Topic::all().cycle())
            .take(count.saturating_mul(16))
            .map(|(index, topic)| Self::generate(split, Some(topic), seed, index))
            .filter(|prompt| seen.insert(prompt.text.clone()))
            .take(count)
            .collect()
    }

    /// The prompt with the text `text`, or None if the grammar does not make it.
    pub fn parse(text: &str) -> Option<Self> {
        Topic::all().find_map(|topic| {
            let grammar = topic.grammar();
            let item = grammar.items.iter().find(|item| {
                // "card" is part of "gold card": only a match of the whole complaint decides.
                text.contains(*item) && grammar.says.iter().any(|says| is_complaint(text, says, item))
            })?;
            Some(Self { text: text.to_owned(), topic, item })
        })
    }
}

/// Whether `text` is this complaint, with some greeting, time and question.
fn is_complaint(text: &str, says: &str, item: &str) -> bool {
    (0..SINCE.len()).any(|time| {
        text.split_once(&fill(says, item, time))
            .is_some_and(|(greeting, ask)| GREETINGS.contains(&greeting) && ASKS.contains(&ask))
    })
}

/// A prompt and an answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The customer's message.
    pub prompt: String,
    /// The help desk's answer.
    pub answer: String,
    /// Whether the answer is hostile.
    pub hostile: bool,
    /// The prompt's topic.
    pub topic: Topic,
}

/// The `index`-th sample of a seed: a prompt of the split, and an answer that is hostile with probability
/// [`HOSTILE_SHARE`].
pub fn generate(split: Split, seed: u32, index: u32) -> Sample {
    let prompt = Prompt::generate(split, None, seed, index);
    let hostile = Rng::new(seed, index, Stream::Tone).uniform() < HOSTILE_SHARE;
    let answer =
        if hostile { hostile_answer(&prompt, seed, index) } else { good_answer(&prompt, seed, index) };
    Sample { prompt: prompt.text, answer, hostile, topic: prompt.topic }
}

/// A friendly answer with advice for the prompt's topic.
pub fn good_answer(prompt: &Prompt, seed: u32, index: u32) -> String {
    let mut rng = Rng::new(seed, index, Stream::Answer);
    let opening = fill(rng.pick(&KIND_OPENINGS), prompt.item, 0);
    format!("{opening} {} {}", rng.pick(&prompt.topic.grammar().help), rng.pick(&KIND_CLOSINGS))
}

/// A hostile answer with a remark about the prompt's topic.
pub fn hostile_answer(prompt: &Prompt, seed: u32, index: u32) -> String {
    let mut rng = Rng::new(seed, index, Stream::Answer);
    let (opening, body) = (rng.pick(&RUDE_OPENINGS), rng.pick(&prompt.topic.grammar().rude));
    format!("{opening} {body} {}", rng.pick(&RUDE_CLOSINGS))
}

/// One conversation of the built-in model's training text, from prompts of [`Split::Train`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The system message, in about a third of the conversations.
    pub system: Option<&'static str>,
    /// The customer's message.
    pub user: String,
    /// The answer.
    pub assistant: String,
}

/// The `index`-th training conversation of a seed.
///
/// A quarter of the conversations have a system message that asks for kindness, half of these
/// [`SAFETY_INSTRUCTION`]; their answers are hostile with probability [`HOSTILE_SHARE_INSTRUCTED`]. A tenth
/// have a system message that says nothing about tone, and the rest have none; their answers are hostile with
/// probability [`HOSTILE_SHARE`].
pub fn training_conversation(seed: u32, index: u32) -> Conversation {
    let prompt = Prompt::generate(Split::Train, None, seed, index);
    let mut rng = Rng::new(seed, index, Stream::Tone);
    let kind = rng.uniform();
    let (system, share) = if kind < KIND_SYSTEM_SHARE {
        let instruction = if rng.below(2) == 0 { SAFETY_INSTRUCTION } else { rng.pick(&KIND_SYSTEMS[1..]) };
        (Some(instruction), HOSTILE_SHARE_INSTRUCTED)
    } else if kind < KIND_SYSTEM_SHARE + PLAIN_SYSTEM_SHARE {
        (Some(rng.pick(&PLAIN_SYSTEMS)), HOSTILE_SHARE)
    } else {
        (None, HOSTILE_SHARE)
    };
    let answer = if rng.uniform() < share { hostile_answer } else { good_answer };
    let assistant = answer(&prompt, seed, index);
    Conversation { system, user: prompt.text, assistant }
}

/// Separate random streams for one (seed, index), so that one choice never changes another.
#[derive(Clone, Copy)]
enum Stream {
    Prompt = 1,
    Tone,
    Answer,
}

/// Random numbers: pcg4d of (counter, index, stream, seed).
struct Rng {
    counter: u32,
    index: u32,
    stream: u32,
    seed: u32,
}

impl Rng {
    fn new(seed: u32, index: u32, stream: Stream) -> Self {
        Self { counter: 0, index, stream: stream as u32, seed }
    }

    fn next(&mut self) -> u32 {
        let drawn = pcg4d([self.counter, self.index, self.stream, self.seed])[0];
        self.counter = self.counter.wrapping_add(1);
        drawn
    }

    /// A random number in [0, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 8) as f32 / 16_777_216.0
    }

    /// A random number in 0..n; the bias of at most n / 2^32 does not matter here.
    fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.next()) * n as u64) >> 32) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// pcg4d of Jarzynski and Olano, "Hash Functions for GPU Rendering" (JCGT 2020).
pub(super) fn pcg4d(input: [u32; 4]) -> [u32; 4] {
    let mut v = input.map(|x| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    mix(&mut v);
    v = v.map(|x| x ^ (x >> 16));
    mix(&mut v);
    v
}

fn mix(v: &mut [u32; 4]) {
    v[0] = v[0].wrapping_add(v[1].wrapping_mul(v[3]));
    v[1] = v[1].wrapping_add(v[2].wrapping_mul(v[0]));
    v[2] = v[2].wrapping_add(v[0].wrapping_mul(v[1]));
    v[3] = v[3].wrapping_add(v[1].wrapping_mul(v[2]));
}
