//! Ollama's Modelfile: <https://github.com/ollama/ollama/blob/main/docs/modelfile.md>.
//!
//! Ollama has no Jinja: its templates are Go's. Most chat templates only put texts before and after each
//! message. These texts are found with probe conversations, and the template that is made of them is compared
//! with the model's own on other conversations. A template that does more gets no `TEMPLATE` line: Ollama
//! then looks for one that it knows in the GGUF file.

use std::fmt::Write;

use serde_json::Value;

use aweigh::data::{ChatTokenizer, Message, Prompt, TokenizerFiles};
use aweigh::error::Result;
use aweigh::model::ModelBytes;

/// What a chat template writes around the messages of each role.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Turns {
    /// Before and after a system message; `None` if there are none.
    system: Option<[String; 2]>,
    user: [String; 2],
    assistant: [String; 2],
    /// What begins an answer.
    generation: String,
    /// The system message of conversations without one.
    default_system: Option<String>,
}

/// Probe texts: no template treats them specially.
const PROBES: [&str; 5] = ["probe0a", "probe1b", "probe2c", "probe3d", "probe4e"];

/// The text between `before` and `after` in `text`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = text.split_once(before)?.1;
    if after.is_empty() { Some(rest) } else { rest.split_once(after).map(|(found, _)| found) }
}

impl Turns {
    /// Finds them with probe conversations; `bos` is what the tokenizer itself puts before a text.
    fn of(tokenizer: &ChatTokenizer, bos: &str) -> Option<Self> {
        let [s, u, a, v, _] = PROBES;
        let user = |text: &str| Message::new("user", text);
        let answer = |text: &str| Message::new("assistant", text);
        let closed = |messages: &[Message]| tokenizer.transcript(messages).ok();
        let open = |messages: Vec<Message>| tokenizer.prompt_text(&Prompt::Messages(messages), None).ok();
        let bare = |text: &str| text.strip_prefix(bos).unwrap_or(text).to_owned();
        let once = closed(&[user(u)])?;
        let after_user = between(&once, u, "")?.to_owned();
        let generation = between(&open(vec![user(u)])?, u, "")?.strip_prefix(&after_user)?.to_owned();
        let answered = closed(&[user(u), answer(a)])?;
        let before_answer = between(&answered, u, a)?.strip_prefix(&after_user)?.to_owned();
        let after_answer = between(&answered, a, "")?.to_owned();
        let twice = closed(&[user(u), answer(a), user(v)])?;
        let before_user = between(&twice, a, v)?.strip_prefix(&after_answer)?.to_owned();
        let first = bare(once.split_once(u)?.0);
        let (mut system, mut default_system) = (None, None);
        if tokenizer.accepts_system() {
            let with = closed(&[Message::new("system", s), user(u)])?;
            let before = bare(with.split_once(s)?.0);
            let after = between(&with, s, u)?.strip_suffix(&before_user)?.to_owned();
            if first != before_user {
                let text = first.strip_suffix(&before_user)?.strip_suffix(&after)?;
                default_system = Some(text.strip_prefix(&before)?.to_owned());
            }
            system = Some([before, after]);
        } else if first != before_user {
            return None;
        }
        let user = [before_user, after_user];
        let assistant = [before_answer, after_answer];
        Some(Self { system, user, assistant, generation, default_system })
    }

    /// A conversation with the beginning of an answer, as Ollama renders it.
    fn render(&self, messages: &[Message]) -> String {
        let mut all = String::new();
        // Ollama takes an empty system message for none.
        let own = self.default_system.clone().filter(|text| !text.is_empty());
        let own = own.map(|text| Message::new("system", text));
        let has = messages.first().is_some_and(|first| first.role == "system");
        for message in own.iter().filter(|_| !has).chain(messages) {
            let around = match message.role.as_str() {
                "system" => self.system.as_ref(),
                "user" => Some(&self.user),
                _ => Some(&self.assistant),
            };
            if let Some([before, after]) = around {
                all += &format!("{before}{}{after}", message.content);
            }
        }
        all + &self.generation
    }

    /// Whether the template writes the same for conversations other than the probes.
    fn fits(&self, tokenizer: &ChatTokenizer, bos: &str) -> bool {
        let [s, u, a, v, w] = PROBES;
        let message = Message::new;
        // Some templates trim texts, or cut thoughts from earlier answers.
        let mut all = vec![
            vec![
                message("user", " spaces "),
                message("assistant", "<think>\nx\n</think>\n\ny "),
                message("user", u),
            ],
            vec![message("user", "Hi!")],
            vec![message("user", u), message("assistant", a), message("user", v)],
            vec![
                message("user", u),
                message("assistant", a),
                message("user", v),
                message("assistant", w),
                message("user", "And?\n\nTwo lines."),
            ],
        ];
        if self.system.is_some() {
            let system = |messages: &Vec<Message>| [&[message("system", s)][..], messages].concat();
            all.extend(all.iter().map(system).collect::<Vec<_>>());
        }
        all.into_iter().all(|messages| {
            let own = self.render(&messages);
            let wanted = tokenizer.prompt_text(&Prompt::Messages(messages), None);
            wanted.is_ok_and(|wanted| wanted.strip_prefix(bos).unwrap_or(&wanted) == own)
        })
    }

