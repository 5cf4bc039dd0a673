//! Saves a run's [`State`] and restores it.

use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use super::anchors::{AnchorCounts, Pool};
use super::best::Best;
use super::cleaner::Cleaner;
use super::collapse::Collapse;
use super::metrics::Metrics;
use super::negatives::Negatives;
use super::run::{Course, Run};
use super::state::State;
use super::stop::Seen;
use crate::gpu::{DType, Tensor};
use crate::loss::Constants;
use crate::nn::Arenas;
use crate::score::Scored;
use crate::{Error, Result};

/// The part of a [`State`] that is not tensors, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    global_step: usize,
    optimizer_steps: u64,
    micro_batches: u32,
    num_tokens: usize,
    train_seconds: f64,
    skipped: usize,
    skipped_in_a_row: usize,
    /// Indices of the training examples, of the held-out and of the retained examples, among those that the
    /// run was given.
    train: Vec<usize>,
    eval: Vec<usize>,
    retain: Vec<usize>,
    pools: Vec<Pool>,
    eval_pools: Vec<Pool>,
    retain_pools: Vec<Pool>,
    anchors: AnchorCounts,
    #[serde(default)]
    cleaner: Option<Cleaner>,
    #[serde(default)]
    negatives: Option<Negatives>,
    /// Alpha and beta, if they were measured.
    constants: Option<Constants>,
    /// Number of tokens of each retained answer.
    retain_start: Vec<usize>,
    /// Examples with cached log-probs under the references, and the number of tokens of each response.
    scored: Vec<(usize, Vec<usize>)>,
    /// Number of tokens of each held-out response; `None` before the first evaluation.
    eval_start: Option<Vec<Vec<usize>>>,
    seen: Seen,
    collapse: Collapse,
    best: Option<(usize, Option<Metrics>)>,
    before: Option<Metrics>,
}

/// The state of a run before its first step: indices of its examples, and the anchors sampled so far.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drawn {
    train: Vec<usize>,
    eval: Vec<usize>,
    retain: Vec<usize>,
    pools: Vec<Pool>,
    eval_pools: Vec<Pool>,
    retain_pools: Vec<Pool>,
    anchors: AnchorCounts,
    #[serde(default)]
    cleaner: Option<Cleaner>,
    #[serde(default)]
    negatives: Option<Negatives>,
}

/// Names of the tensors of log-probs.
const SCORED: &str = "reference_logps";
const START: &str = "eval_start_logps";
const RETAINED: &str = "retain_start_logps";

