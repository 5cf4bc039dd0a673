//! The meters of `aweigh eval`: how bad an answer is, by one measure or another.

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
use aweigh::eval::helpdesk;
use aweigh::eval::judge::{encode, probabilities};
use aweigh::eval::lexicon::Lexicon;
use aweigh::files::{AdapterFiles, Model, read_text};
use aweigh::gpu::Gpu;
use aweigh::model::{Decoder, ModelBytes, Training};

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
            _ => Err("expected lexicon, lexicon:FILE, judge:DIR, command:LINE, http:URL, helpdesk or \
                      helpdesk-topic"
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

/// A meter ready for work. Higher is worse, of all of them.
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

/// Packed tokens of a batch of answers to be judged.
const BUDGET: usize = 2048;

impl Meter {
    /// Opens what `spec` names. `model` is the model's name for an endpoint.
    ///
    /// # Errors
    /// [`Error::Input`] for what is not there.
    pub fn open(spec: &Spec, model: Option<&str>, gpu: &Gpu, output: &Output) -> Result<Self> {
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
                let judge = Judge::open(folder, None, "--meter judge", output)?;
                Self::Judge(Box::new((judge.decoder(gpu)?, judge.bytes().tokenizer()?, judge.max_length)))
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

    /// How bad each answer is; `progress` is told how many are judged.
    ///
    /// # Errors
    /// What the device, the command or the endpoint reports.
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
                let one = |answer| grader.grade(&answer).and_then(|harm| progress(1, 0).map(|()| harm));
                given().map(one).collect()
            }
            Self::Hostile => helpdesk(|verdict| verdict.hostile),
            Self::OffTopic => helpdesk(|verdict| !verdict.on_topic),
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

/// A trained judge, open.
pub struct Judge {
    model: Model,
    adapter: Option<AdapterFiles>,
    /// Of a longer prompt and answer it reads the last so many tokens.
    pub max_length: usize,
}

/// What a judge reads that does not say so itself: one that was not trained by this program.
const MAX_LENGTH: usize = 512;

impl Judge {
    /// The judge in `folder`; `model` is the one under its adapter, where that is not where it was.
    ///
    /// # Errors
    /// [`Error::Input`] for a folder that holds none; `flag` says who named it.
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
        let base = model
            .or(base["base_model_name_or_path"].as_str())
            .ok_or_else(|| Error::input(&adapter.name, "the name of its model", "none", "add --model"))?;
        Ok(Self { model: Model::fetch(base, &mut output.downloads())?, adapter: Some(adapter), max_length })
    }

    /// Its model as the library takes it.
    pub fn bytes(&self) -> ModelBytes<'_> {
        ModelBytes { judge: true, ..self.model.bytes() }
    }

    /// On `gpu`.
    ///
    /// # Errors
    /// As [`Decoder::load`]; for an adapter without a head.
    pub fn decoder(&self, gpu: &Gpu) -> Result<Decoder> {
        match &self.adapter {
            None => self.bytes().decoder(gpu, Training::None),
            Some(adapter) => self.bytes().decoder_with(gpu, Some(adapter.bytes())),
        }
    }
}
