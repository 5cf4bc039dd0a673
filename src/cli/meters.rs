//! The meters of `aweigh eval`: how bad an answer is, by one measure or another.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use pollster::block_on;

use super::interrupt;
use super::judge::Judge;
use crate::data::{ChatTokenizer, Completion, Prompt};
use crate::error::{Error, Result};
use crate::eval::helpdesk;
use crate::eval::judge::{encode, probabilities};
use crate::eval::lexicon::Lexicon;
use crate::files::external::{Answer, Grader, command};
use crate::files::read_text;
use crate::gpu::Gpu;
use crate::model::Decoder;

/// A meter as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// Words of a list, per hundred words.
    Lexicon(Option<PathBuf>),
    /// The probability that a trained judge finds the answer flagged.
    Judge(PathBuf),
    /// A shell command's number.
    Command(String),
    /// A language model's grade, 0 to 1: the endpoint.
    Http(String),
    /// The embedded world: 1 where an answer is hostile.
    Hostile,
    /// The embedded world: 1 where an answer is not about its prompt.
    OffTopic,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            None if text == "lexicon" => Ok(Self::Lexicon(None)),
            None if text == "helpdesk" => Ok(Self::Hostile),
            None if text == "helpdesk-topic" => Ok(Self::OffTopic),
            Some(("lexicon", file)) if !file.is_empty() => Ok(Self::Lexicon(Some(file.into()))),
            Some(("judge", folder)) if !folder.is_empty() => Ok(Self::Judge(folder.into())),
            Some(("command", line)) if !line.is_empty() => Ok(Self::Command(line.into())),
            Some(("http", url)) if !url.is_empty() => Ok(Self::Http(url.into())),
            _ => Err("expected lexicon, lexicon:FILE, judge:DIR, command:LINE, http:URL, helpdesk or helpdesk-topic".into()),
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
            Self::Hostile => "hostile",
            Self::OffTopic => "off topic",
        })
    }
}

/// A meter ready for work. Higher is worse, of all of them.
pub enum Meter {
    /// See [`Spec::Lexicon`].
    Lexicon(Lexicon),
    /// See [`Spec::Judge`].
    Judge(Box<(Decoder, ChatTokenizer)>),
    /// See [`Spec::Command`].
    Command(String),
    /// See [`Spec::Http`].
    Http(Grader),
    /// See [`Spec::Hostile`].
    Hostile,
    /// See [`Spec::OffTopic`].
    OffTopic,
}

/// Tokens of a prompt and an answer that a judge reads, and of a batch.
const JUDGED: (usize, usize) = (512, 2048);

impl Meter {
    /// Opens what `spec` names. `model` is the model's name for an endpoint.
    ///
    /// # Errors
    /// [`Error::Input`] for what is not there.
    pub fn open(spec: &Spec, model: Option<&str>, gpu: &Gpu, bar: bool) -> Result<Self> {
        Ok(match spec {
            Spec::Lexicon(None) => Self::Lexicon(Lexicon::default()),
            Spec::Lexicon(Some(file)) => {
                let list = Lexicon::parse(&read_text(file, "--meter lexicon")?);
                if list.is_empty() {
                    let fix = "write one a line";
                    return Err(Error::input(file.display(), "words or phrases", "none", fix));
                }
                Self::Lexicon(list)
            }
            Spec::Judge(folder) => {
                let judge = Judge::open(folder, None, "--meter judge", bar)?;
                Self::Judge(Box::new((judge.decoder(gpu)?, judge.bytes().tokenizer()?)))
            }
            Spec::Command(line) => Self::Command(line.clone()),
            Spec::Http(url) => {
                let fix = "add --meter-model NAME, as the endpoint calls it";
                let model =
                    model.ok_or_else(|| Error::input("--meter http", "a model's name", "none", fix))?;
                let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
                // As in http:localhost:11434/v1, where the scheme is said already.
                let whole = url.starts_with("http://") || url.starts_with("https://");
                let url = if whole {
                    url.clone()
                } else {
                    format!("http:{}{url}", if url.starts_with("//") { "" } else { "//" })
                };
                Self::Http(Grader { url, model: model.into(), key })
            }
            Spec::Hostile => Self::Hostile,
            Spec::OffTopic => Self::OffTopic,
        })
    }

    /// How bad each answer is.
    ///
    /// # Errors
    /// What the device, the command or the endpoint reports.
    pub fn score(&self, gpu: &Gpu, answers: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let given = || answers.iter().map(|&(prompt, answer)| Answer { prompt, answer });
        let helpdesk = |bad: fn(&helpdesk::Verdict) -> bool| {
            let one = |&(prompt, answer): &(&Prompt, &str)| {
                let Some(parsed) = helpdesk::Prompt::parse(prompt.last_text()) else {
                    let fix = "use another meter: this one knows the embedded help desk alone";
                    let found = format!("{:?}", prompt.last_text());
                    return Err(Error::input("--meter helpdesk", "a prompt of the help desk", found, fix));
                };
                Ok(f64::from(u8::from(bad(&helpdesk::judge(parsed.topic, answer)))))
            };
            answers.iter().map(one).collect::<Result<Vec<f64>>>()
        };
        match self {
            Self::Lexicon(list) => Ok(answers.iter().map(|(_, answer)| list.score(answer)).collect()),
            Self::Command(line) => command(line, &given().collect::<Vec<_>>()),
            Self::Http(grader) => {
                given().map(|answer| interrupt::check().and_then(|()| grader.grade(&answer))).collect()
            }
            Self::Hostile => helpdesk(|verdict| verdict.hostile),
            Self::OffTopic => helpdesk(|verdict| !verdict.on_topic),
            Self::Judge(judge) => {
                let (decoder, tokenizer) = &**judge;
                let (most, budget) = JUDGED;
                let text = |(prompt, answer): &(&Prompt, &str)| {
                    encode(
                        tokenizer,
                        prompt,
                        &Completion::for_prompt(prompt, *answer),
                        most.min(decoder.context()),
                    )
                };
                let texts = answers.iter().map(text).collect::<Result<Vec<_>>>()?;
                let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
                block_on(probabilities(gpu, decoder, &texts, budget, &mut |_, _| interrupt::check()))
            }
        }
    }
}
