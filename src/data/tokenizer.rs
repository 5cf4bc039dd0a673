//! Text to token ids and back, as transformers does it, with the chat template and the ends of turns.

use tokenizers::Tokenizer;

use super::template::ChatTemplate;
use super::tokenizer_files::{TokenizerFacts, TokenizerFiles};
use super::{Completion, Message, Prompt, clock};
use crate::error::{Error, Result};

/// A model's tokenizer with its chat template.
#[derive(Debug)]
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    turn: TurnEnd,
    end_tokens: Vec<u32>,
    eos: Option<u32>,
    /// The template takes a system message of its own.
    system_role: bool,
    /// A text encoded by itself gets a space in front (SentencePiece's "dummy prefix").
    prepends_space: bool,
    origin: String,
    of_gguf: bool,
    /// What is odd about the tokenizer or the template.
    remarks: Vec<String>,
}

/// How the template opens and closes an assistant's answer.
#[derive(Clone, Debug, Default)]
struct TurnEnd {
    /// What it writes between the generation prompt and the answer: nothing, a space, an empty thought.
    lead: String,
    /// All that the template writes after the answer: `<|im_end|>\n`.
    tail: String,
    /// The tail up to and with its first special token: `<|im_end|>`. Empty when the tail has none.
    text: String,
    /// That token, or the eos token when the tail has none.
    id: Option<u32>,
}

