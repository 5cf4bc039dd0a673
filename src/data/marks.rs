//! Marks in a flagged answer: which of its tokens are to be pushed away, and how much.

use serde_json::Value;

use super::jsonl::kind;
use super::tokenizer::ChatTokenizer;
use crate::error::{Error, Result};

/// The key `weights` of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Marks {
    /// A weight for each token of the answer. The end token's may be missing: it is then 0.
    Tokens(Vec<f32>),
    /// Ranges of characters [start, end) of the answer's text, each with a weight. Other tokens have the
    /// weight 0, and tokens in several ranges the largest.
    Spans(Vec<(usize, usize, f32)>),
}

impl Marks {
    /// Reads `[w, w, ...]`, or `[[start, end], [start, end, w], ...]`. `place` is for errors.
    pub(super) fn parse(value: &Value, place: &str) -> Result<Self> {
        let wrong = |found: String| {
            Err(Error::input(
                format!("{place}: weights"),
                "a list of numbers from 0 on, one per token, or of [start, end] or [start, end, weight] in \
                 characters",
                found,
                "write [[12, 40]] to mark 28 characters of the answer",
            ))
        };
        let Value::Array(items) = value else { return wrong(kind(value).into()) };
        let weight = |value: &Value| value.as_f64().filter(|w| w.is_finite() && *w >= 0.0).map(|w| w as f32);
        let span = |item: &Value| {
            let list = item.as_array().filter(|list| (2..=3).contains(&list.len()))?;
            let at = |i: usize| list[i].as_u64().map(|at| at as usize);
            let (start, end) = (at(0)?, at(1)?);
            (start < end).then_some((start, end, list.get(2).map_or(Some(1.0), weight)?))
        };
        if items.is_empty() {
            return wrong("an empty list".into());
        }
        let found =
            |i: Option<usize>| i.map_or(String::new(), |i| format!("{} in place {}", items[i], i + 1));
        if items[0].is_number() {
            return match items.iter().map(weight).collect() {
                Some(weights) => Ok(Self::Tokens(weights)),
                None => wrong(found(items.iter().position(|item| weight(item).is_none()))),
            };
        }
        match items.iter().map(span).collect() {
            Some(spans) => Ok(Self::Spans(spans)),
            None => wrong(found(items.iter().position(|item| span(item).is_none()))),
        }
    }

