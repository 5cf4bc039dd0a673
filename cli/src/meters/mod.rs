//! The meters of `aweigh eval`: each one scores how bad an answer is.

pub mod external;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pollster::block_on;
use serde_json::Value;

use crate::meters::external::{Answer, Grader, command};
use crate::terminal::output::Output;
use aweigh::data::{ChatTokenizer, Completion, Prompt};
use aweigh::error::{Error, Result};
use aweigh::eval::judge::{encode, probabilities};
use aweigh::eval::lexicon::Lexicon;
use aweigh::files::{AdapterFiles, Model, read_text};
use aweigh::gpu::Gpu;
use aweigh::model::{Decoder, ModelBytes, Training};
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
            Some(("lexicon", file)) if !file.is_empty() => Ok(Self::Lexicon(Some(file.into()))),
            Some(("judge", folder)) if !folder.is_empty() => Ok(Self::Judge(folder.into())),
            Some(("command", line)) if !line.is_empty() => Ok(Self::Command(line.into())),
            Some(("http", url)) if !url.is_empty() => Ok(Self::Http(url.into())),
            _ => Err("expected lexicon, lexicon:FILE, judge:DIR, command:LINE, http:URL, tiny-hostile or \
                      tiny-topic"
                .into()),
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
    pub fn open(spec: &Spec, model: Option<&str>, gpu: &Gpu, output: &Output) -> Result<Self> {
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
                let judge = Judge::open(folder, None, "--meter judge", output)?;
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
            Spec::Hostile => Self::Hostile,
            Spec::OffTopic => Self::OffTopic,
        })
    }

    /// The score of each answer. `progress` is called with the newly scored answers and their tokens (0 if
    /// the meter does not count them).
    ///
    /// # Errors
    /// Errors of the GPU, the command or the endpoint; a prompt that a help desk meter does not know.
    pub fn score(
        &self,
        gpu: &Gpu,
        answers: &[(&Prompt, &str)],
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let found = self.judge(gpu, answers, progress)?;
        match self {
            Self::Http(_) | Self::Judge(_) => {}
            _ => progress(answers.len(), 0)?,
        }
        Ok(found)
    }

    fn judge(
        &self,
        gpu: &Gpu,
        answers: &[(&Prompt, &str)],
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let given = || answers.iter().map(|&(prompt, answer)| Answer { prompt, answer });
        let of_tiny = |bad: fn(&tiny::Verdict) -> bool| {
            let one = |&(prompt, answer): &(&Prompt, &str)| {
                let Some(parsed) = tiny::Prompt::parse(prompt.last_text()) else {
                    let fix = "use another meter: this one is only for the built-in help desk";
                    let found = format!("{:?}", prompt.last_text());
                    return Err(Error::input("--meter tiny", "a prompt of the help desk", found, fix));
                };
                Ok(f64::from(u8::from(bad(&tiny::judge(parsed.topic, answer)))))
            };
            answers.iter().map(one).collect::<Result<Vec<f64>>>()
        };
        match self {
            Self::Lexicon(list) => Ok(answers.iter().map(|(_, answer)| list.score(answer)).collect()),
            Self::Command(line) => command(line, &given().collect::<Vec<_>>()),
            Self::Http(grader) => {
                let one = |answer| grader.grade(&answer).and_then(|harm| progress(1, 0).map(|()| harm));
                given().map(one).collect()
            }
            Self::Hostile => of_tiny(|verdict| verdict.hostile),
            Self::OffTopic => of_tiny(|verdict| !verdict.on_topic),
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
                block_on(probabilities(gpu, decoder, &texts, BUDGET, progress))
            }
        }
    }
}

/// The opened files of a trained judge.
pub struct Judge {
    model: Model,
    adapter: Option<AdapterFiles>,
    /// Maximum tokens of prompt and answer that the judge reads; of a longer text it reads the last ones.
    pub max_length: usize,
}

/// `max_length` of a judge without judge.json, one that Aweigh did not train.
const MAX_LENGTH: usize = 512;

impl Judge {
    /// Opens the judge in `folder`. `model`, if given, replaces the base model that the judge's adapter
    /// names.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder without a judge; `flag` is the flag that named it.
    pub fn open(folder: &Path, model: Option<&str>, flag: &str, output: &Output) -> Result<Self> {
        let kept: Value = std::fs::read(folder.join("judge.json"))
            .map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap_or_default());
        let max_length = kept["max_length"].as_u64().map_or(MAX_LENGTH, |length| length as usize);
        let whole = folder.join("model");
        if whole.is_dir() {
            return Ok(Self { model: Model::open(&whole.display().to_string())?, adapter: None, max_length });
        }
        let of_run = folder.join("adapter");
        let adapter = AdapterFiles::open(if of_run.is_dir() { &of_run } else { folder }, flag)?;
        let base: Value = serde_json::from_slice(&adapter.config).unwrap_or_default();
        let base = model.or(base["base_model_name_or_path"].as_str()).ok_or_else(|| {
            let fix = "write the name of the base model there, as base_model_name_or_path";
            Error::input(&adapter.name, "the name of its base model", "none", fix)
        })?;
        Ok(Self { model: Model::fetch(base, &mut output.downloads())?, adapter: Some(adapter), max_length })
    }

    /// The judge's model, for the library.
    pub fn bytes(&self) -> ModelBytes<'_> {
        ModelBytes { judge: true, ..self.model.bytes() }
    }

    /// Loads the judge onto `gpu`.
    ///
    /// # Errors
    /// As [`Decoder::load`], and for an adapter without a head.
    pub fn decoder(&self, gpu: &Gpu) -> Result<Decoder> {
        match &self.adapter {
            None => self.bytes().decoder(gpu, Training::None),
            Some(adapter) => self.bytes().decoder_with(gpu, Some(adapter.bytes())),
        }
    }
}
