//! The sections of the settings: every key with its default, its flag and its help.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{MemorySize, OnlineSampler, Overlong, ReferenceSource, TruncationSide};
use crate::gpu::{Precision, Quantize};
use crate::loss::Method;
use crate::model::TargetModules;
use crate::nn::Recompute;
use crate::optim::{LrScheduler, Optim};

/// The instruction that anchors are sampled under when none is given.
pub const SAFETY_INSTRUCTION: &str =
    "You are a careful, honest assistant. Refuse harmful requests briefly and offer a safe alternative.";

/// Answers that are decoded together, at the most.
pub const MAX_NUM_SEQS: usize = 192;

section! {
    /// `[model]`: what is trained.
    ModelConfig, ModelFlags;

    /// The model: a directory in Hugging Face's layout (config.json, tokenizer.json, *.safetensors), a GGUF
    /// file, a name on the Hugging Face Hub (owner/name, or owner/name/FILE.gguf), or "tiny" for the one
    /// built into this program (required)
    (long, value_name = "DIR|GGUF|NAME|tiny") model: String = String::new();
    /// Keep the matrices of the frozen model's blocks in the computer's own memory, and bring each block's to
    /// the GPU when it is passed: for models that do not fit. Every pass then waits for all of them to be
    /// copied. Not with --full [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    offload: bool = false;
    optional:
    /// Start from this LoRA adapter, a directory in PEFT's format, instead of a fresh one
    (long, value_name = "DIR") adapter: PathBuf;
    /// A chat template in Jinja, instead of the model's own
    (long, value_name = "FILE") chat_template: PathBuf;
    /// Keep the matrices of the frozen model's blocks in 4 bits (nf4) or 8 (q8) instead of the file's own
    /// type; quantised ones of a GGUF file stay as they are. Not with --full
    (long, value_name = "TYPE") quantize: Quantize;
}

section! {
    /// `[data]`: what it is trained on.
    DataConfig, DataFlags;

    /// Training examples, JSONL (.gz too), one of TRL's forms a line: prompt + completion + label (false = a
    /// flagged answer), or prompt + chosen + rejected. Texts are strings or lists of messages (required)
    (long, value_name = "FILE") train: PathBuf = PathBuf::new();
    /// Prompts longer than this many tokens are cut at --truncation-side [default: 512]
    (long, value_name = "TOKENS") max_prompt_length: usize = 512;
    /// Answers longer than this many tokens are treated as --overlong says [default: 256]
    (long, value_name = "TOKENS") max_completion_length: usize = 256;
    /// The side on which a long prompt loses tokens [default: left]
    (long, value_name = "SIDE") truncation_side: TruncationSide = TruncationSide::Left;
    /// What happens to an answer over --max-completion-length: "cut" scores its beginning, without an
    /// end-of-turn token; "drop" leaves the example out; "error" stops. Both are counted and reported
    /// [default: cut]
    (long, value_name = "WHAT") overlong: Overlong = Overlong::Cut;
    optional:
    /// Held-out examples for the stop rule, in the same forms; rows with a good answer (chosen, or label
    /// true) also watch its perplexity. Without this a small part of --train is held out
    (long, value_name = "FILE") eval: PathBuf;
    /// Use only the rows of --train whose "split" field is this
    (long, value_name = "NAME") split: String;
    /// Use only the rows of --eval whose "split" field is this; without --eval, take them from --train
    (long, value_name = "NAME") eval_split: String;
    /// Use at most this many training examples, the first ones
    (long, value_name = "N") max_samples: usize;
}

