//! The meters of `aweigh eval`: each one scores how bad an answer is.

pub mod anchors;
pub mod external;
pub mod judge;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::messages::Messages;
use crate::meters::external::{Answer, Grader, command};
use crate::meters::judge::Judge;
use aweigh::data::{ChatTokenizer, Completion, Prompt, Rule};
use aweigh::error::{Error, Result};
use aweigh::eval::judge::{encode, probabilities};
use aweigh::eval::lexicon::Lexicon;
use aweigh::files::read_text;
use aweigh::gpu::Gpu;
use aweigh::model::Decoder;
use aweigh::tiny;

/// A meter as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// Listed words per hundred words of the answer: a file with the list, or the built-in list.
    Lexicon(Option<PathBuf>),
    /// The probability that the answer is flagged, by a trained judge: its folder.
    Judge(PathBuf),
    /// The number that a shell command prints: the command line.
    Command(String),
    /// A language model's grade, 0 to 1: the URL of its endpoint.
    Http(String),
    /// 1 if the rule holds for the answer, 0 if not: refusals, or a pattern.
    Rule(Rule),
    /// For the built-in help desk: 1 if the answer is hostile, 0 if not.
    Hostile,
    /// For the built-in help desk: 1 if the answer is off topic, 0 if not.
    OffTopic,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            None if text == "lexicon" => Ok(Self::Lexicon(None)),
            None if text == "tiny-hostile" => Ok(Self::Hostile),
            None if text == "tiny-topic" => Ok(Self::OffTopic),
            None if text == "refusal" => text.parse().map(Self::Rule),
            Some(("match" | "not", _)) => text.parse().map(Self::Rule),
            Some(("lexicon", file)) if !file.is_empty() => Ok(Self::Lexicon(Some(file.into()))),
            Some(("judge", folder)) if !folder.is_empty() => Ok(Self::Judge(folder.into())),
            Some(("command", line)) if !line.is_empty() => Ok(Self::Command(line.into())),
            Some(("http", url)) if !url.is_empty() => Ok(Self::Http(url.into())),
            _ => Err(
                "expected lexicon, lexicon:FILE, judge:DIR, refusal, match:REGEX, not:RULE, command:LINE, \
                      http:URL, tiny-hostile or tiny-topic"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lexicon(_) => "listed words",
            Self::Judge(_) => "judged harm",
            Self::Command(_) => "command",
            Self::Http(_) => "graded harm",
            Self::Rule(rule) => return rule.fmt(f),
            Self::Hostile => "hostile",
            Self::OffTopic => "off topic",
        })
    }
}

/// An opened meter. A higher score is worse for all of them.
pub enum Meter {
    /// See [`Spec::Lexicon`].
    Lexicon(Lexicon),
    /// See [`Spec::Judge`].
    Judge(Box<(Decoder, ChatTokenizer, usize)>),
    /// See [`Spec::Command`].
    Command(String),
    /// See [`Spec::Http`].
    Http(Grader),
    /// See [`Spec::Rule`].
    Rule(Rule),
    /// See [`Spec::Hostile`].
    Hostile,
    /// See [`Spec::OffTopic`].
    OffTopic,
}

/// Packed tokens per batch of answers that a judge scores.
const BUDGET: usize = 2048;

