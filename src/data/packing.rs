//! Packs groups into one row of tokens: a prompt is stored once and all its responses attend to it.
//!
//! A group is stored as `[prompt][y_1]..[y_K][y_l]`; positions restart after the prompt for each response.
//! This is exact, needs no padding, and turns (K+1)(P+R) tokens into P + (K+1)R, for K+1 responses of R
//! tokens to a prompt of P tokens. A response's last token predicts nothing and is left out.

/// A prompt with its responses, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<'a> {
    /// At least one token: the first response token is predicted from the last prompt token.
    pub prompt: &'a [u32],
    /// In the order that the loss expects: anchors, then the negative.
    pub responses: Vec<&'a [u32]>,
}

impl Group<'_> {
    /// Tokens that the group takes in a packed row.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.responses.iter().map(|r| r.len().saturating_sub(1)).sum::<usize>()
    }

    /// Response tokens: rows that go through the output head.
    pub fn rows(&self) -> usize {
        self.responses.iter().map(|r| r.len()).sum()
    }
}

/// The tables of a packed batch, as the kernels read them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Per token: id, position, slot (its own index), and the exclusive end of the tokens that attend to it.
    pub tokens: Vec<[u32; 4]>,
    /// Per token: the key ranges that it attends to, [prefix_start, prefix_end) and [segment_start,
    /// segment_end).
    pub ranges: Vec<[u32; 4]>,
    /// Per response token: the packed token that predicts it, its id, its sequence, 0.
    pub predict: Vec<[u32; 4]>,
    /// Per sequence: its first row in `predict`, and its end (exclusive).
    pub rows: Vec<[u32; 2]>,
    /// Per group: its first sequence, and its end (exclusive).
    pub groups: Vec<[u32; 2]>,
}

impl Packed {
    /// Packs `groups` in order.
    pub fn new(groups: &[Group]) -> Self {
        let mut packed = Self::default();
        groups.iter().for_each(|group| packed.push(group));
        packed
    }

    /// Adds a prompt without responses, whose keys are in a sampler's cache from `slot` on. Its first `known`
    /// tokens are there already: only the others become tokens of the batch.
    pub fn push_rest(&mut self, prompt: &[u32], known: usize, slot: u32) {
        let end = slot + prompt.len() as u32;
        for (position, &id) in (0..).zip(prompt).skip(known) {
            let at = slot + position;
            self.tokens.push([id, position, at, end]);
            self.ranges.push([slot, slot, slot, at + 1]);
        }
        let sequences = self.rows.len() as u32;
        self.groups.push([sequences, sequences]);
    }

    fn push(&mut self, group: &Group) {
        let start = self.tokens.len() as u32;
        let prompt_end = start + group.prompt.len() as u32;
        let group_end = start + group.tokens() as u32;
        for (position, &id) in (0..).zip(group.prompt) {
            let at = start + position;
            self.tokens.push([id, position, at, group_end]);
            self.ranges.push([start, start, start, at + 1]);
        }
        let first_sequence = self.rows.len() as u32;
        for response in &group.responses {
            let sequence = self.rows.len() as u32;
            let first_row = self.predict.len() as u32;
            let segment = self.tokens.len() as u32;
            let fed = &response[..response.len().saturating_sub(1)];
            let segment_end = segment + fed.len() as u32;
            for (i, &id) in (0..).zip(fed) {
                let at = segment + i;
                self.tokens.push([id, group.prompt.len() as u32 + i, at, segment_end]);
                self.ranges.push([start, prompt_end, segment, at + 1]);
            }
            for (i, &id) in (0..).zip(response.iter()) {
                let source = if i == 0 { prompt_end - 1 } else { segment + i - 1 };
                self.predict.push([source, id, sequence, 0]);
            }
            self.rows.push([first_row, self.predict.len() as u32]);
        }
        self.groups.push([first_sequence, self.rows.len() as u32]);
    }

    /// Keys that a token attends to on average, rounded up.
    pub fn mean_keys(&self) -> usize {
        let keys: usize = self.ranges.iter().map(|r| (r[1] - r[0] + r[3] - r[2]) as usize).sum();
        keys.div_ceil(self.ranges.len().max(1))
    }

    /// The number of response tokens of each sequence.
    pub fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(|r| (r[1] - r[0]) as usize).collect()
    }
}

/// Splits groups, in order, into batches of at most `budget` packed tokens and at most `most` groups. A group
/// larger than `budget` is a batch of its own. Returns index ranges.
pub fn split(groups: &[Group], budget: usize, most: usize) -> Vec<std::ops::Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (i, group) in groups.iter().enumerate() {
        let tokens = group.tokens();
        if i > start && (used + tokens > budget || i - start == most) {
            batches.push(start..i);
            (start, used) = (i, 0);
        }
        used += tokens;
    }
    if start < groups.len() {
        batches.push(start..groups.len());
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Group<'static> {
        Group { prompt: &[10, 11], responses: vec![&[20, 21, 22], &[30], &[40, 41]] }
    }

    #[test]
    fn responses_see_the_prompt_and_themselves() {
        let packed = Packed::new(&[group(), group()]);
        // [10 11][20 21][][40], twice: the last token of a response is not fed.
        assert_eq!(packed.tokens.len(), 10);
        assert_eq!(packed.tokens[3], [21, 3, 3, 4]);
        assert_eq!(packed.ranges[3], [0, 2, 2, 4]);
        assert_eq!(packed.tokens[4], [40, 2, 4, 5]);
        assert_eq!(packed.tokens[5], [10, 0, 5, 10]);
        assert_eq!(packed.ranges[8], [5, 7, 7, 9]);
        assert_eq!(packed.predict[0], [1, 20, 0, 0]);
        assert_eq!(packed.predict[3], [1, 30, 1, 0]);
        assert_eq!(packed.predict[5], [4, 41, 2, 0]);
        assert_eq!(packed.rows[..3], [[0, 3], [3, 4], [4, 6]]);
        assert_eq!(packed.groups, [[0, 3], [3, 6]]);
    }

    #[test]
    fn the_rest_of_a_prompt_sees_what_is_in_the_cache() {
        let mut packed = Packed::default();
        packed.push_rest(&[10, 11, 12, 13], 2, 0);
        packed.push_rest(&[10, 11, 14], 2, 4);
        assert_eq!(packed.tokens, [[12, 2, 2, 4], [13, 3, 3, 4], [14, 2, 6, 7]]);
        assert_eq!(packed.ranges, [[0, 0, 0, 3], [0, 0, 0, 4], [4, 4, 4, 7]]);
        // With nothing in the cache, it is a prompt like any other.
        let mut whole = Packed::default();
        whole.push_rest(&[10, 11], 0, 0);
        let same = Packed::new(&[Group { prompt: &[10, 11], responses: Vec::new() }]);
        assert_eq!(whole, same);
    }

    #[test]
    fn batches_keep_to_their_budget() {
        let groups = vec![group(); 5];
        assert_eq!(split(&groups, 10, 9), [0..2, 2..4, 4..5]);
        assert_eq!(split(&groups, 1, 9), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(split(&groups, 99, 3), [0..3, 3..5]);
    }
}