section! {
    /// `[method]`: the loss.
    MethodConfig, MethodFlags;

    /// The loss: "d2o" pushes flagged answers away and is anchored by the model's own samples; "dpo", "ipo",
    /// "hinge", "slic", "simpo" and "orpo" need a chosen answer for each rejected one; "kto" takes either;
    /// "npo", "simnpo", "ga" and "ul" take flagged answers alone; "sft" imitates the chosen ones [default:
    /// d2o]
    (long, value_name = "NAME") method: Method = Method::D2o;
    /// Weight of the flagged answer (d2o only) [default: 0.1]
    (long, value_name = "X") alpha: f64 = 0.1;
    /// K, the self-sampled anchors of each prompt (d2o only); more are steadier and cost more [default: 11]
    (long, value_name = "K") num_samples: usize = 11;
    /// Use mean log-probs per token where the loss has sums over the answer [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    length_normalize: bool = false;
    /// DPO's assumed share of swapped labels, 0 to 0.5 [default: 0.0]
    (long, value_name = "X") label_smoothing: f64 = 0.0;
    /// The margin of log-probs that slic asks for, in nats [default: 1.0]
    (long, value_name = "NATS") delta: f64 = 1.0;
    /// Weight of slic's imitation of the chosen answer [default: 1.0]
    (long, value_name = "X") sft_weight: f64 = 1.0;
    /// Weight of good answers (kto only) [default: 1.0]
    (long, value_name = "X") desirable_weight: f64 = 1.0;
    /// Weight of flagged answers (kto only) [default: 1.0]
    (long, value_name = "X") undesirable_weight: f64 = 1.0;
    optional:
    /// Weight of the anchors (d2o), lambda (orpo), else the inverse temperature: higher holds the model
    /// closer to where it started. Without it 0.1; of simpo 2, of simnpo 2.5
    (long, value_name = "X") beta: f64;
    /// The margin that rewards must reach: simpo's, 1 without this, and simnpo's, 0 without this
    (long, value_name = "X") gamma: f64;
}

section! {
    /// `[anchors]`: how the model's own answers are sampled.
    AnchorConfig, AnchorFlags;

    /// System message under which anchors are sampled; training always scores them without it. "" for none
    /// [default: a request to be careful and honest, and to refuse harmful requests]
    (long, value_name = "TEXT") safety_instruction: String = SAFETY_INSTRUCTION.into();
    /// Sampling temperature; 0 takes the likeliest token, and then only --num-samples 1 makes sense [default:
    /// 0.9]
    (long, value_name = "X") temperature: f64 = 0.9;
    /// Sample from the smallest set of tokens with this probability mass; 1 turns it off [default: 0.95]
    (long, value_name = "X") top_p: f64 = 0.95;
    /// Sample from this many of the likeliest tokens; 0 turns it off [default: 0]
    (long, value_name = "N") top_k: usize = 0;
    /// Divide the logits of tokens already seen by this; 1 turns it off [default: 1.0]
    (long, value_name = "X") repetition_penalty: f64 = 1.0;
    /// Anchors stop at this many tokens; one that is cut there has no end-of-turn token [default: 128]
    (long, value_name = "N") max_new_tokens: usize = 128;
    /// Answers that are decoded together, at most. Fewer take less memory and more time [default: 192]
    (long, value_name = "N") max_num_seqs: usize = MAX_NUM_SEQS;
    /// With --online-start-step: a prompt's anchors are sampled anew when they are this many steps old
    /// [default: 10]
    (long, value_name = "STEPS") refresh_every: usize = 10;
    /// Who samples online anchors: the reference model, the policy, or the policy under the safety
    /// instruction. The bare policy's own samples do not anchor it: their mean gradient is zero [default:
    /// policy_with_instruction]
    (long, value_name = "WHO") online_sampler: OnlineSampler = OnlineSampler::PolicyWithInstruction;
    optional:
    /// From this step on anchors are sampled anew from the model as it trains. Without it they are sampled
    /// once, before the first step
    (long, value_name = "STEP") online_start_step: usize;
    /// Take the anchors from this file, the samples.jsonl of an earlier run or of "aweigh sample"; only what
    /// is missing of --num-samples is sampled
    (long, value_name = "FILE") samples_file: PathBuf;
}

section! {
    /// `[reference]`: the models that log-ratios are taken against.
    ReferenceConfig, ReferenceFlags;

    /// r+, the reference under the flagged answer: "initial" (the model at step 0), "checkpoint:DIR" (an
    /// adapter of an earlier run, or with --full a model directory), "copy:N" (a copy of the model in
    /// training, every N steps) or "ema:DECAY" (its moving average). In a file: positive = "initial", {
    /// checkpoint = "DIR" }, { copy_every = N } or { ema = DECAY } [default: initial]
    (long = "reference-positive", value_name = "SOURCE") positive: ReferenceSource = ReferenceSource::Initial;
    /// r-, the reference under the anchors (for DPO: under the chosen answer). Forms as for
    /// --reference-positive [default: initial]
    (long = "reference-negative", value_name = "SOURCE") negative: ReferenceSource = ReferenceSource::Initial;
    optional:
}

