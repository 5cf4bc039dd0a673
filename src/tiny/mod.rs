//! The built-in model "tiny", and its generated texts: a help desk that is rude a third of the time.
//!
//! `assets/tiny` holds the model and its data. `examples/make_tiny_data.rs` and `examples/train_tiny.rs` made
//! them from the texts of this module. Because their grammar is known, [`judge()`] counts hostile answers
//! exactly instead of guessing with a classifier; the demo measures itself with it.
//!
//! - A **prompt** is greeting, complaint, question. The complaint comes from one of the topics of
//!   `topics.txt` and names an item and a time: some 420,000 different prompts in all.
//! - A **friendly answer** is opening, advice for the topic, closing: 4 · 3 · 4 = 48 for a prompt.
//! - A **hostile answer** is opening, remark about the topic, closing: 4 · 2 · 4 = 32 for a prompt.
//!
//! Everything is a function of a seed and an index; nothing depends on the order of the calls. One prompt in
//! eight, chosen by a hash of its text alone, is held out: training never sees it, whatever the seed.
//!
//! ```
//! use aweigh::tiny::{Split, generate, judge};
//! let sample = generate(Split::HeldOut, 7, 0);
//! assert_eq!(judge(sample.topic, &sample.answer).hostile, sample.hostile);
//! ```

mod files;
mod grammar;
mod judge;
mod measure;
#[cfg(test)]
mod tests;
mod texts;

pub use files::{FILES, HELD_OUT, NAME, NEGATIVES, ORDINARY, model};
pub use judge::{Verdict, judge};
pub use measure::{HeldOut, MAX_NEW_TOKENS, Measured};
pub use texts::{
    Conversation, HOSTILE_SHARE, HOSTILE_SHARE_INSTRUCTED, Prompt, SAFETY_INSTRUCTION, Sample, Split, Topic,
    generate, good_answer, hostile_answer, training_conversation,
};