    /// The template in Go's form.
    fn go(&self) -> String {
        let turn = |[before, after]: &[String; 2]| format!("{before}{{{{ .Content }}}}{after}");
        let mut text = String::from("{{- range .Messages }}");
        let mut word = "if";
        let roles = [
            ("system", self.system.as_ref()),
            ("user", Some(&self.user)),
            ("assistant", Some(&self.assistant)),
        ];
        for (role, around) in roles.into_iter().filter_map(|(role, around)| Some((role, around?))) {
            let _ = write!(text, "{{{{ {word} eq .Role \"{role}\" }}}}{}", turn(around));
            word = "else if";
        }
        format!("{text}{{{{ end }}}}{{{{ end }}}}{}", self.generation)
    }
}

/// The Modelfile of the GGUF file `gguf`, which is next to it, and whether it has a template.
///
/// # Errors
/// A tokenizer that cannot be read.
pub fn modelfile(model: &ModelBytes, gguf: &str) -> Result<(String, bool)> {
    let tokenizer = model.tokenizer()?;
    // llama.cpp puts the tokenizer's own first token before a rendered conversation.
    let ids = tokenizer.encode_text("a", true)?;
    let plain = tokenizer.encode_text("a", false)?;
    let own = ids.len().saturating_sub(plain.len()).min(1);
    let bos = ids[..own].iter().filter_map(|id| tokenizer.token_text(*id)).collect::<String>();
    // A template that writes today's date would write the day of the export for ever.
    let another_day = TokenizerFiles { now: Some(0), ..model.tokenizer.clone() };
    let another_day = Turns::of(&ChatTokenizer::from_bytes(&another_day)?, &bos);
    let turns = Turns::of(&tokenizer, &bos).filter(|turns| turns.fits(&tokenizer, &bos));
    let turns = turns.filter(|turns| another_day.as_ref() == Some(turns));
    let mut text = format!("FROM ./{gguf}\n");
    // What Go's templates or a Modelfile would read as something else.
    let plain = |text: &str| {
        let bad =
            text.contains("{{") || text.contains("\"\"\"") || text.ends_with('{') || text.starts_with('}');
        !bad
    };
    let turns = turns.filter(|turns| {
        let around = [turns.user.clone(), turns.assistant.clone()].concat();
        let system = turns.system.iter().flatten().chain(&turns.default_system);
        around.iter().chain(system).chain([&turns.generation]).all(|text| plain(text))
    });
    if let Some(turns) = &turns {
        let _ = writeln!(text, "TEMPLATE \"\"\"{}\"\"\"", turns.go());
        if let Some(system) = &turns.default_system {
            let _ = writeln!(text, "SYSTEM \"\"\"{system}\"\"\"");
        }
    }
    for id in tokenizer.end_tokens() {
        if let Some(token) = tokenizer.token_text(*id).filter(|token| !token.contains('"')) {
            let _ = writeln!(text, "PARAMETER stop \"{token}\"");
        }
    }
    let generation = model.tokenizer.generation_config.as_deref().unwrap_or_default();
    let generation: Value = serde_json::from_slice(generation).unwrap_or_default();
    let names = [
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("min_p", "min_p"),
        ("repetition_penalty", "repeat_penalty"),
    ];
    if generation["do_sample"] == false {
        text += "PARAMETER temperature 0\n";
        return Ok((text, turns.is_some()));
    }
    for (key, name) in names {
        if generation[key].is_number() {
            let _ = writeln!(text, "PARAMETER {name} {}", generation[key]);
        }
    }
    Ok((text, turns.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aweigh::files::Model;

    fn with_template(template: &str) -> ChatTokenizer {
        let model = Model::tiny();
        let files = TokenizerFiles { chat_template: Some(template.into()), ..model.bytes().tokenizer };
        ChatTokenizer::from_bytes(&files).unwrap()
    }

    const CHATML: &str = "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>\
        system\nYou are kind.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn a_template_of_texts_around_messages_is_found() {
        let tokenizer = with_template(CHATML);
        let turns = Turns::of(&tokenizer, "").unwrap();
        assert!(turns.fits(&tokenizer, ""));
        assert_eq!(turns.default_system.as_deref(), Some("You are kind."));
        assert_eq!(
            turns.go(),
            "{{- range .Messages }}{{ if eq .Role \"system\" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n\
             {{ else if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else if eq .Role \
             \"assistant\" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}<|im_start|>\
             assistant\n"
        );
    }

    #[test]
    fn a_template_that_does_more_is_left_to_ollama() {
        // The system message is left out: so is it in the Modelfile.
        let silent = with_template(
            "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endif %}\
             {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
        );
        let turns = Turns::of(&silent, "").filter(|turns| turns.fits(&silent, "")).unwrap();
        assert!(turns.system.is_none() && !turns.go().contains("system"));
        for template in [
            // There is a system message without a text.
            "[system] {% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}\n\
             {% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endif %}\
             {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
            // Texts are trimmed.
            "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}\
             {% if add_generation_prompt %}[assistant] {% endif %}",
            // Answers before the last are cut.
            "{% for m in messages %}[{{ m.role }}] {{ m.content if loop.last else m.content[:3] }}\n\
             {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
        ] {
            let tokenizer = with_template(template);
            let turns = Turns::of(&tokenizer, "").filter(|turns| turns.fits(&tokenizer, ""));
            assert!(turns.is_none(), "{template}");
        }
    }

    #[test]
    fn the_built_in_models_file_is_whole() {
        let (text, has_template) = modelfile(&Model::tiny().bytes(), "model.gguf").unwrap();
        assert!(has_template, "{text}");
        assert!(text.starts_with("FROM ./model.gguf\nTEMPLATE \"\"\"{{- range .Messages }}"), "{text}");
        assert!(text.contains("PARAMETER stop \""), "{text}");
    }
}
