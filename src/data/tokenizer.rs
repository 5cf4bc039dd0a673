//! Text to token ids and back, as transformers does it, with the chat template and the end-of-turn tokens.

use tokenizers::Tokenizer;

use super::template::ChatTemplate;
use super::tokenizer_files::{TokenizerFacts, TokenizerFiles};
use super::{Completion, Message, Prompt, clock};
use crate::error::{Error, Result, setting};

/// A model's tokenizer with its chat template.
#[derive(Debug)]
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    turn: TurnEnd,
    end_tokens: Vec<u32>,
    eos: Option<u32>,
    /// The template accepts a system message.
    system_role: bool,
    /// A text encoded by itself gets a space in front (SentencePiece's "dummy prefix").
    prepends_space: bool,
    origin: String,
    of_gguf: bool,
    /// Remarks on the tokenizer or the template, for the user.
    remarks: Vec<String>,
}

/// How the template opens and closes an assistant's answer.
#[derive(Clone, Debug, Default)]
struct TurnEnd {
    /// The text between the generation prompt and the answer: nothing, a space, or an empty thinking block.
    lead: String,
    /// All text that the template writes after the answer: `<|im_end|>\n`.
    tail: String,
    /// The tail up to and including its first special token (or, if it has no special one, its first added
    /// token): `<|im_end|>`. Empty when the tail has neither.
    text: String,
    /// That token, or the eos token when the tail has none.
    id: Option<u32>,
}