impl ChatTokenizer {
    /// Reads the tokenizer and learns the template's ways by rendering two probe conversations.
    ///
    /// Truncation and padding that `tokenizer.json` may ask for are switched off. Fails, naming the file, on
    /// broken JSON or a template that does not compile.
    pub fn from_bytes(files: &TokenizerFiles) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            let fix = "take the model's tokenizer.json again (a SentencePiece tokenizer.model must be \
                       converted first)";
            Error::input(files.place("tokenizer.json"), "a tokenizer of the tokenizers library", error, fix)
        };
        // The library panics on some of what is no JSON.
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

    /// Renders probes: what follows an answer, and whether a system message arrives.
    fn learn_template(&mut self) {
        const PROBE: &str = "probe7e1d";
        let Some(template) = &self.template else { return };
        let asked = Message::new("user", "a");
        let system = [Message::new("system", PROBE), asked.clone()];
        self.system_role = template.render(&system, true).is_ok_and(|text| text.contains(PROBE));
        // A template that refuses even these probes will say so again, with the user's messages.
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
            // A special one, the first, and of two at one place the longer (then the lower id, as the map has
            // no order).
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
                 writes it with --chat-template FILE",
                self.origin, self.turn.lead
            ));
        }
        if let Some((_, end, id)) = found {
            self.turn.text = tail[..end].to_owned();
            self.turn.id = Some(id);
        }
    }

    /// Notes tokens that tokenizer_config.json adds, and that tokenizer.json splits or numbers otherwise:
    /// transformers would add them.
    fn remark_unknown(&mut self, added: &[(u32, String)]) {
        let unknown = |(id, token): &&(u32, String)| self.tokenizer.token_to_id(token) != Some(*id);
        let Some((id, token)) = added.iter().find(unknown) else { return };
        let own = self.tokenizer.token_to_id(token);
        let own = own.map_or("has no such token".into(), |own| format!("numbers it {own}"));
        self.remarks.push(format!(
            "{}: tokenizer_config.json says that token {id} is {token:?}, and tokenizer.json {own}: tokens \
             may be split otherwise than in transformers; save the tokenizer again with transformers",
            self.origin
        ));
    }

    /// What is odd about the tokenizer or the chat template, though it can be used: one sentence each.
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

    /// The token as it stands in the vocabulary (`Ġthe`, `▁the`, `<|im_end|>`), or None for an unknown id.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Whether a token is one of the tokenizer's special ones, which no text is made of.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// True when there is a chat template, so that conversational rows can be used.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// True when the chat template gives a system message a place of its own.
    pub fn accepts_system(&self) -> bool {
        self.system_role
    }

    /// The ids of `text`. With `add_special` the tokenizer's own frame (such as a leading `<s>`) is added.
    pub fn encode_text(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoded = self.tokenizer.encode_fast(text, add_special);
        encoded.map(|e| e.get_ids().to_vec()).map_err(|error| encoding(&self.origin, &error))
    }

    /// The text of `ids`; `skip_special` leaves special tokens out. Ids past the vocabulary are left out too.
    /// (transformers' `clean_up_tokenization_spaces` is not applied.)
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special).map_err(|error| {
            Error::input(&self.origin, "token ids that form a text", error, "check the token ids")
        })
    }

    /// The words of a drawn answer to `prompt`: `ids` without special tokens and without the token that ended
    /// it.
    ///
    /// Tokenizers that put a space in front of every text take it away from every text, too; decoded behind
    /// its prompt the answer keeps it.
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

    /// The prompt's ids. A conversation is rendered with the generation prompt and encoded without the
    /// tokenizer's frame (the template writes it); a text is encoded with the frame.
    ///
    /// `system` is a safety instruction, placed in the prompt for sampling only; see
    /// [`Prompt::with_instruction`] for where it goes. It takes the place of a default system message that
    /// the template would write. Fails when a conversation meets no template or one that refuses it.
    pub fn encode_prompt(&self, prompt: &Prompt, system: Option<&str>) -> Result<Vec<u32>> {
        let text = self.prompt_text(prompt, system)?;
        let mut ids = self.encode_text(&text, !prompt.is_conversational())?;
        // A frame that closes a text: nothing follows an end, and here the answer does.
        if !prompt.is_conversational() && ids.last().is_some_and(|last| self.end_tokens.contains(last)) {
            let bare = self.encode_text(&text, false)?;
            let behind = (0..ids.len()).find(|&n| ids[..ids.len() - n].ends_with(&bare)).unwrap_or(0);
            ids.truncate(ids.len() - behind);
        }
        Ok(ids)
    }

    /// The ids of an answer to `prompt`: the end-of-turn token is the last, and nothing follows it.
    ///
    /// Conversation: what rendering the whole adds to the rendered prompt, up to the end-of-turn token. A
    /// template that renders the prompt differently once it is answered (one that opens a thought in the
    /// generation prompt, or shows the system message beside the last question only) gets the answer's own
    /// words between what it writes around an answer elsewhere. Text: the answer and the eos token.
    ///
    /// The answer is encoded by itself, so its ids do not depend on the prompt, as sampling needs it. Only a
    /// tokenizer that puts a space in front of every text gets the prompt as context, to keep that space out.
    pub fn encode_completion(&self, prompt: &Prompt, completion: &Completion) -> Result<Vec<u32>> {
        let before = self.prompt_text(prompt, None)?;
        let (text, end) = match prompt {
            Prompt::Text(_) => (completion.text().to_owned(), self.eos),
            Prompt::Messages(messages) => (self.answer_text(&before, messages, completion)?, self.turn.id),
        };
        let end = end.ok_or_else(|| {
            let (found, fix) = match self.of_gguf {
                true => ("no tokenizer.ggml.eos_token_id", "take the model's Hugging Face directory instead"),
                false => (
                    "no eos_token in tokenizer_config.json and no eos_token_id in the configs",
                    "add \"eos_token\" to tokenizer_config.json",
                ),
            };
            Error::input(&self.origin, "a token that ends an answer", found, fix)
        })?;
        let mut ids = self.encode_after(&before, &text)?;
        if ids.last() != Some(&end) {
            ids.push(end);
        }
        Ok(ids)
    }

    /// The answer as the template writes it after `before`, up to and with the end-of-turn token's text.
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
        // An answer that brings a thought of its own does not get the empty one that others get.
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

    /// The ids of `text` where it follows `before`.
    fn encode_after(&self, before: &str, text: &str) -> Result<Vec<u32>> {
        if self.prepends_space {
            // The prompt itself, or where its last token would merge with the answer, a neutral line break.
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
            let fix = "give one with --chat-template FILE, or prompts and answers as plain strings";
            Error::input(&self.origin, "a chat template, as the prompts are conversations", found, fix)
        })
    }
}

fn encoding(origin: &str, error: &dyn std::fmt::Display) -> Error {
    Error::input(origin, "text that the tokenizer can encode", error, "check tokenizer.json")
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
