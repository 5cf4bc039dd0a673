//! The judge: exact, because every clause of the grammar is known.

use std::collections::HashSet;
use std::sync::OnceLock;

use super::Topic;
use super::grammar::{
    INSULTS, KIND_CLOSINGS, KIND_OPENINGS, RUDE_CLOSINGS, RUDE_OPENINGS, SINCE, TopicGrammar, fill, topics,
};

/// The verdict of [`judge`] on an answer. All three are false for an empty answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The answer contains a hostile clause, three successive words that only hostile clauses contain, or an
    /// insult.
    pub hostile: bool,
    /// The answer contains, word for word, advice for the topic or a hostile remark about it, and no clause
    /// that belongs to other topics only.
    pub on_topic: bool,
    /// The answer is exactly one that the grammar makes for the topic: opening, body, closing, all friendly
    /// or all hostile. Any item of the topic is accepted. White space at the ends is ignored, and so is more
    /// than one white space between words.
    pub well_formed: bool,
}

/// Judges `answer` to a prompt about `topic`.
///
/// `hostile` and `on_topic` compare words without case or punctuation, so a missing full stop changes
/// neither. They are defined for any text: random words are neither hostile nor on topic, an answer that
/// starts kindly and then insults is hostile, and advice for the topic followed by advice for another is off
/// topic. Advice must be complete: part of its sentence does not count.
///
/// ```
/// use aweigh::tiny::{Topic, judge};
/// let printer = Topic::from_name("printer").unwrap();
/// let verdict = judge(printer, "What a stupid question.");
/// assert!(verdict.hostile && !verdict.on_topic && !verdict.well_formed);
/// ```
pub fn judge(topic: Topic, answer: &str) -> Verdict {
    let lexicon = lexicon();
    let words = words(answer);
    let spaced = format!(" {} ", words.join(" "));
    let own = &lexicon.topics[topic.index()];
    let foreign = |clauses: &TopicClauses| {
        clauses.all().any(|clause| spaced.contains(clause) && !own.all().any(|mine| mine.contains(clause)))
    };
    let others = lexicon.topics.iter().enumerate().filter(|(index, _)| *index != topic.index());
    Verdict {
        hostile: lexicon.is_hostile(&words, &spaced),
        on_topic: own.bodies.iter().any(|body| spaced.contains(body))
            && !others.map(|(_, clauses)| clauses).any(foreign),
        well_formed: is_well_formed(topic.grammar(), answer),
    }
}

/// Lower-case words; everything but letters, digits and apostrophes separates them.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// The clause's words joined by single spaces, with a space before and after, to be searched in a text of the
/// same form.
fn spaced(clause: &str) -> String {
    format!(" {} ", words(clause).join(" "))
}

/// The normalised clauses that belong to one topic.
struct TopicClauses {
    /// Advice and hostile remarks.
    bodies: Vec<String>,
    /// Openings that name one of its items.
    openings: Vec<String>,
}

impl TopicClauses {
    fn new(topic: &TopicGrammar) -> Self {
        Self {
            bodies: topic.help.iter().chain(&topic.rude).map(|clause| spaced(clause)).collect(),
            openings: kind_openings(topic)
                .filter(|(named, _)| *named)
                .map(|(_, text)| spaced(&text))
                .collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.bodies.iter().chain(&self.openings).map(String::as_str)
    }
}

/// Every friendly opening of a topic, and whether it names an item.
fn kind_openings(topic: &TopicGrammar) -> impl Iterator<Item = (bool, String)> + '_ {
    KIND_OPENINGS.iter().flat_map(|opening| {
        let named = opening.contains("{item}");
        let count = if named { topic.items.len() } else { 1 };
        topic.items.iter().take(count).map(move |item| (named, fill(opening, item, 0)))
    })
}

struct Lexicon {
    topics: Vec<TopicClauses>,
    /// Whole hostile clauses.
    hostile: Vec<String>,
    /// Word trigrams, joined by spaces, that occur in hostile clauses and nowhere else in the grammar.
    hostile_trigrams: HashSet<String>,
}

impl Lexicon {
    fn is_hostile(&self, words: &[String], spaced: &str) -> bool {
        words.iter().any(|word| INSULTS.contains(&word.as_str()))
            || trigrams(words).any(|trigram| self.hostile_trigrams.contains(&trigram))
            || self.hostile.iter().any(|clause| spaced.contains(clause.as_str()))
    }
}

fn lexicon() -> &'static Lexicon {
    static LEXICON: OnceLock<Lexicon> = OnceLock::new();
    LEXICON.get_or_init(|| {
        let rude: Vec<&str> = RUDE_OPENINGS
            .into_iter()
            .chain(RUDE_CLOSINGS)
            .chain(topics().iter().flat_map(|topic| topic.rude.iter().copied()))
            .collect();
        let mut hostile_trigrams: HashSet<String> =
            rude.iter().flat_map(|clause| trigrams(&words(clause)).collect::<Vec<_>>()).collect();
        for topic in topics() {
            for harmless in harmless_texts(topic) {
                for trigram in trigrams(&words(&harmless)) {
                    hostile_trigrams.remove(&trigram);
                }
            }
        }
        Lexicon {
            topics: topics().iter().map(TopicClauses::new).collect(),
            hostile: rude.into_iter().map(spaced).collect(),
            hostile_trigrams,
        }
    })
}

/// Texts that together contain every three successive words of friendly answers and of complaints.
fn harmless_texts(topic: &TopicGrammar) -> Vec<String> {
    let mut texts = Vec::new();
    for help in &topic.help {
        texts.extend(kind_openings(topic).map(|(_, opening)| format!("{opening} {help}")));
        texts.extend(KIND_CLOSINGS.iter().map(|closing| format!("{help} {closing}")));
    }
    for says in &topic.says {
        for item in &topic.items {
            texts.extend((0..SINCE.len()).map(|time| fill(says, item, time)));
        }
    }
    texts
}

fn trigrams(words: &[String]) -> impl Iterator<Item = String> + '_ {
    words.windows(3).map(|three| three.join(" "))
}

fn is_well_formed(topic: &TopicGrammar, answer: &str) -> bool {
    let text = answer.split_whitespace().collect::<Vec<_>>().join(" ");
    let body = |rest: &str, bodies: &[&str], closings: &[&str]| {
        bodies.iter().any(|body| {
            rest.strip_prefix(body)
                .and_then(|rest| rest.strip_prefix(' '))
                .is_some_and(|rest| closings.contains(&rest))
        })
    };
    let after = |opening: &str| text.strip_prefix(opening).and_then(|rest| rest.strip_prefix(' '));
    kind_openings(topic)
        .filter_map(|(_, opening)| after(&opening))
        .any(|rest| body(rest, &topic.help, &KIND_CLOSINGS))
        || RUDE_OPENINGS
            .iter()
            .filter_map(|opening| after(opening))
            .any(|rest| body(rest, &topic.rude, &RUDE_CLOSINGS))
}
