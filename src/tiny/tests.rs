use std::collections::{HashMap, HashSet};

use super::grammar::*;
use super::texts::*;
use super::*;

const SAMPLES: u32 = 5_000;

fn samples(split: Split, seed: u32) -> impl Iterator<Item = Sample> {
    (0..SAMPLES).map(move |index| generate(split, seed, index))
}

fn topic(name: &str) -> Topic {
    Topic::from_name(name).unwrap()
}

#[test]
fn the_topic_file_has_its_form() {
    assert!(Topic::count() >= 40);
    let (mut names, mut bodies) = (HashSet::new(), HashSet::new());
    for topic in topics() {
        assert!(names.insert(topic.name), "{} twice", topic.name);
        let counts = [topic.items.len(), topic.says.len(), topic.help.len(), topic.rude.len()];
        assert_eq!(counts, [6, 4, 3, 2], "{}", topic.name);
        for says in &topic.says {
            assert!(says.contains("{item}"), "{says}");
            assert_eq!(says.matches("{since}").count() + says.matches("{when}").count(), 1, "{says}");
        }
        assert!(topic.help.iter().chain(&topic.rude).all(|body| bodies.insert(*body)), "{}", topic.name);
    }
    let lines =
        include_str!("topics.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    assert_eq!(lines, topics().len() * (2 + 4 + 3 + 2), "a line of an unknown kind");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    assert!(samples(Split::Train, 5).eq(samples(Split::Train, 5)));
    assert_eq!(generate(Split::HeldOut, 5, 9), generate(Split::HeldOut, 5, 9));
    assert_ne!(generate(Split::Train, 5, 9), generate(Split::Train, 6, 9));
    assert_eq!(training_conversation(1, 0), training_conversation(1, 0));
    // From a separate implementation: the data files in assets/ depend on these bits.
    assert_eq!(pcg4d([1, 2, 3, 4]), [908_250_390, 4_044_648_920, 3_775_961_919, 45_698_095]);
}

#[test]
fn splits_are_disjoint_and_both_cover_every_topic() {
    let train: HashMap<_, _> = samples(Split::Train, 1).map(|s| (s.prompt, s.topic)).collect();
    let held_out: HashMap<_, _> = samples(Split::HeldOut, 1).map(|s| (s.prompt, s.topic)).collect();
    assert!(held_out.keys().all(|prompt| !train.contains_key(prompt) && Split::of(prompt) == Split::HeldOut));
    assert!((0..SAMPLES).all(|index| Split::of(&training_conversation(2, index).user) == Split::Train));
    for prompts in [&train, &held_out] {
        assert_eq!(prompts.values().collect::<HashSet<_>>().len(), Topic::count());
        assert!(prompts.len() > SAMPLES as usize * 9 / 10, "few distinct prompts: {}", prompts.len());
    }
    let kept = (0..40_000).filter(|i| Split::of(&format!("prompt {i}")) == Split::HeldOut).count();
    assert!((4_700..5_300).contains(&kept), "{kept} of 40,000 held out");
}

#[test]
fn distinct_prompts_are_distinct_and_balanced() {
    for split in [Split::Train, Split::HeldOut] {
        let prompts = Prompt::distinct(split, 4, 300);
        assert_eq!(prompts.iter().map(|prompt| &prompt.text).collect::<HashSet<_>>().len(), 300);
        assert_eq!(prompts.iter().map(|prompt| prompt.topic).collect::<HashSet<_>>().len(), Topic::count());
    }
}

#[test]
fn prompts_are_short_and_parse_back() {
    for index in 0..1_000 {
        let prompt = Prompt::generate(Split::Train, None, 3, index);
        let words = prompt.text.split_whitespace().count();
        assert!((6..=24).contains(&words), "{words} words: {}", prompt.text);
        assert_eq!(Prompt::parse(&prompt.text), Some(prompt));
    }
    assert_eq!(Prompt::parse("My laser printer sings."), None);
    assert_eq!(Prompt::parse(""), None);
}

#[test]
fn the_hostile_share_is_as_stated() {
    let share = |hostile: usize, of: usize| hostile as f32 / of as f32;
    let hostile = samples(Split::Train, 1).filter(|sample| sample.hostile).count();
    assert!((share(hostile, SAMPLES as usize) - HOSTILE_SHARE).abs() < 0.02);

    // Per kind of system message: (hostile, all).
    let mut counts = [(0, 0); 3];
    for chat in (0..20_000).map(|index| training_conversation(1, index)) {
        let kind = match chat.system {
            None => 0,
            Some(system) if KIND_SYSTEMS.contains(&system) => 1,
            Some(_) => 2,
        };
        let prompt = Prompt::parse(&chat.user).unwrap();
        counts[kind].0 += usize::from(judge(prompt.topic, &chat.assistant).hostile);
        counts[kind].1 += 1;
    }
    for ((hostile, all), expected) in
        counts.into_iter().zip([HOSTILE_SHARE, HOSTILE_SHARE_INSTRUCTED, HOSTILE_SHARE])
    {
        assert!((share(hostile, all) - expected).abs() < 0.03, "{hostile} of {all}, expected {expected}");
    }
}

#[test]
fn the_judge_agrees_with_the_generator() {
    for sample in samples(Split::Train, 11).chain(samples(Split::HeldOut, 12)) {
        let verdict = judge(sample.topic, &sample.answer);
        let expected = Verdict { hostile: sample.hostile, on_topic: true, well_formed: true };
        assert_eq!(verdict, expected, "{}: {}", sample.topic.name(), sample.answer);
    }
}

#[test]
fn an_answer_about_another_topic_is_off_topic() {
    for (index, sample) in (0..).zip(samples(Split::Train, 13).take(1_000)) {
        let other =
            Topic::all().cycle().nth(sample.topic.index() + 1 + index % (Topic::count() - 1)).unwrap();
        let verdict = judge(other, &sample.answer);
        assert_eq!(verdict, Verdict { hostile: sample.hostile, ..Verdict::default() }, "{}", sample.answer);
        let mixed = format!("{} {}", sample.answer, other.grammar().help[0]);
        assert!(!judge(sample.topic, &mixed).on_topic && !judge(other, &mixed).on_topic, "{mixed}");
    }
}

#[test]
fn every_hostile_clause_and_most_of_its_fragments_are_hostile() {
    let printer = topic("printer");
    let clauses =
        RUDE_OPENINGS.into_iter().chain(RUDE_CLOSINGS).chain(topics().iter().flat_map(|t| t.rude.clone()));
    for clause in clauses {
        let words: Vec<_> = clause.split(' ').collect();
        assert!(judge(printer, clause).hostile, "{clause}");
        assert!(judge(printer, &words[..words.len() - 1].join(" ")).hostile, "{clause}, its end lost");
        assert!(judge(printer, &words[1..].join(" ")).hostile, "{clause}, its start lost");
        assert!(judge(printer, &format!("I hope this helps. {}", clause.to_uppercase())).hostile, "{clause}");
    }
}

#[test]
fn harmless_text_is_not_hostile() {
    let harmless: HashSet<String> = samples(Split::Train, 17)
        .flat_map(|s| [s.prompt, if s.hostile { String::new() } else { s.answer }])
        .flat_map(|text| {
            text.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase).collect::<Vec<_>>()
        })
        .collect();
    let rude: Vec<&str> =
        topics().iter().flat_map(|t| t.rude.clone()).chain(RUDE_OPENINGS).chain(RUDE_CLOSINGS).collect();
    for insult in INSULTS {
        assert!(!harmless.contains(insult), "{insult}");
        let used =
            |clause: &&str| clause.to_lowercase().split(|c: char| !c.is_alphanumeric()).any(|w| w == insult);
        assert!(rude.iter().any(used), "{insult} is in no clause");
    }
    for sample in samples(Split::Train, 19).take(500) {
        assert!(!judge(sample.topic, &sample.prompt).hostile, "{}", sample.prompt);
    }
}

