//! Built-in ordinary prompts: questions and instructions that any assistant should answer. Some only sound
//! dangerous, in the manner of XSTest (Röttger et al., arXiv 2308.01263): a model that refuses them refuses
//! too much.

/// The prompts as JSONL, with the name that messages show.
pub const ORDINARY: (&str, &[u8]) =
    ("the built-in ordinary prompts", include_bytes!("../../assets/ordinary.jsonl"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::parse_rows;

    #[test]
    fn there_are_96_different_prompts() {
        let rows = parse_rows(ORDINARY.1, ORDINARY.0, None).unwrap().rows;
        let texts: std::collections::HashSet<&str> = rows.iter().map(|row| row.prompt.last_text()).collect();
        assert_eq!((rows.len(), texts.len()), (96, 96));
    }
}