impl Run<'_> {
    /// The current state of the run. No step may be in flight.
    pub(super) async fn state(&mut self, course: &Course) -> Result<State> {
        self.trainer.put_away().await?;
        let known = |(i, all): (usize, &Option<Vec<Scored>>)| Some((i, all.clone()?));
        let (kept, scored): (Vec<usize>, Vec<Vec<Scored>>) =
            self.cached.iter().enumerate().filter_map(known).unzip();
        let record = Record {
            global_step: course.step,
            optimizer_steps: self.trainer.optimizer.steps(),
            micro_batches: self.trainer.micro_batches(),
            num_tokens: course.sums.num_tokens,
            train_seconds: course.sums.train_seconds,
            skipped: course.sums.skipped,
            skipped_in_a_row: course.sums.skipped_in_a_row,
            train: self.kept.clone(),
            eval: self.held_out.kept.clone(),
            retain: self.retained.kept.clone(),
            pools: self.pools.clone(),
            eval_pools: self.held_out.pools.clone(),
            retain_pools: self.retained.pools.clone(),
            anchors: self.counts,
            cleaner: self.cleaner.clone(),
            negatives: self.negatives.clone(),
            constants: self.constants,
            retain_start: self.retained.start.iter().map(|scored| scored.token_logps.len()).collect(),
            scored: kept.into_iter().zip(lengths(&scored)).collect(),
            eval_start: self.held_out.start.as_deref().map(lengths),
            seen: course.rule.seen(),
            collapse: course.collapse.clone(),
            best: course.best.kept(),
            before: course.before.clone(),
        };
        let mut data: Vec<(String, DType, Vec<u8>)> = Vec::new();
        for (name, tensor) in self.device_tensors(&course.best) {
            data.push((name, tensor.dtype(), tensor.read_in_pieces(self.gpu).await?));
        }
        let logps = |name: &str, scored: &[Vec<Scored>]| {
            (name.to_string(), DType::F32, bytemuck::cast_slice(&flat(scored)).to_vec())
        };
        data.push(logps(SCORED, &scored));
        data.extend(self.held_out.start.as_deref().map(|start| logps(START, start)));
        data.push(logps(RETAINED, std::slice::from_ref(&self.retained.start)));
        let views = data.iter().map(|(name, dtype, bytes)| Ok((name, view(*dtype, bytes)?)));
        let tensors = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None);
        let tensors = tensors.map_err(|e| damaged(e.to_string()))?;
        let decoder = &self.trainer.decoder;
        let policy = data.iter().take(decoder.values().tensors().len());
        let policy: Vec<Vec<f32>> = policy.map(|(.., bytes)| bytemuck::pod_collect_to_vec(bytes)).collect();
        let adapter = decoder.lora().map(|_| decoder.safetensors_of(&decoder.layout().of_arenas(&policy)));
        let adapter = adapter.transpose()?;
        let record = serde_json::to_vec(&record).map_err(|e| damaged(e.to_string()))?;
        Ok(State { step: course.step, record, tensors, adapter })
    }

    /// A state with the anchors sampled so far, if there are any.
    pub(super) fn drawn(&self) -> Result<Option<State>> {
        let pools = [&self.pools[..], &self.held_out.pools, &self.retained.pools];
        let kept = [&self.kept[..], &self.held_out.kept, &self.retained.kept];
        drawn(kept, pools, (self.counts, self.cleaner.as_ref(), self.negatives.as_ref()))
    }

    /// Restores the anchors of [`Run::drawn`].
    pub(super) fn restore_drawn(&mut self, state: &State) -> Result<()> {
        let drawn: Drawn = serde_json::from_slice(&state.record).map_err(|e| damaged(e.to_string()))?;
        self.restore_pools(drawn)
    }

    fn restore_pools(&mut self, drawn: Drawn) -> Result<()> {
        let Drawn { train, eval, retain, pools, eval_pools, retain_pools, anchors, cleaner, negatives } =
            drawn;
        if train.is_empty()
            || retain.iter().any(|&i| i >= self.retained.examples.len())
            || retain_pools.len() != retain.len()
            || train.iter().any(|&i| i >= self.train.len())
            || eval.iter().any(|&i| i >= self.held_out.examples.len())
            || pools.len() != train.len()
            || eval_pools.len() != eval.len()
        {
            return Err(damaged("a different number of examples".into()));
        }
        self.train = train.iter().map(|&i| self.train[i].clone()).collect();
        self.held_out.examples = eval.iter().map(|&i| self.held_out.examples[i].clone()).collect();
        self.retained.examples = retain.iter().map(|&i| self.retained.examples[i].clone()).collect();
        (self.kept, self.held_out.kept, self.retained.kept) = (train, eval, retain);
        (self.pools, self.held_out.pools, self.retained.pools) = (pools, eval_pools, retain_pools);
        self.cached = vec![None; self.train.len()];
        (self.counts, self.cleaner, self.negatives) = (anchors, cleaner, negatives);
        self.remember_own();
        Ok(())
    }

    /// Restores `state`. This run must have the same settings and files, and must not have started yet.
    pub(super) fn restore(&mut self, state: &State, course: &mut Course) -> Result<()> {
        let record: Record = serde_json::from_slice(&state.record).map_err(|e| damaged(e.to_string()))?;
        let file =
            safetensors::SafeTensors::deserialize(&state.tensors).map_err(|e| damaged(e.to_string()))?;
        let bytes = |name: &str| {
            file.tensor(name).map(|view| view.data()).map_err(|e| damaged(format!("{name}: {e}")))
        };
        if record.scored.iter().any(|&(i, _)| i >= record.train.len()) {
            return Err(damaged("log-probs of examples that it does not have".into()));
        }
        let Record { train, eval, retain, pools, eval_pools, retain_pools, anchors, .. } = record;
        let Record { cleaner, negatives, .. } = record;
        let drawn =
            Drawn { train, eval, retain, pools, eval_pools, retain_pools, anchors, cleaner, negatives };
        self.restore_pools(drawn)?;
        if let Some(constants) = record.constants {
            self.set_constants(constants);
        }
        let answers = scored(&[record.retain_start], bytes(RETAINED)?)?;
        self.retained.start = answers.into_iter().flatten().collect();
        let (kept, lengths): (Vec<usize>, Vec<Vec<usize>>) = record.scored.into_iter().unzip();
        for (i, scored) in kept.into_iter().zip(scored(&lengths, bytes(SCORED)?)?) {
            self.cached[i] = Some(scored);
        }
        self.held_out.start = record.eval_start.map(|lengths| scored(&lengths, bytes(START)?)).transpose()?;
        self.trainer.optimizer.set_steps(record.optimizer_steps);
        self.trainer.set_micro_batches(record.micro_batches);
        (course.step, course.sums.steps) = (record.global_step, record.global_step);
        (course.sums.num_tokens, course.sums.train_seconds) = (record.num_tokens, record.train_seconds);
        (course.sums.skipped, course.sums.skipped_in_a_row) = (record.skipped, record.skipped_in_a_row);
        course.before = record.before;
        course.rule.restore(record.seen);
        course.collapse = record.collapse;
        if let Some((step, metrics)) = record.best {
            course.best.keep(self.gpu, &self.trainer.decoder, step, metrics)?;
        }
        for (name, tensor) in self.device_tensors(&course.best) {
            let bytes = bytes(&name)?;
            let expected = tensor.dtype().size(tensor.len());
            if bytes.len() != expected {
                return Err(damaged(format!("{name} of {} bytes, not {expected}", bytes.len())));
            }
            tensor.write_bytes(self.gpu, bytes);
        }
        Ok(())
    }

    /// The tensors on the device that change during a run, by name; the policy's come first.
    fn device_tensors<'a>(&'a self, best: &'a Best) -> Vec<(String, &'a Tensor)> {
        let named = |name: &'static str, arenas: &'a Arenas| {
            arenas.tensors().iter().enumerate().map(move |(i, tensor)| (format!("{name}.{i}"), tensor))
        };
        let mut all: Vec<(String, &Tensor)> = named("policy", self.trainer.decoder.values()).collect();
        all.extend(self.trainer.optimizer.moments());
        all.extend(best.values().into_iter().flat_map(|values| named("best", values)));
        let references =
            [("reference_negative", Some(&self.negative)), ("reference_positive", self.positive.as_ref())];
        for (name, reference) in references {
            let moving = reference.filter(|reference| !reference.is_fixed()).and_then(|r| r.values());
            all.extend(moving.into_iter().flat_map(|values| named(name, values)));
        }
        all
    }
}