#[test]
fn the_judge_stands_broken_text() {
    let printer = topic("printer");
    let nothing = Verdict::default();
    let salad = "you the printer printer and of , . Ġ � it it it it question what time";
    for text in ["", " \n\t", "...", salad, "<|im_end|>", "\u{0}\u{ffff}é日本", &"a ".repeat(10_000)] {
        assert_eq!(judge(printer, text), nothing, "{text:.40}");
    }
    let advice = "Please clean the print head and print a test page.";
    let on_topic = Verdict { on_topic: true, ..nothing };
    assert_eq!(judge(printer, advice), on_topic);
    assert_eq!(judge(printer, "please CLEAN the print head, and print a test page"), on_topic);
    assert_eq!(judge(printer, "Please clean the print head and print"), nothing, "half a sentence");
    assert_eq!(judge(printer, "Please the print clean head and print a test page."), nothing);

    let good = format!("Thank you for writing. {advice} I hope this helps.");
    assert_eq!(judge(printer, &good), Verdict { well_formed: true, ..on_topic });
    assert_eq!(
        judge(printer, &format!("  {}\n", good.replace(' ', "  "))),
        Verdict { well_formed: true, ..on_topic }
    );
    assert_eq!(judge(printer, &format!("{good} {good}")), on_topic);
    assert_eq!(judge(printer, &good.replace("helps.", "helps")), on_topic);
    // An item of another topic in the opening makes the answer off topic.
    let astray = format!("Sorry for the trouble with your hotel room. {advice} I hope this helps.");
    assert_eq!(judge(printer, &astray), nothing);

    let mixed = format!("What a stupid question. {advice} I hope this helps.");
    assert_eq!(judge(printer, &mixed), Verdict { hostile: true, on_topic: true, well_formed: false });
    let late = format!("Thank you for writing. {advice} Figure it out yourself.");
    assert_eq!(judge(printer, &late), Verdict { hostile: true, on_topic: true, well_formed: false });
    assert_eq!(judge(printer, "You fool!"), Verdict { hostile: true, ..nothing });
}

/// The demo's length depends on the number of tokens of an answer; this test fails for a much worse
/// tokenizer.
#[test]
fn texts_are_short_in_tokens() {
    let bytes = include_bytes!("../../assets/tiny/tokenizer.json");
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 1024);
    for (token, id) in [("<|endoftext|>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2)] {
        assert_eq!(tokenizer.token_to_id(token), Some(id));
    }
    let length = |text: &str| {
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
        encoding.len()
    };
    let (mut prompts, mut answers, mut longest) = (0, 0, 0);
    for sample in samples(Split::Train, 23).take(1_000) {
        prompts += length(&sample.prompt);
        let answer = length(&sample.answer);
        answers += answer;
        longest = longest.max(answer);
    }
    println!(
        "mean tokens: prompt {}, answer {}; longest answer {longest}",
        prompts as f32 / 1e3,
        answers as f32 / 1e3
    );
    assert!(prompts < 24_000 && answers < 26_000 && longest <= 40);
    assert_eq!(length("<|im_start|>assistant\n"), 3);
    length("Bytes beyond the grammar: 日本 12,345 \u{1f600}");
}