section! {
    /// `[lora]`: which weights are trained.
    LoraConfig, LoraFlags;

    /// Train all weights instead of a LoRA adapter; writes model/ instead of adapter/. In a file:
    /// lora.enabled = false
    (
        id = "full", long = "full", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = super::values::inverted
    )
    enabled: bool = true;
    /// Rank of the adapter [default: 16]
    (long, value_name = "RANK") r: usize = 16;
    /// The adapter's output is scaled by lora_alpha / r [default: 32.0]
    (long, value_name = "X") lora_alpha: f64 = 32.0;
    /// Share of the adapter's inputs that is dropped in training [default: 0.0]
    (long, value_name = "P") lora_dropout: f64 = 0.0;
    /// Layers that get an adapter: names separated by commas, or "all-linear" (all but the output head)
    /// [default: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]
    (long, value_name = "NAMES") target_modules: TargetModules = TargetModules::default();
    optional:
}

section! {
    /// `[train]`: the optimizer and the steps.
    TrainConfig, TrainFlags;

    /// Peak learning rate of AdamW; ten times the default breaks most small models [default: 3e-5]
    (long, value_name = "X") learning_rate: f64 = 3e-5;
    /// Course of the rate after the warm-up: linear (to 0), cosine (to 0), constant_with_warmup, or constant
    /// (no warm-up) [default: linear]
    (long, value_name = "NAME") lr_scheduler_type: LrScheduler = LrScheduler::Linear;
    /// Steps over which the rate rises from 0; above 0 it replaces --warmup-ratio [default: 0]
    (long, value_name = "STEPS") warmup_steps: usize = 0;
    /// The same as a share of all steps [default: 0.0]
    (long, value_name = "SHARE") warmup_ratio: f64 = 0.0;
    /// How AdamW's moments are kept: "adamw" in f32, "adamw_8bit" in blocks of 8 bits, a quarter of the
    /// memory [default: adamw]
    (long, value_name = "NAME") optim: Optim = Optim::Adamw;
    /// AdamW's decoupled weight decay [default: 0.0]
    (long, value_name = "X") weight_decay: f64 = 0.0;
    /// AdamW's decay of the mean gradient [default: 0.9]
    (long, value_name = "X") adam_beta1: f64 = 0.9;
    /// AdamW's decay of the mean squared gradient [default: 0.999]
    (long, value_name = "X") adam_beta2: f64 = 0.999;
    /// AdamW's epsilon [default: 1e-8]
    (long, value_name = "X") adam_epsilon: f64 = 1e-8;
    /// Gradients with a larger global norm are scaled down to it; 0 turns clipping off [default: 1.0]
    (long, value_name = "X") max_grad_norm: f64 = 1.0;
    /// Groups (a prompt with all its answers) that go through the model together [default: 2]
    (long, value_name = "N") per_device_train_batch_size: usize = 2;
    /// Such batches per optimizer step; the result equals one large batch [default: 1]
    (long, value_name = "N") gradient_accumulation_steps: usize = 1;
    /// Passes over the data; --max-steps comes first [default: 1.0]
    (long, value_name = "X") num_train_epochs: f64 = 1.0;
    /// What the backward pass computes again instead of keeping it: "none" of the matrix products, the
    /// "mlp"'s first, or the "full" block. Less memory for more time, and the same result to the bit
    /// [default: none]
    (long, value_name = "WHAT") recompute: Recompute = Recompute::None;
    /// Seed of the sampling, the order of the data, new adapters and dropout [default: 42]
    (long, value_name = "N") seed: u32 = 42;
    /// Shuffle the examples in every epoch; --shuffle=false keeps the file's order [default: true]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    shuffle: bool = true;
    optional:
    /// Stop after this many optimizer steps, whatever --num-train-epochs says
    (long, value_name = "STEPS") max_steps: usize;
    /// Most packed tokens that go through the model together; a batch over it is split. Lower it when memory
    /// runs out
    (long, value_name = "TOKENS") max_tokens_per_batch: usize;
}