    /// The weight of each token of the answer `ids` to `prompt`, whose text was written as `text`. A token
    /// counts to a range if one of its characters lies in it.
    ///
    /// # Errors
    /// Weights of another number of tokens; ranges outside the text; marks of which no token has any.
    pub fn of_tokens(
        &self,
        tokenizer: &ChatTokenizer,
        prompt: &[u32],
        ids: &[u32],
        text: &str,
    ) -> Result<Vec<f32>> {
        let ends = ids.last().is_some_and(|last| tokenizer.end_tokens().contains(last));
        let body = ids.len() - usize::from(ends);
        let fix = "remove the row's weights, or write them for this answer and this tokenizer";
        let weights = match self {
            Self::Tokens(weights) => {
                if weights.len() != ids.len() && weights.len() != body {
                    let expected = format!("{body} numbers, one per token of the answer");
                    let found = format!("{} numbers", weights.len());
                    return Err(Error::input("weights", expected, found, fix));
                }
                let mut weights = weights.clone();
                weights.resize(ids.len(), 0.0);
                weights
            }
            Self::Spans(spans) => {
                let length = text.chars().count();
                if let Some((start, end, _)) = spans.iter().find(|(_, end, _)| *end > length) {
                    let (expected, found) = (format!("ranges within {length} characters"), [start, end]);
                    return Err(Error::input("weights", expected, format!("{found:?}"), fix));
                }
                let decoded = |count: usize| tokenizer.decode_answer(prompt, &ids[..count]);
                // A template may write something before the answer's own text.
                let whole = decoded(body)?;
                let before = whole.find(text.trim()).map(|at| whole[..at].chars().count());
                let before = before.ok_or_else(|| {
                    let found = format!("{whole:?} after tokenizing it");
                    Error::input("weights", "an answer whose tokens spell its text", found, fix)
                })?;
                let trimmed = length - text.trim_start().chars().count();
                // A character of several tokens is complete with the last of them.
                let chars = |count| -> Result<usize> {
                    Ok(decoded(count)?.trim_end_matches(char::REPLACEMENT_CHARACTER).chars().count())
                };
                let mut from = 0;
                let mut weights = Vec::with_capacity(ids.len());
                for count in 1..=body {
                    let to = chars(count)?;
                    let [start, end] =
                        [from, to.max(from + 1)].map(|at| (at + trimmed) as i64 - before as i64);
                    let within = |(s, e, _): &&(usize, usize, f32)| (*s as i64) < end && start < *e as i64;
                    weights.push(spans.iter().filter(within).map(|(.., w)| *w).fold(0.0, f32::max));
                    from = to;
                }
                weights.resize(ids.len(), 0.0);
                weights
            }
        };
        if weights.iter().all(|w| *w == 0.0) {
            return Err(Error::input("weights", "a token with a weight above 0", "none", fix));
        }
        Ok(weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{ids, letters, load, smollm2};
    use crate::data::{Completion, Message, Prompt};

    fn parse(text: &str) -> Result<Marks> {
        Marks::parse(&serde_json::from_str(text).expect("JSON"), "rows.jsonl:3")
    }

    #[test]
    fn marks_are_numbers_or_ranges() {
        assert_eq!(parse("[0, 1, 0.5]").unwrap(), Marks::Tokens(vec![0.0, 1.0, 0.5]));
        assert_eq!(parse("[[2, 5], [7, 9, 0.5]]").unwrap(), Marks::Spans(vec![(2, 5, 1.0), (7, 9, 0.5)]));
        for (bad, found) in [
            ("[]", "an empty list"),
            ("\"x\"", "a string"),
            ("[1, -1]", "-1 in place 2"),
            ("[[5, 2]]", "[5,2] in place 1"),
            ("[[1, 2], 3]", "3 in place 2"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("rows.jsonl:3: weights") && error.contains(found), "{error}");
        }
    }

    #[test]
    fn ranges_become_weights_of_characters() {
        let tokenizer = ChatTokenizer::from_bytes(&letters(None)).unwrap();
        let (prompt, answer) = (ids("ask"), [&ids(" bad. ok")[..], &[2]].concat());
        let of = |marks: &str| parse(marks).unwrap().of_tokens(&tokenizer, &prompt, &answer, " bad. ok");
        assert_eq!(of("[[1, 4]]").unwrap(), [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(of("[[0, 1, 0.5], [7, 8]]").unwrap(), [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert!(of("[[7, 9]]").unwrap_err().to_string().contains("[7, 9]"));
    }

    #[test]
    #[ignore = "needs real data: cargo xtask test finds it"]
    fn ranges_become_weights_of_smollm2s_tokens() {
        let tokenizer = load(&smollm2());
        let (prompt, text) = (Prompt::Messages(vec![Message::new("user", "Hi")]), "Nö, you idiot! Go away.");
        let completion = Completion::Messages(vec![Message::new("assistant", text)]);
        let prompt_ids = tokenizer.encode_prompt(&prompt, None).unwrap();
        let answer = tokenizer.encode_completion(&prompt, &completion).unwrap();
        let of = |marks: &str| parse(marks).unwrap().of_tokens(&tokenizer, &prompt_ids, &answer, text);
        let marked = |marks: &str| {
            let weights = of(marks).unwrap();
            let kept = answer.iter().zip(&weights).filter(|(_, w)| **w > 0.0).map(|(id, _)| *id);
            tokenizer.decode(&kept.collect::<Vec<u32>>(), false).unwrap()
        };
        assert_eq!(marked("[[8, 13]]"), " idiot");
        // A range that only touches a token counts it; the letter ö has two tokens or one.
        assert_eq!(marked("[[1, 2], [20, 21]]").trim_end_matches(" away"), "ö");
        let weights = of("[[0, 2, 0.5], [4, 7]]").unwrap();
        assert_eq!((weights[0], weights.iter().copied().fold(0.0, f32::max)), (0.5, 1.0));
        assert_eq!(weights.last(), Some(&0.0), "the end token");
        let each = vec!["1"; answer.len() - 1].join(",");
        assert_eq!(of(&format!("[{each}]")).unwrap().iter().sum::<f32>(), answer.len() as f32 - 1.0);
        for (bad, found) in [("[1, 1]", "2 numbers"), ("[[0, 99]]", "[0, 99]"), ("[[2, 3, 0]]", "none")] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.contains(found), "{error}");
        }
    }
}
