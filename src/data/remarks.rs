//! Remarks on examples that are allowed, but probably a mistake: answers that teach nothing, or that
//! contradict each other.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::{ChatTokenizer, Completion, Example, Prompt, Row};

/// One sentence for each kind of oddity in `examples`, with its first line. `origin` is the file's name.
pub fn remarks(origin: &str, examples: &[Example], tokenizer: &ChatTokenizer) -> Vec<String> {
    let sides: Vec<_> = examples
        .iter()
        .map(|e| Sides {
            line: e.line,
            prompt: &e.prompt_ids,
            chosen: e.chosen_ids.as_ref(),
            negative: e.negative_ids.as_ref(),
        })
        .collect();
    let of_answers = of_answers(origin, &sides);
    let of_tokens = token_remarks(origin, examples, tokenizer);
    without_template(origin, examples, tokenizer).into_iter().chain(of_answers).chain(of_tokens).collect()
}

/// The part of [`remarks`] that needs no tokenizer: rows that teach nothing, repeat or contradict others.
pub fn row_remarks(origin: &str, rows: &[Row]) -> Vec<String> {
    let text = |completion: &Completion| completion.text().to_owned();
    let side = |row: &Row| Sides {
        line: row.line,
        prompt: serde_json::to_string(&row.prompt).unwrap_or_default(),
        chosen: row.positive().map(text),
        negative: row.negative().map(text),
    };
    of_answers(origin, &rows.iter().map(side).collect::<Vec<_>>())
}

/// A row's prompt and answers, as texts or as token ids.
struct Sides<T> {
    line: usize,
    prompt: T,
    chosen: Option<T>,
    negative: Option<T>,
}

/// Remarks on answers that teach nothing, repeat or contradict others.
fn of_answers<T: Eq + Hash>(origin: &str, rows: &[Sides<T>]) -> Vec<String> {
    let all = [same_on_both_sides(origin, rows), repeated(origin, rows), contradicting(origin, rows)];
    all.into_iter().flatten().collect()
}

/// The part of [`remarks`] about tokens: control tokens in the texts themselves, in addition to those that
/// the tokenizer and the template add.
pub fn token_remarks(origin: &str, examples: &[Example], tokenizer: &ChatTokenizer) -> Vec<String> {
    let begins_twice = |e: &Example| match e.prompt_ids[..] {
        [first, second, ..] if first == second && tokenizer.is_special(first) => Some(first),
        _ => None,
    };
    let ends_early = |e: &Example| {
        let answers = [&e.chosen_ids, &e.negative_ids].into_iter().flatten();
        let mut inner = answers.filter_map(|ids| ids.split_last()).flat_map(|(_, inner)| inner);
        inner.find(|id| tokenizer.end_tokens().contains(id)).copied()
    };
    let text = |id: u32| tokenizer.token_text(id).unwrap_or_default();
    let first = |odd: &dyn Fn(&Example) -> Option<u32>| {
        let mut all = examples.iter().filter_map(|e| Some((e.line, odd(e)?)));
        let (line, id) = all.next()?;
        Some((line, text(id), 1 + all.count()))
    };
    let begins = first(&begins_twice).map(|(line, token, count)| {
        format!(
            "{origin}:{line}: the prompt begins with {token} twice (rows: {count}; this is the first): the \
             tokenizer adds one, so remove it from the text"
        )
    });
    let ends = first(&ends_early).map(|(line, token, count)| {
        format!(
            "{origin}:{line}: {token}, which ends an answer, occurs inside an answer (rows: {count}; this is \
             the first): it is added automatically, so remove it from the text"
        )
    });
    begins.into_iter().chain(ends).collect()
}

/// Prompts that are strings, for a model with a chat template.
fn without_template(origin: &str, examples: &[Example], tokenizer: &ChatTokenizer) -> Option<String> {
    let mut all = examples.iter().filter(|e| matches!(e.prompt, Prompt::Text(_)));
    let first = all.next().filter(|_| tokenizer.has_template())?.line;
    let count = 1 + all.count();
    Some(format!(
        "{origin}:{first}: the prompt is a string in {count} of {} rows (this is the first): it is plain \
         text, without the model's chat template; for a chat model give a list of messages",
        examples.len()
    ))
}

/// Pairs whose two answers are the same.
fn same_on_both_sides<T: Eq>(origin: &str, rows: &[Sides<T>]) -> Option<String> {
    let same = |row: &&Sides<T>| row.chosen.is_some() && row.chosen == row.negative;
    let mut all = rows.iter().filter(same);
    let first = all.next()?.line;
    let count = 1 + all.count();
    Some(format!(
        "{origin}:{first}: the chosen and the rejected answer are the same in {count} of {} rows (this is \
         the first): such a pair teaches nothing",
        rows.len()
    ))
}

