//! Where in an answer the fault lies: the advantage of each of its steps, from how badly the model goes on
//! behind it (Setlur et al., arXiv 2406.14532, "RL on Incorrect Synthetic Data Scales the Efficiency of LLM
//! Math Reasoning by Eight-Fold").

use std::ops::Range;

/// An advantage under this share of an answer's largest is taken for noise.
const LEAST: f64 = 0.1;

/// The sentences and lines of an answer as ranges of its bytes, which together are the whole answer; at most
/// `most`: neighbours are joined if there are more.
pub fn steps(answer: &str, most: usize) -> Vec<Range<usize>> {
    let mut ends = Vec::new();
    let mut characters = answer.char_indices().peekable();
    let mut closed = false;
    while let Some((at, c)) = characters.next() {
        closed = matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？')
            || (closed && matches!(c, '"' | '\'' | '”' | ')' | ']'));
        let next = characters.peek().map(|(_, next)| *next);
        let ends_here = c == '\n' || (closed && next.is_some_and(char::is_whitespace));
        if ends_here && !answer[at + c.len_utf8()..].trim().is_empty() {
            ends.push(at + c.len_utf8());
        }
    }
    ends.push(answer.len());
    // Steps of white space alone are part of the step before.
    let mut starts = 0;
    ends.retain(|&end| {
        let own = !answer[starts..end].trim().is_empty() || end == answer.len();
        starts = if own { end } else { starts };
        own
    });
    let count = ends.len().min(most.max(1));
    let joined = (1..=count).map(|i| ends[i * ends.len() / count - 1]);
    let mut start = 0;
    joined.map(|end| std::mem::replace(&mut start, end)..end).collect()
}

/// The weight of each step from `badness`: how bad answers are, in the mean, that begin with none, one, two,
/// .. of the steps; the last is the whole answer's own. A step that makes what follows worse weighs as much
/// as it does, relative to the worst step; others weigh 0. `None` if no step makes it worse.
pub fn weights(badness: &[f64]) -> Option<Vec<f32>> {
    let advantages: Vec<f64> = badness.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let largest = advantages.iter().copied().fold(0.0, f64::max);
    let weight = |advantage: &f64| {
        let share = advantage / largest;
        if share >= LEAST { share as f32 } else { 0.0 }
    };
    (largest > 0.0).then(|| advantages.iter().map(weight).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(answer: &str, most: usize) -> Vec<&str> {
        steps(answer, most).into_iter().map(|range| &answer[range]).collect()
    }

    #[test]
    fn steps_are_sentences_and_lines() {
        assert_eq!(texts("Glad to help. \"You fool!\" Bye", 9), ["Glad to help.", " \"You fool!\"", " Bye"]);
        assert_eq!(texts("It costs 3.50 euros?! Well.", 9), ["It costs 3.50 euros?!", " Well."]);
        assert_eq!(texts("One\n\ntwo.\nthree  \n", 9), ["One\n", "\ntwo.", "\nthree  \n"]);
        assert_eq!(texts("Wo? Größe… ja", 9), ["Wo?", " Größe…", " ja"]);
        assert_eq!(texts("", 9), [""]);
        assert_eq!(texts("word", 0), ["word"]);
        assert_eq!(texts("a. b. c. d. e.", 2), ["a. b.", " c. d. e."]);
        for most in 1..8 {
            assert_eq!(texts("a. b.\nc! d? e. f", most).concat(), "a. b.\nc! d? e. f");
        }
    }

    #[test]
    fn the_step_that_makes_it_worse_weighs_most() {
        assert_eq!(weights(&[0.25, 0.2, 1.0, 1.0]), Some(vec![0.0, 1.0, 0.0]));
        assert_eq!(weights(&[0.0, 0.25, 0.75, 0.75, 0.78]), Some(vec![0.5, 1.0, 0.0, 0.0]));
        assert_eq!(weights(&[1.0, 1.0, 0.5]), None);
        assert_eq!(weights(&[1.0]), None);
    }
}
