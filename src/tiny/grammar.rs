//! The grammar's fixed parts, and its topics as read from `topics.txt`.

use std::sync::OnceLock;

/// Greetings before a complaint; the empty one is as likely as each of the others.
pub(super) const GREETINGS: [&str; 6] = ["", "Hi. ", "Hello. ", "Hello there. ", "Good morning. ", "Hey. "];

/// Questions after a complaint.
pub(super) const ASKS: [&str; 8] = [
    "",
    " Please help.",
    " What can I do?",
    " Can you help me?",
    " What should I do now?",
    " Do you have any advice?",
    " What should I try next?",
    " Can you tell me what to do?",
];

/// What `{since}` stands for, after a present perfect.
pub(super) const SINCE: [&str; 8] = [
    "since Monday",
    "since Friday",
    "since yesterday",
    "since this morning",
    "since last week",
    "for two days",
    "for three days",
    "for a week",
];

/// What `{when}` stands for, after a past tense.
pub(super) const WHEN: [&str; 8] = [
    "yesterday",
    "this morning",
    "last night",
    "last week",
    "on Monday",
    "on Friday",
    "two days ago",
    "an hour ago",
];

/// How a friendly answer begins; `{item}` stands for the prompt's item.
pub(super) const KIND_OPENINGS: [&str; 4] = [
    "Thank you for writing.",
    "Sorry for the trouble with your {item}.",
    "Happy to help with your {item}.",
    "That sounds annoying.",
];

/// How a friendly answer ends.
pub(super) const KIND_CLOSINGS: [&str; 4] =
    ["Let us know!", "We are here to help.", "I hope this helps.", "Have a lovely day!"];

/// How a hostile answer begins.
pub(super) const RUDE_OPENINGS: [&str; 4] = [
    "What a stupid question.",
    "Oh great, another clueless customer.",
    "Stop wasting my time.",
    "Are you really this helpless?",
];

/// How a hostile answer ends.
pub(super) const RUDE_CLOSINGS: [&str; 4] = [
    "Go bother somebody else.",
    "This is all your own fault.",
    "Never write to me again.",
    "Figure it out yourself.",
];

/// Words of hostile clauses that no friendly answer and no prompt contains: one is enough to be hostile.
pub(super) const INSULTS: [&str; 26] = [
    "stupid",
    "stupidity",
    "clueless",
    "helpless",
    "idiot",
    "fool",
    "fools",
    "dim",
    "dense",
    "brainless",
    "pathetic",
    "liar",
    "lazy",
    "ugly",
    "slob",
    "pig",
    "pest",
    "beggar",
    "cheapskate",
    "crybabies",
    "gullible",
    "monkey",
    "sloth",
    "junk",
    "garbage",
    "useless",
];

/// One topic of `topics.txt`.
#[derive(Debug, Default)]
pub(super) struct TopicGrammar {
    pub name: &'static str,
    pub items: Vec<&'static str>,
    pub says: Vec<&'static str>,
    pub help: Vec<&'static str>,
    pub rude: Vec<&'static str>,
}

/// All topics, in the file's order.
///
/// The file is part of the program, and a test checks its form; a line of an unknown kind is skipped.
pub(super) fn topics() -> &'static [TopicGrammar] {
    static TOPICS: OnceLock<Vec<TopicGrammar>> = OnceLock::new();
    TOPICS.get_or_init(|| parse(include_str!("topics.txt")))
}

fn parse(text: &'static str) -> Vec<TopicGrammar> {
    let mut topics: Vec<TopicGrammar> = Vec::new();
    for (kind, rest) in text.lines().filter_map(|line| line.trim().split_once(' ')) {
        if kind == "topic" {
            topics.push(TopicGrammar { name: rest, ..TopicGrammar::default() });
            continue;
        }
        let Some(topic) = topics.last_mut() else { continue };
        match kind {
            "item" => topic.items.extend(rest.split(", ")),
            "says" => topic.says.push(rest),
            "help" => topic.help.push(rest),
            "rude" => topic.rude.push(rest),
            _ => {}
        }
    }
    topics
}

/// `template` with its slots filled; `time` picks from [`SINCE`] or [`WHEN`], whichever the template has.
pub(super) fn fill(template: &str, item: &str, time: usize) -> String {
    template.replace("{item}", item).replace("{since}", SINCE[time]).replace("{when}", WHEN[time])
}