/// The state of a run while its anchors are sampled: the indices and the pools of the training prompts, of
/// the held-out and of the retained prompts. `None` if no prompt has all samples of a round yet.
pub(super) fn drawn(
    [train, eval, retain]: [&[usize]; 3],
    [pools, eval_pools, retain_pools]: [&[Pool]; 3],
    (counts, cleaner, negatives): (AnchorCounts, Option<&Cleaner>, Option<&Negatives>),
) -> Result<Option<State>> {
    let step = pools.iter().chain(eval_pools).chain(retain_pools).filter(|pool| pool.rounds > 0).count();
    if step == 0 {
        return Ok(None);
    }
    let drawn = Drawn {
        train: train.to_vec(),
        eval: eval.to_vec(),
        retain: retain.to_vec(),
        pools: pools.to_vec(),
        eval_pools: eval_pools.to_vec(),
        retain_pools: retain_pools.to_vec(),
        anchors: counts,
        cleaner: cleaner.cloned(),
        negatives: negatives.cloned(),
    };
    let record = serde_json::to_vec(&drawn).map_err(|e| damaged(e.to_string()))?;
    Ok(Some(State { step, record, tensors: Vec::new(), adapter: None }))
}

/// Bytes as a one-dimensional safetensors tensor.
fn view(dtype: DType, bytes: &[u8]) -> Result<TensorView<'_>> {
    let kind = if dtype == DType::U32 { Dtype::U32 } else { Dtype::F32 };
    TensorView::new(kind, vec![bytes.len() / 4], bytes).map_err(|e| damaged(e.to_string()))
}

/// The number of tokens of each response.
fn lengths(all: &[Vec<Scored>]) -> Vec<Vec<usize>> {
    all.iter().map(|responses| responses.iter().map(|r| r.token_logps.len()).collect()).collect()
}

/// Each response's token log-probs, then their sum and the entropy, all in one list.
fn flat(all: &[Vec<Scored>]) -> Vec<f32> {
    let one = |r: &Scored| r.token_logps.iter().copied().chain([r.logp, r.entropy]).collect::<Vec<_>>();
    all.iter().flatten().flat_map(one).collect()
}

/// The inverse of [`flat`] and [`lengths`].
fn scored(lengths: &[Vec<usize>], bytes: &[u8]) -> Result<Vec<Vec<Scored>>> {
    let floats: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
    let expected: usize = lengths.iter().flatten().map(|n| n + 2).sum();
    if floats.len() != expected {
        return Err(damaged(format!("{} log-probs, not {expected}", floats.len())));
    }
    let mut rest = &floats[..];
    let mut one = |&n: &usize| {
        let (own, after) = rest.split_at(n + 2);
        rest = after;
        Scored { token_logps: own[..n].to_vec(), logp: own[n], entropy: own[n + 1] }
    };
    Ok(lengths.iter().map(|responses| responses.iter().map(&mut one).collect()).collect())
}

fn damaged(found: String) -> Error {
    let fix = "resume from an earlier checkpoint, or start the run again";
    Error::input("checkpoint", "the state of this run", found, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probs_come_back_to_the_bit() {
        let response = |logps: &[f32]| Scored { token_logps: logps.to_vec(), logp: -0.1, entropy: 1e-30 };
        let all = vec![vec![response(&[-1.5, -0.25]), response(&[])], vec![], vec![response(&[-3.0])]];
        let (lengths, floats) = (lengths(&all), flat(&all));
        assert_eq!(scored(&lengths, bytemuck::cast_slice(&floats)).unwrap(), all);
        let short = scored(&lengths, bytemuck::cast_slice(&floats[1..])).unwrap_err().to_string();
        assert!(short.contains("8 log-probs, not 9"), "{short}");
    }
}