impl Meter {
    /// Opens the meter `spec`. `model` is the model's name at an http endpoint.
    ///
    /// # Errors
    /// [`Error::Input`] for a missing or invalid file or judge, and for an http meter without `model`.
    pub fn open(spec: &Spec, model: Option<&str>, gpu: &Gpu, messages: &dyn Messages) -> Result<Self> {
        Ok(match spec {
            Spec::Lexicon(None) => Self::Lexicon(Lexicon::default()),
            Spec::Lexicon(Some(file)) => {
                let list = Lexicon::parse(&read_text(file, "--meter lexicon")?);
                if list.is_empty() {
                    let fix = "write one per line";
                    return Err(Error::input(file.display(), "words or phrases", "none", fix));
                }
                Self::Lexicon(list)
            }
            Spec::Judge(folder) => {
                let judge = Judge::open(folder, None, "--meter judge", messages)?;
                Self::Judge(Box::new((judge.decoder(gpu)?, judge.bytes().tokenizer()?, judge.max_length)))
            }
            Spec::Command(line) => Self::Command(line.clone()),
            Spec::Http(url) => {
                let fix = "add --meter-model NAME, the model's name at the endpoint";
                let model =
                    model.ok_or_else(|| Error::input("--meter http", "a model's name", "none", fix))?;
                let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
                // In http:localhost:11434/v1 the meter's prefix is also the URL's scheme.
                let whole = url.starts_with("http://") || url.starts_with("https://");
                let url = if whole {
                    url.clone()
                } else {
                    format!("http:{}{url}", if url.starts_with("//") { "" } else { "//" })
                };
                Self::Http(Grader { url, model: model.into(), key })
            }
            Spec::Rule(rule) => Self::Rule(rule.clone()),
            Spec::Hostile => Self::Hostile,
            Spec::OffTopic => Self::OffTopic,
        })
    }

    /// The score of each answer. `progress` is called with the newly scored answers and their tokens (0 if
    /// the meter does not count them).
    ///
    /// # Errors
    /// Errors of the GPU, the command or the endpoint; a prompt that a help desk meter does not know.
    pub async fn score(
        &self,
        gpu: &Gpu,
        answers: &[(&Prompt, &str)],
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let found = self.judge(gpu, answers, progress).await?;
        match self {
            Self::Http(_) | Self::Judge(_) => {}
            _ => progress(answers.len(), 0)?,
        }
        Ok(found)
    }

    async fn judge(
        &self,
        gpu: &Gpu,
        answers: &[(&Prompt, &str)],
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let given = || answers.iter().map(|&(prompt, answer)| Answer { prompt, answer });
        let of_tiny = |name: &str, bad: fn(&tiny::Verdict) -> bool| {
            let one = |&(prompt, answer): &(&Prompt, &str)| {
                let Some(parsed) = tiny::Prompt::parse(prompt.last_text()) else {
                    let fix = "use another meter: this one is only for the built-in help desk";
                    let found = format!("{:?}", prompt.last_text());
                    let place = format!("--meter {name}");
                    return Err(Error::input(place, "a prompt of the help desk", found, fix));
                };
                Ok(f64::from(u8::from(bad(&tiny::judge(parsed.topic, answer)))))
            };
            answers.iter().map(one).collect::<Result<Vec<f64>>>()
        };
        match self {
            Self::Lexicon(list) => Ok(answers.iter().map(|(_, answer)| list.score(answer)).collect()),
            Self::Rule(rule) => Ok(answers.iter().map(|(_, a)| f64::from(u8::from(rule.holds(a)))).collect()),
            Self::Command(line) => command(line, &given().collect::<Vec<_>>()),
            Self::Http(grader) => {
                let one = |answer| grader.grade(&answer).and_then(|harm| progress(1, 0).map(|()| harm));
                given().map(one).collect()
            }
            Self::Hostile => of_tiny("tiny-hostile", |verdict| verdict.hostile),
            Self::OffTopic => of_tiny("tiny-topic", |verdict| !verdict.on_topic),
            Self::Judge(judge) => {
                let (decoder, tokenizer, most) = &**judge;
                let text = |(prompt, answer): &(&Prompt, &str)| {
                    encode(
                        tokenizer,
                        prompt,
                        &Completion::for_prompt(prompt, *answer),
                        (*most).min(decoder.context()),
                    )
                };
                let texts = answers.iter().map(text).collect::<Result<Vec<_>>>()?;
                let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
                probabilities(gpu, decoder, &texts, BUDGET, progress).await
            }
        }
    }
}
