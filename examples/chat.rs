//! Answers one question, and prints the answer while it is generated.
//!
//!     cargo run --release --example chat -- MODEL_DIR "What is the capital of France?" [ADAPTER_DIR]

use std::io::Write;

use aweigh::config::AnchorConfig;
use aweigh::data::{Message, Prompt};
use aweigh::files::AdapterFiles;
use aweigh::gpu::Options;
use aweigh::sample::{self, Request};
use aweigh::{Gpu, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(question)) = (arguments.next(), arguments.next()) else {
        return Err("usage: chat MODEL_DIR|tiny QUESTION [ADAPTER_DIR]".into());
    };
    let adapter =
        arguments.next().map(|folder| AdapterFiles::open(folder.as_ref(), "ADAPTER_DIR")).transpose()?;
    let model = Model::open(&model)?;
    pollster::block_on(async {
        let gpu = Gpu::open(&Options::default()).await?;
        let decoder = model.bytes().decoder_with(&gpu, adapter.as_ref().map(AdapterFiles::bytes))?;
        let tokenizer = model.bytes().tokenizer()?;
        let prompt = Prompt::Messages(vec![Message::new("user", question)]);
        let ids = tokenizer.encode_prompt(&prompt, None)?;
        let settings = sample::sampling_params(&AnchorConfig::default(), 42, tokenizer.end_tokens());
        let request = Request { prompt: &ids, first_sample: 0, samples: 1, index: 0 };
        let mut printed = 0;
        let mut grown = |drawn: &[u32]| {
            let text = tokenizer.decode_answer(&ids, drawn)?;
            // Incomplete characters at the end are decoded as U+FFFD; they are printed when complete.
            let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
            print!("{}", whole.get(printed..).unwrap_or_default());
            printed = printed.max(whole.len());
            let _ = std::io::stdout().flush();
            Ok(())
        };
        sample::stream(&gpu, &decoder, decoder.policy(), &request, &settings, &mut grown).await?;
        println!();
        Ok(())
    })
}