impl ChatTokenizer {
    /// Reads the tokenizer, and learns how the template writes an answer by rendering probe conversations.
    ///
    /// Truncation and padding that `tokenizer.json` may ask for are switched off. Fails, naming the file, on
    /// invalid JSON or a template that does not compile.
    pub fn from_bytes(files: &TokenizerFiles) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            let fix = "download the model's tokenizer.json again (a SentencePiece tokenizer.model must be \
                       converted first)";
            Error::input(files.place("tokenizer.json"), "a tokenizer of the tokenizers library", error, fix)
        };
        // The tokenizers library panics on some invalid JSON.
        serde_json::from_slice::<serde_json::Value>(&files.tokenizer).map_err(|error| wrong(&error))?;
        let mut tokenizer = Tokenizer::from_bytes(&files.tokenizer).map_err(|error| wrong(&error))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| encoding(&files.origin, &error))?;
        let facts = TokenizerFacts::read(files)?;
        let template = match &facts.template {
            Some((source, file)) => {
                let place = format!("{file}: chat template");
                let now = files.now.or_else(clock::now);
                Some(ChatTemplate::new(source, &facts.specials, &files.template_args, now, &place)?)
            }
            None => None,
        };
        let by_text = facts.specials.get("eos_token").and_then(|token| tokenizer.token_to_id(token));
        let eos = by_text.or(facts.eos_ids.first().copied());
        let mut this = Self {
            tokenizer,
            template,
            turn: TurnEnd { id: eos, ..TurnEnd::default() },
            end_tokens: Vec::new(),
            eos,
            system_role: false,
            prepends_space: false,
            origin: files.origin.clone(),
            of_gguf: files.of_gguf,
            remarks: Vec::new(),
        };
        this.remark_unknown(&facts.added);
        let first = this.encode_text("a", false)?.first().and_then(|id| this.token_text(*id));
        this.prepends_space = first.is_some_and(|token| token.starts_with(['▁', 'Ġ']));
        this.learn_template();
        for id in this.turn.id.into_iter().chain(eos).chain(facts.eos_ids) {
            if !this.end_tokens.contains(&id) {
                this.end_tokens.push(id);
            }
        }
        Ok(this)
    }

    /// Renders probe conversations to learn what follows an answer, and whether a system message appears.
    fn learn_template(&mut self) {
        const PROBE: &str = "probe7e1d";
        let Some(template) = &self.template else { return };
        let asked = Message::new("user", "a");
        let system = [Message::new("system", PROBE), asked.clone()];
        self.system_role = template.render(&system, true).is_ok_and(|text| text.contains(PROBE));
        // A template that refuses even these probes fails again, with an error, on the user's messages.
        let Ok(before) = template.render(std::slice::from_ref(&asked), true) else { return };
        let closed = template.render(std::slice::from_ref(&asked), false);
        let Ok(text) = template.render(&[asked, Message::new("assistant", PROBE)], false) else { return };
        let Some((head, tail)) = text.rsplit_once(PROBE) else { return };
        let mut found: Option<(bool, usize, usize, u32)> = None; // plain, start, end, id
        for (id, token) in self.tokenizer.get_added_tokens_decoder() {
            let Some(start) = tail.find(&token.content).filter(|_| !token.content.trim().is_empty()) else {
                continue;
            };
            let (plain, end) = (!token.special, start + token.content.len());
            // A special token is preferred, then the first, then the longer of two at one place, then the
            // lower id (the map has no order).
            if found.is_none_or(|(p, s, e, i)| (plain, start, e, id) < (p, s, end, i)) {
                found = Some((plain, start, end, id));
            }
        }
        let found = found.map(|(_, start, end, id)| (start, end, id));
        self.turn.lead = head.strip_prefix(&before).unwrap_or_default().to_owned();
        self.turn.tail = tail.to_owned();
        if closed.is_ok_and(|closed| closed == before) && !self.turn.lead.trim().is_empty() {
            self.remarks.push(format!(
                "{}: the chat template has no generation prompt (add_generation_prompt changes nothing): \
                 {:?} will be sampled and scored as the beginning of each answer; give a template that \
                 writes it with {}",
                self.origin,
                self.turn.lead,
                setting("chat_template")
            ));
        }
        if let Some((_, end, id)) = found {
            self.turn.text = tail[..end].to_owned();
            self.turn.id = Some(id);
        }
    }

    /// Adds a remark if tokenizer.json lacks a token that tokenizer_config.json adds, or gives it another id.
    /// transformers would add the token.
    fn remark_unknown(&mut self, added: &[(u32, String)]) {
        let unknown = |(id, token): &&(u32, String)| self.tokenizer.token_to_id(token) != Some(*id);
        let Some((id, token)) = added.iter().find(unknown) else { return };
        let own = self.tokenizer.token_to_id(token);
        let own = own.map_or("has no such token".into(), |own| format!("gives it the id {own}"));
        self.remarks.push(format!(
            "{}: tokenizer_config.json says that token {id} is {token:?}, and tokenizer.json {own}: texts \
             may be split into other tokens than in transformers; save the tokenizer again with transformers",
            self.origin
        ));
    }

    /// Remarks on the tokenizer or the chat template, for the user: one sentence each. Both can still be
    /// used.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The number of token ids, added tokens included. A model's embedding may have more rows (padding).
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Every id that ends a turn: the template's own end-of-turn token first, then eos of the tokenizer,
    /// `generation_config.json` and `config.json`. Empty when none of them names one.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The token as written in the vocabulary (`Ġthe`, `▁the`, `<|im_end|>`), or None for an unknown id.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Whether a token is one of the tokenizer's special tokens, which are not part of any text.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// True when there is a chat template, so that conversational rows can be used.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// True when the chat template shows a system message.
    pub fn accepts_system(&self) -> bool {
        self.system_role
    }

    /// The ids of `text`. With `add_special`, the tokenizer's own special tokens (such as a leading `<s>`)
    /// are added.
    pub fn encode_text(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoded = self.tokenizer.encode_fast(text, add_special);
        encoded.map(|e| e.get_ids().to_vec()).map_err(|error| encoding(&self.origin, &error))
    }

    /// The text of `ids`; `skip_special` leaves special tokens out. Ids outside the vocabulary are left out
    /// too. (transformers' `clean_up_tokenization_spaces` is not applied.)
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special).map_err(|error| {
            Error::input(&self.origin, "token ids that form a text", error, "check the token ids")
        })
    }

    /// The text of a sampled answer to `prompt`: `ids` without special tokens and without the token that
    /// ended the answer.
    ///
    /// Some tokenizers put a space in front of every text and remove it again when they decode. The answer is
    /// decoded together with its prompt, so that a space at its beginning is kept.
    pub fn decode_answer(&self, prompt: &[u32], ids: &[u32]) -> Result<String> {
        let words = match ids.split_last() {
            Some((last, rest)) if self.end_tokens.contains(last) => rest,
            _ => ids,
        };
        let before = self.decode(prompt, true)?;
        let whole = self.decode(&[prompt, words].concat(), true)?;
        match whole.strip_prefix(&before) {
            Some(answer) => Ok(answer.to_owned()),
            None => self.decode(words, true),
        }
    }

    /// The prompt as the model reads it: the rendered conversation with the generation prompt, or the text.
    /// `system` as in [`Self::encode_prompt`].
    pub fn prompt_text(&self, prompt: &Prompt, system: Option<&str>) -> Result<String> {
        let placed = system.map(|instruction| prompt.with_instruction(instruction, self.system_role));
        match placed.as_ref().unwrap_or(prompt) {
            Prompt::Text(text) => Ok(text.clone()),
            Prompt::Messages(messages) => self.require_template()?.render(messages, true),
        }
    }

    /// A whole conversation as the chat template renders it, without the beginning of another answer.
    ///
    /// # Errors
    /// A model without a template, or a template that refuses the conversation.
    pub fn transcript(&self, messages: &[Message]) -> Result<String> {
        self.require_template()?.render(messages, false)
    }

    /// The prompt's ids. A conversation is rendered with the generation prompt and encoded without the
    /// tokenizer's own special tokens, because the template writes them; a text is encoded with them.
    ///
    /// `system` is a safety instruction, placed in the prompt for sampling only; see
    /// [`Prompt::with_instruction`] for where it goes. It replaces a default system message that the template
    /// would write. Fails if a conversation has no template, or the template refuses it.
    pub fn encode_prompt(&self, prompt: &Prompt, system: Option<&str>) -> Result<Vec<u32>> {
        let text = self.prompt_text(prompt, system)?;
        let mut ids = self.encode_text(&text, !prompt.is_conversational())?;
        // Some tokenizers add an end token to every text. It is removed, because the answer follows.
        if !prompt.is_conversational() && ids.last().is_some_and(|last| self.end_tokens.contains(last)) {
            let bare = self.encode_text(&text, false)?;
            let behind = (0..ids.len()).find(|&n| ids[..ids.len() - n].ends_with(&bare)).unwrap_or(0);
            ids.truncate(ids.len() - behind);
        }
        Ok(ids)
    }

    /// The ids of an answer to `prompt`: the end-of-turn token is the last, and nothing follows it. An answer
    /// that [was cut](Completion::is_cut) has no such token.
    ///
    /// Conversation: what rendering the whole conversation adds to the rendered prompt, up to and including
    /// the end-of-turn token. Some templates render the prompt differently once it is answered: one opens a
    /// thinking block in the generation prompt, or shows the system message beside the last question only.
    /// In that case the answer's own text is used, between the texts that the template writes before and
    /// after an answer in a probe conversation. Text: the answer and the eos token.
    ///
    /// The answer is encoded by itself, so its ids do not depend on the prompt, as sampling requires. Only a
    /// tokenizer that puts a space in front of every text gets the prompt as context, to keep that space out.
    pub fn encode_completion(&self, prompt: &Prompt, completion: &Completion) -> Result<Vec<u32>> {
        let before = self.prompt_text(prompt, None)?;
        let (text, end) = match prompt {
            Prompt::Text(_) => (completion.text().to_owned(), self.eos),
            Prompt::Messages(messages) => (self.answer_text(&before, messages, completion)?, self.turn.id),
        };
        let end = end.ok_or_else(|| {
            let (found, fix) = match self.of_gguf {
                true => ("no tokenizer.ggml.eos_token_id", "use the model's Hugging Face directory instead"),
                false => (
                    "no eos_token in tokenizer_config.json and no eos_token_id in the configs",
                    "add \"eos_token\" to tokenizer_config.json",
                ),
            };
            Error::input(&self.origin, "a token that ends an answer", found, fix)
        })?;
        if completion.is_cut() {
            let open = text.strip_suffix(&self.turn.text).unwrap_or(&text);
            let mut ids = self.encode_after(&before, open)?;
            ids.pop_if(|last| *last == end);
            return Ok(ids);
        }
        let mut ids = self.encode_after(&before, &text)?;
        if ids.last() != Some(&end) {
            ids.push(end);
        }
        Ok(ids)
    }

    /// The answer as the template writes it after `before`, up to and including the end-of-turn token's text.
    fn answer_text(&self, before: &str, messages: &[Message], completion: &Completion) -> Result<String> {
        let (answer, mut whole) = (completion.text(), messages.to_vec());
        whole.push(match completion {
            Completion::Messages(own) if !own.is_empty() => own[own.len() - 1].clone(),
            _ => Message::new("assistant", answer),
        });
        let rendered = self.require_template()?.render(&whole, false)?;
        let same = rendered.chars().zip(before.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(a, _)| a.len_utf8()).sum();
        let (suffix, open) = (&rendered[same..], &before[same..]);
        // An answer with a thinking block of its own does not get the empty block that others get.
        let bare = |body: &str| body.trim() == answer.trim();
        if !open.trim().is_empty() && !suffix.strip_suffix(&self.turn.tail).is_some_and(bare) {
            return Ok(format!("{}{answer}{}", self.turn.lead, self.turn.text));
        }
        if let Some(body) = suffix.strip_suffix(&self.turn.tail) {
            return Ok(format!("{body}{}", self.turn.text));
        }
        let end = self.turn.text.trim_start();
        let cut = suffix.rfind(end).filter(|_| !end.is_empty()).map_or(suffix.len(), |at| at + end.len());
        Ok(suffix[..cut].to_owned())
    }

    /// The ids of `text` when it follows `before`.
    fn encode_after(&self, before: &str, text: &str) -> Result<Vec<u32>> {
        if self.prepends_space {
            // The context is the prompt, or a line break where the prompt's end would merge with the answer.
            for context in [before, "\n"] {
                let left = self.encode_text(context, false)?;
                let joint = self.encode_text(&format!("{context}{text}"), false)?;
                if let Some(ids) = joint.strip_prefix(left.as_slice()).filter(|_| !left.is_empty()) {
                    return Ok(ids.to_vec());
                }
            }
        }
        self.encode_text(text, false)
    }

    fn require_template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            let found = match self.of_gguf {
                true => "no tokenizer.chat_template in its metadata",
                false => "none in tokenizer_config.json and no chat_template.jinja",
            };
            let template = setting("chat_template");
            let fix = format!("give one with {template}, or prompts and answers as plain strings");
            Error::input(&self.origin, "a chat template, as the prompts are conversations", found, fix)
        })
    }
}

fn encoding(origin: &str, error: &dyn std::fmt::Display) -> Error {
    Error::input(origin, "text that the tokenizer can encode", error, "check tokenizer.json")
}

#[cfg(test)]
mod tests;