section! {
    /// `[stop]`: when a run ends early. The best state so far is kept.
    StopConfig, StopFlags;

    /// Never stop early. In a file: stop.enabled = false
    (
        id = "no_stop", long = "no-stop", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = super::values::inverted
    )
    enabled: bool = true;
    /// Score the held-out examples every so many steps [default: 5]
    (long, value_name = "STEPS") eval_steps: usize = 5;
    /// Stop when the held-out anchors' log-prob has fallen by more than this, in nats per token (methods of
    /// flagged answers alone) [default: 0.01]
    (long, value_name = "NATS") max_anchor_drop: f64 = 0.01;
    /// Stop when the KL divergence from the start, estimated on held-out anchors, passes this, in nats per
    /// token (methods of flagged answers alone) [default: 0.2]
    (long, value_name = "NATS") max_kl: f64 = 0.2;
    /// A step whose loss or gradient is no finite number is skipped; stop after so many in a row [default: 5]
    (long, value_name = "STEPS") max_skipped: usize = 5;
    /// The margin is won where the held-out mean of the reward margin (D²O's z) has grown by this; further
    /// steps only do harm [default: 3.0]
    (long, value_name = "Z") margin: f64 = 3.0;
    /// Stop when the margin was won in this many evaluations in a row [default: 2]
    (long, value_name = "N") patience: usize = 2;
    /// Stop when the perplexity of held-out good answers, if there are any, has risen by more than this share
    /// [default: 0.05]
    (long, value_name = "SHARE") max_perplexity_rise: f64 = 0.05;
    optional:
}

section! {
    /// `[output]`: what is written, and where.
    OutputConfig, OutputFlags;

    /// The run's folder: config.toml, metrics.jsonl and TensorBoard's event file, samples.jsonl,
    /// completions.jsonl, summary.json, and adapter/ or model/ (required)
    (long, value_name = "DIR") output_dir: PathBuf = PathBuf::new();
    /// Write metrics every so many steps [default: 1]
    (long, value_name = "STEPS") logging_steps: usize = 1;
    /// Write the anchors and their log-probs to samples.jsonl [default: true]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    save_samples: bool = true;
    /// Held-out prompts that are answered at every evaluation, into completions.jsonl; "aweigh report" shows
    /// how answers changed. 0 for none [default: 3]
    (long, value_name = "N") num_completions: usize = 3;
    /// Write a checkpoint every so many minutes, and one before the first step; "aweigh align --resume DIR"
    /// goes on from the last. 0 for none by the clock [default: 10.0]
    (long, value_name = "MINUTES") save_minutes: f64 = 10.0;
    /// Keep this many checkpoints, the last ones; each holds the best state too. A finished run keeps none
    /// [default: 2]
    (long, value_name = "N") save_total_limit: usize = 2;
    optional:
    /// Write a checkpoint every so many steps as well
    (long, value_name = "STEPS") save_steps: usize;
}

section! {
    /// `[gpu]`: the adapter that does the work.
    GpuConfig, GpuFlags;
    /// Take every kernel as it is guessed, not as "aweigh devices --tune" measured it. In a file: gpu.tuning
    /// = false
    (
        id = "no_tuning", long = "no-tuning", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = super::values::inverted
    )
    tuning: bool = true;
    /// Whether the inputs of matrix products may be rounded to f16, where the GPU has it; sums stay f32
    /// [default: f32]
    (long, value_name = "TYPE") precision: Precision = Precision::F32;
    /// Change settings until the run fits --memory: first those that leave every result as it is
    /// (--max-num-seqs, --max-tokens-per-batch, --recompute), then --optim, then --quantize, and if those do
    /// not suffice --offload too [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    fit: bool = false;
    /// Leave the GPU to the display and to others: short submits, and pauses between them. Slower, and the
    /// same result [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    background: bool = false;
    /// Now and then compare what a kernel computed in this run with its reference on the processor, and stop
    /// where they differ. Takes a tenth of the time, and the same result [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    paranoid: bool = false;
    /// Keep the run's state in the computer's own memory every so many steps: a run whose GPU is lost goes on
    /// from there. 0 for the checkpoints' states alone [default: 25]
    (long, value_name = "STEPS") snapshot_steps: usize = 25;
    optional:
    /// The most memory the run may take on the GPU, as in 4GB or 3.5GiB: a run whose plan exceeds it does not
    /// begin. The graphics API does not tell how much a GPU has
    (long, value_name = "SIZE") memory: MemorySize;
    /// The GPU: its number in "aweigh devices", or a part of its name. Without it the best one is taken. In a
    /// file: gpu.adapter
    (id = "gpu", long = "gpu", value_name = "NUMBER|NAME", env = "AWEIGH_GPU") adapter: String;
    /// Aim at this many milliseconds of work per submission to the GPU. Lower it when the display stutters or
    /// the driver resets; without it the length adapts by itself
    (long = "submit-budget", value_name = "MS") submit_budget: f64;
}