/// Rows that repeat an earlier row.
fn repeated<T: Eq + Hash>(origin: &str, rows: &[Sides<T>]) -> Option<String> {
    let mut seen = HashSet::new();
    let mut again = rows.iter().filter(|row| !seen.insert((&row.prompt, &row.chosen, &row.negative)));
    let first = again.next()?.line;
    let count = 1 + again.count();
    Some(format!(
        "{origin}:{first}: repeats an earlier row, as {count} of {} rows do (this is the first)",
        rows.len()
    ))
}

/// Answers to a prompt that are good in one row and flagged in another. Two pairs contradict each other only
/// if one is the other with its answers swapped. An answer may be the better one of one pair and the worse
/// one of another without contradiction: in a ranking of three answers, the middle one is both.
fn contradicting<T: Eq + Hash>(origin: &str, rows: &[Sides<T>]) -> Option<String> {
    let good: HashMap<_, usize> = rows
        .iter()
        .filter(|row| row.chosen.is_some())
        .map(|row| ((&row.prompt, &row.chosen, &row.negative), row.line))
        .collect();
    let other = |row: &Sides<T>| {
        row.negative.as_ref()?;
        let line = *good.get(&(&row.prompt, &row.negative, &row.chosen))?;
        (line != row.line).then_some((row.line, line))
    };
    let mut all = rows.iter().filter_map(other);
    let (flagged, good) = all.next()?;
    let count = 1 + all.count();
    Some(format!(
        "{origin}:{flagged}: flags an answer that line {good} calls good; there are {count} such rows (this \
         is the first)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Prompt;

    fn tokenizer() -> ChatTokenizer {
        ChatTokenizer::from_bytes(&crate::data::testing::letters(None)).unwrap()
    }

    fn example(line: usize, prompt: u32, chosen: Option<u32>, negative: Option<u32>) -> Example {
        Example {
            chosen_ids: chosen.map(|id| vec![id]),
            negative_ids: negative.map(|id| vec![id]),
            ..Example::asking(line, line - 1, Prompt::Text(String::new()), vec![prompt])
        }
    }

    #[test]
    fn each_oddity_is_told_once_with_its_first_line_and_their_number() {
        let all = [
            example(1, 1, Some(5), Some(6)),
            example(2, 1, Some(7), Some(7)),
            example(3, 2, Some(8), Some(8)),
            example(4, 1, Some(5), Some(6)),
            example(5, 1, None, Some(5)),
            // A ranking: 6 is worse than 5, and better than 9.
            example(6, 1, Some(6), Some(9)),
            // Line 4 with its answers swapped, and an unpaired answer that line 5 flags.
            example(7, 1, Some(6), Some(5)),
            example(8, 1, Some(5), None),
        ];
        let template =
            ChatTokenizer::from_bytes(&crate::data::testing::letters(Some("{{ messages }}"))).unwrap();
        let found = remarks("a.jsonl", &all[..1], &template);
        assert!(found.len() == 1 && found[0].contains("a string in 1 of 1 rows"), "{found:?}");
        let found = remarks("a.jsonl", &all, &tokenizer());
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].starts_with("a.jsonl:2: the chosen and the rejected answer are the same in 2 of 8 rows"),
            "{found:?}"
        );
        assert!(found[1].starts_with("a.jsonl:4: repeats an earlier row, as 1 of 8"), "{found:?}");
        assert!(
            found[2].starts_with("a.jsonl:1: flags an answer that line 7 calls good; there are 4"),
            "{found:?}"
        );
    }

    #[test]
    fn rows_without_oddities_are_passed_over() {
        // The same answer to two prompts, and the same prompt with two answers.
        let all = [example(1, 1, None, Some(5)), example(2, 2, Some(5), None), example(3, 1, None, Some(6))];
        assert_eq!(remarks("a.jsonl", &all, &tokenizer()), [""; 0]);
    }

    #[test]
    fn control_tokens_of_the_texts_are_told() {
        // <s> twice, and </s> before the end.
        let twice = Example { prompt_ids: vec![1, 1, 9], ..example(1, 0, None, Some(9)) };
        let early = Example { negative_ids: Some(vec![9, 2, 2]), ..example(2, 9, None, None) };
        let found = token_remarks("a.jsonl", &[twice, early], &tokenizer());
        assert!(found[0].starts_with("a.jsonl:1: the prompt begins with <s> twice"), "{found:?}");
        assert!(
            found[1].starts_with("a.jsonl:2: </s>, which ends an answer, occurs inside an answer"),
            "{found:?}"
        );
        let once = Example { prompt_ids: vec![1, 9, 9], ..example(1, 0, Some(9), Some(9)) };
        assert_eq!(token_remarks("a.jsonl", &[once], &tokenizer()), [""; 0]);
    }
}
