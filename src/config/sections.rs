//! The sections of the settings: every key with its default, its flag and its help.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::{
    AnchorChoice, Beta, MemorySize, NegativeChoice, OnlineSampler, OrNone, Overlong, ReferenceSource,
    TruncationSide,
};
use crate::data::{Label, Rule};
use crate::gpu::{Backend, Precision, Quantize};
use crate::loss::{Method, Retain};
use crate::model::TargetModules;
use crate::nn::Recompute;
use crate::optim::{LrScheduler, Optim};

/// The value of `anchor_examples` that means the built-in examples, refusals of harmful requests.
pub const BUILT_IN_EXAMPLES: &str = "refusals";

/// Maximum number of answers that are decoded together.
pub const MAX_NUM_SEQS: usize = 192;

section! {
    /// `[model]`: the model that is trained.
    ModelConfig, ModelFlags;

    /// The model: a directory in Hugging Face's layout (config.json, tokenizer.json, *.safetensors), a GGUF
    /// file, a name on the Hugging Face Hub (owner/name, or owner/name/FILE.gguf), or "tiny" for the
    /// built-in model (required)
    (long, value_name = "DIR|GGUF|NAME|tiny") model: String = String::new();
    /// Keep the weight matrices of the frozen model's blocks in host memory and copy them to the GPU one
    /// block at a time: for models that do not fit. Slower, because every pass copies all of them. Not with
    /// --full [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    offload: bool = false;
    optional:
    /// Start from this LoRA adapter, a directory in PEFT's format, instead of a new one
    (long, value_name = "DIR") adapter: PathBuf;
    /// Jinja chat template to use instead of the model's own
    (long, value_name = "FILE") chat_template: PathBuf;
    /// Quantise the weight matrices of the frozen model's blocks to 4 bits (nf4) or 8 bits (q8); those that a
    /// GGUF file already quantises stay as they are. Not with --full
    (long, value_name = "TYPE") quantize: Quantize;
}

section! {
    /// `[data]`: the training and held-out examples.
    DataConfig, DataFlags;

    /// Training examples as JSONL, a JSON list or CSV (may be gzipped) or Parquet, in one of TRL's forms:
    /// prompt, completion and label (false = a flagged answer), or prompt, chosen and rejected; or in
    /// ShareGPT's, Alpaca's or Open WebUI's form. Texts are strings or lists of messages. `aweigh data` shows
    /// how a file is read (required)
    (long, value_name = "FILE") train: PathBuf = PathBuf::new();
    /// Maximum prompt length in tokens; --overlong says what happens to a longer prompt [default: 512]
    (long, value_name = "TOKENS") max_prompt_length: usize = 512;
    /// Maximum answer length in tokens; --overlong says what happens to a longer answer [default: 256]
    (long, value_name = "TOKENS") max_completion_length: usize = 256;
    /// The side on which a prompt that is too long is cut [default: left]
    (long, value_name = "SIDE") truncation_side: TruncationSide = TruncationSide::Left;
    /// What happens to a prompt or an answer over its maximum length: "cut" truncates it (an answer at its
    /// end, which leaves no end-of-turn token); "drop" leaves the example out; "error" stops. Cut and dropped
    /// examples are counted and reported [default: cut]
    (long, value_name = "WHAT") overlong: Overlong = Overlong::Cut;
    optional:
    /// Held-out examples for the stop rule, in the same forms as --train; the perplexity of their good
    /// answers (chosen, or label true) is monitored too. Without this, a small part of --train is held out
    (long, value_name = "FILE") eval: PathBuf;
    /// Use only the rows of --train whose "split" field is NAME
    (long, value_name = "NAME") split: String;
    /// Use only the rows of --eval whose "split" field is NAME; without --eval, those rows of --train, which
    /// then needs --split
    (long, value_name = "NAME") eval_split: String;
    /// Use only the first N training examples
    (long, value_name = "N") max_samples: usize;
    /// The column of --train and --eval with the verdicts, if it is not "label": true or false, 1 or -1, up
    /// or down. NAME<=X: the column holds numbers on a scale, and X and less are flagged
    (long, value_name = "NAME|NAME<=X") label: Label;
}

section! {
    /// `[method]`: the loss.
    MethodConfig, MethodFlags;

    /// The loss: "d2o" makes flagged answers less likely, with the model's own samples as anchors; "dpo",
    /// "ipo", "hinge", "slic", "simpo" and "orpo" need pairs of a chosen and a rejected answer; "kto" takes
    /// good or flagged answers; "npo", "simnpo", "ga" and "ul" take flagged answers only; "sft" takes good
    /// answers only [default: d2o]
    (long, value_name = "NAME") method: Method = Method::D2o;
    /// K: number of anchors sampled for each training prompt (d2o only); more are steadier and cost more
    /// [default: 2]
    (long, value_name = "K") num_samples: usize = 2;
    /// Use the mean log-prob per token where the loss uses the sum over the answer [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    length_normalize: bool = false;
    /// Assumed share of swapped labels, from 0 to below 0.5 (dpo only) [default: 0.0]
    (long, value_name = "X") label_smoothing: f64 = 0.0;
    /// Target margin between the log-probs of the two answers, in nats (slic only) [default: 1.0]
    (long, value_name = "NATS") delta: f64 = 1.0;
    /// Weight of the SFT term on the chosen answer (slic only) [default: 1.0]
    (long, value_name = "X") sft_weight: f64 = 1.0;
    /// Weight of good answers (kto only) [default: 1.0]
    (long, value_name = "X") desirable_weight: f64 = 1.0;
    /// Weight of flagged answers (kto only) [default: 1.0]
    (long, value_name = "X") undesirable_weight: f64 = 1.0;
    optional:
    /// Weight of the flagged answer (d2o only). If not given: beta to the power of 1.5, at
    /// most 1
    (long, value_name = "X") alpha: f64;
    /// d2o: weight of the anchors, or "auto", which measures how far the anchors are from what the model
    /// answers by itself, and sets beta from that; orpo: lambda; other methods: inverse temperature, higher
    /// keeps the model closer to where it started. If not given: auto for d2o, 2 for simpo, 2.5 for simnpo,
    /// 0.1 for others
    (long, value_name = "X|auto") beta: Beta;
    /// Stop lowering a flagged answer once its log-prob is this many nats below that of its reference (d2o
    /// only); with --length-normalize, nats per token. Without this, only the loss itself sets an end
    (long, value_name = "NATS") negative_floor: f64;
    /// Target reward margin (simpo and simnpo only). If not given: 1 for simpo, 0 for simnpo
    (long, value_name = "X") gamma: f64;
}

section! {
    /// `[anchors]`: how the model's own answers are sampled.
    AnchorConfig, AnchorFlags;

    /// System message for sampling anchors, such as "Be kind."; training always scores them without it. Small
    /// models hardly follow one without worked examples (--anchor-examples). "" for none [default: none]
    (long, value_name = "TEXT") safety_instruction: String = String::new();
    /// Sampling temperature; 0 is greedy decoding, for which only --num-samples 1 makes sense [default: 0.9]
    (long, value_name = "X") temperature: f64 = 0.9;
    /// Sample from the smallest set of tokens with this probability mass; 1 turns it off [default: 0.95]
    (long, value_name = "X") top_p: f64 = 0.95;
    /// Sample from the N most likely tokens; 0 turns it off [default: 0]
    (long, value_name = "N") top_k: usize = 0;
    /// Penalty for tokens that are already in the prompt or the answer: above 1 makes them less likely; 1
    /// turns it off [default: 1.0]
    (long, value_name = "X") repetition_penalty: f64 = 1.0;
    /// Maximum length of an anchor, in tokens; an anchor cut there has no end-of-turn token [default: 128]
    (long, value_name = "N") max_new_tokens: usize = 128;
    /// Maximum number of answers decoded together; fewer take less memory and more time [default: 192]
    (long, value_name = "N") max_num_seqs: usize = MAX_NUM_SEQS;
    /// With --online-start-step: resample a prompt's anchors when they are this many steps old [default: 10]
    (long, value_name = "STEPS") refresh_every: usize = 10;
    /// The model that samples online anchors: the reference, the policy, or the policy with the safety
    /// instruction. Samples of the policy without the instruction do not anchor it: their mean gradient is
    /// zero [default: policy_with_instruction]
    (long, value_name = "WHO") online_sampler: OnlineSampler = OnlineSampler::PolicyWithInstruction;
    /// Worked examples of what is wanted, placed before the prompt for sampling anchors only: a JSON file
    /// with a list of messages, user and assistant in turn, or "refusals" for the built-in refusals of
    /// harmful requests [default: none]
    (long, value_name = "FILE|refusals|none") anchor_examples: OrNone<String> = OrNone(None);
    /// Keep only sampled anchors for which this rule holds: "refusal" (the answer refuses), "match:REGEX" (it
    /// matches, in upper or lower case), or one of them with "not:" in front. Others are sampled again, a few
    /// times. Anchors given in the training rows are not filtered. Without this, --unwanted filters by its
    /// opposite [default: none]
    (long, value_name = "RULE|none") anchor_filter: OrNone<Rule> = OrNone(None);
    /// Which anchors are used, given ones too (d2o only): "all"; "pu" estimates from the flagged answers
    /// how many of the anchors are like them, and leaves those out; "pu_weight" weighs each by the
    /// probability that it is good instead; "meter:METER" leaves out those that a meter of "aweigh eval"
    /// scores above 0.5 [default: all]
    (id = "anchors", long = "anchors", value_name = "WHICH") choice: AnchorChoice = AnchorChoice::All;
    /// With --online-start-step: the share of a prompt's anchors that are sampled again, at least one; the
    /// others stay as they were before the first step [default: 1.0]
    (id = "fresh_anchors", long = "fresh-anchors", value_name = "SHARE") fresh_share: f64 = 1.0;
    optional:
    /// From this step on, resample anchors from the model as it trains. Without this, anchors are sampled
    /// once, before the first step
    (long, value_name = "STEP") online_start_step: usize;
    /// Take the anchors from this file: samples.jsonl of an earlier run, or the output of "aweigh sample".
    /// Prompts with fewer than --num-samples there get the rest sampled
    (long, value_name = "FILE") samples_file: PathBuf;
}

section! {
    /// `[negatives]`: which flagged answers each step trains on.
    NegativeConfig, NegativeFlags;

    /// Which flagged answers each step trains on (d2o, npo, simnpo, ga and ul only; generated, debiased and
    /// paired need d2o) [default: uniform]
    (id = "negatives", long = "negatives", value_name = "WHICH")
    choice: NegativeChoice = NegativeChoice::Uniform;
    /// System message for --negatives generated, such as "Be rude to the customer."; the answers under it
    /// become further flagged answers if --anchors (pu, pu_weight or a meter) finds them bad. Only sampling
    /// sees it [default: none]
    (long, value_name = "TEXT") harmful_instruction: String = String::new();
    /// With --negatives generated: how often a prompt that has such an answer is trained on with it instead
    /// of its row's answer. It is sampled again when it is --refresh-every steps old [default: 0.5]
    (id = "fresh_negatives", long = "fresh-negatives", value_name = "SHARE") fresh_share: f64 = 0.5;
    /// Divide the training prompts into N clusters by the model's hidden states, and draw from each as often,
    /// so that a frequent topic does not drown the others; 0 turns it off [default: 0]
    (long, value_name = "N") balance: usize = 0;
    optional:
}

section! {
    /// `[reference]`: the reference models of the log-ratios.
    ReferenceConfig, ReferenceFlags;

    /// r+, the reference for the flagged answer: "initial" (the model at step 0), "checkpoint:DIR" (an
    /// adapter of an earlier run, or with --full a model directory), "copy:N" (a copy of the policy, renewed
    /// every N steps) or "ema:DECAY" (the policy's exponential moving average). In a file: positive =
    /// "initial", { checkpoint = "DIR" }, { copy_every = N } or { ema = DECAY } [default: initial]
    (long = "reference-positive", value_name = "SOURCE") positive: ReferenceSource = ReferenceSource::Initial;
    /// r-, the reference for the anchors (with pairs: for the chosen answer). Same forms as
    /// --reference-positive [default: initial]
    (long = "reference-negative", value_name = "SOURCE") negative: ReferenceSource = ReferenceSource::Initial;
    optional:
}

section! {
    /// `[retain]`: a term that keeps the answers to ordinary prompts as they are.
    RetainConfig, RetainFlags;

    /// The retain term, a second loss on the model's own answers to ordinary prompts, sampled before the
    /// first step: "sft" trains on them, "kl" keeps the KL divergence from the model before training small,
    /// "none" turns it off. In a file: retain.form [default: none]
    (long = "retain", value_name = "FORM") form: Retain = Retain::None;
    /// Weight of the retain term [default: 1.0]
    (long = "retain-weight", value_name = "X") weight: f64 = 1.0;
    /// Ordinary prompts added to each batch [default: 2]
    (long = "retain-batch-size", value_name = "N") batch_size: usize = 2;
    optional:
    /// Ordinary prompts: JSONL in the forms of --train; answers in it are not used. Every fourth is not
    /// trained on: the stop rule reads the answers to these. Without this, built-in prompts
    (long = "retain-data", value_name = "FILE") data: PathBuf;
    /// Tokens of each retained answer, at most. A refusal shows in the first few: short answers keep the
    /// model from refusing, and are cheap. If not given: --max-new-tokens
    (id = "retain_max_new_tokens", long = "retain-max-new-tokens", value_name = "N") max_new_tokens: usize;
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
    /// Dropout probability of the adapter's inputs in training [default: 0.0]
    (long, value_name = "P") lora_dropout: f64 = 0.0;
    /// Layers that get an adapter: names separated by commas, such as q_proj,v_proj, or "all-linear" (all
    /// linear layers but the output head) [default: all-linear]
    (long, value_name = "NAMES") target_modules: TargetModules = TargetModules::default();
    optional:
}

section! {
    /// `[train]`: optimizer, schedule, batches and steps.
    TrainConfig, TrainFlags;

    /// Learning-rate schedule after the warm-up: linear (to 0), cosine (to 0), constant_with_warmup, or
    /// constant (no warm-up) [default: constant_with_warmup]
    (long, value_name = "NAME") lr_scheduler_type: LrScheduler = LrScheduler::ConstantWithWarmup;
    /// Optimizer: "adamw" keeps AdamW's moments in f32, "adamw_8bit" in blocks of 8 bits, which take a
    /// quarter of the memory [default: adamw]
    (long, value_name = "NAME") optim: Optim = Optim::Adamw;
    /// AdamW's decoupled weight decay [default: 0.0]
    (long, value_name = "X") weight_decay: f64 = 0.0;
    /// AdamW's decay rate of the first moment, the mean gradient [default: 0.9]
    (long, value_name = "X") adam_beta1: f64 = 0.9;
    /// AdamW's decay rate of the second moment, the mean squared gradient [default: 0.999]
    (long, value_name = "X") adam_beta2: f64 = 0.999;
    /// AdamW's epsilon [default: 1e-8]
    (long, value_name = "X") adam_epsilon: f64 = 1e-8;
    /// Gradients with a larger global norm are scaled down to it; 0 turns clipping off [default: 1.0]
    (long, value_name = "X") max_grad_norm: f64 = 1.0;
    /// Groups (a prompt with all its answers) per batch [default: 4]
    (long, value_name = "N") per_device_train_batch_size: usize = 4;
    /// Batches per optimizer step; the result equals that of one large batch [default: 1]
    (long, value_name = "N") gradient_accumulation_steps: usize = 1;
    /// Passes over the data; --max-steps overrides it [default: 1.0]
    (long, value_name = "X") num_train_epochs: f64 = 1.0;
    /// What the backward pass recomputes instead of storing: "none" (no matrix product), "mlp" (the MLP's
    /// first matrix product) or "full" (the whole block). Less memory, more time, bit-identical results
    /// [default: none]
    (long, value_name = "WHAT") recompute: Recompute = Recompute::None;
    /// Random seed of sampling, data order, new adapters and dropout [default: 42]
    (long, value_name = "N") seed: u32 = 42;
    /// Shuffle the examples in every epoch; --shuffle=false keeps the file's order [default: true]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    shuffle: bool = true;
    optional:
    /// Peak learning rate of AdamW. If not given: 2e-4 for d2o and 1e-4 for other methods; with --full a
    /// tenth of these
    (long, value_name = "X") learning_rate: f64;
    /// Warm-up steps, over which the learning rate rises from 0. If not given: 3, but at most
    /// a tenth of all steps, or what --warmup-ratio says; none for the schedule constant
    (long, value_name = "STEPS") warmup_steps: usize;
    /// Warm-up steps as a share of all steps; --warmup-steps overrides it
    (long, value_name = "SHARE") warmup_ratio: f64;
    /// Number of optimizer steps; overrides --num-train-epochs
    (long, value_name = "STEPS") max_steps: usize;
    /// Maximum number of packed tokens in one pass; a larger batch is split. Lower it when memory runs out
    (long, value_name = "TOKENS") max_tokens_per_batch: usize;
}

section! {
    /// `[stop]`: when a run ends early. The best state so far is kept.
    StopConfig, StopFlags;

    /// Turn off the stop rule, all but --max-skipped. In a file: stop.enabled = false
    (
        id = "no_stop", long = "no-stop", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = super::values::inverted
    )
    enabled: bool = true;
    /// Optimizer steps between evaluations of the held-out examples [default: 10]
    (long, value_name = "STEPS") eval_steps: usize = 10;
    /// Stop when the mean log-prob of the held-out anchors has fallen by more than this, in nats per token;
    /// 0.05 is 5% of their perplexity (d2o, npo, simnpo, ga and ul only) [default: 0.05]
    (long, value_name = "NATS") max_anchor_drop: f64 = 0.05;
    /// Stop when the KL divergence from the initial model, estimated on the held-out anchors, exceeds this,
    /// in nats per token (d2o, npo, simnpo, ga and ul only; not with --anchor-examples) [default: 0.2]
    (long, value_name = "NATS") max_kl: f64 = 0.2;
    /// Stop after this many steps in a row with a NaN or infinite loss or gradient; each of these steps is
    /// skipped [default: 5]
    (long, value_name = "STEPS") max_skipped: usize = 5;
    /// Target growth of the mean reward margin (D²O's z) on held-out examples; more training after it only
    /// does harm. See --patience [default: 3.0]
    (long, value_name = "Z") margin: f64 = 3.0;
    /// Stop when --margin was reached in this many evaluations in a row [default: 2]
    (long, value_name = "N") patience: usize = 2;
    /// Stop when the perplexity of the held-out good answers, if there are any, has risen by more than this
    /// share [default: 0.05]
    (long, value_name = "SHARE") max_perplexity_rise: f64 = 0.05;
    /// Stop when the share of unwanted answers to held-out flagged prompts is at most this in --patience
    /// evaluations in a row; with --unwanted, this replaces --margin. The answers are few: of more answers,
    /// 10% may be unwanted where none of 24 is [default: 0.0]
    (long, value_name = "SHARE") target_unwanted: f64 = 0.0;
    /// Stop when the share of ordinary prompts that the model refuses to answer has risen by more than this
    /// [default: 0.1]
    (long, value_name = "SHARE") max_refusal_rise: f64 = 0.1;
    /// Stop when distinct-2 of the answers to ordinary prompts, the share of their word pairs that are
    /// different, has fallen by more than this share [default: 0.2]
    (long, value_name = "SHARE") max_distinct_drop: f64 = 0.2;
    /// Stop when the mean length of the answers to ordinary prompts has changed by more than this share
    /// [default: 0.3]
    (long, value_name = "SHARE") max_length_change: f64 = 0.3;
    optional:
    /// The rule that tells an unwanted answer, in the forms of --anchor-filter. The state that is kept has
    /// few unwanted answers to held-out flagged prompts, at most one more than the best, and sampled anchors
    /// are only answers that are not unwanted. If not given: the opposite of --anchor-filter
    (long, value_name = "RULE") unwanted: Rule;
}

section! {
    /// `[output]`: what is written, and where.
    OutputConfig, OutputFlags;

    /// The run's folder: config.toml, metrics.jsonl and TensorBoard's event file, samples.jsonl,
    /// completions.jsonl, summary.json, and adapter/ or model/ (required)
    (long, value_name = "DIR") output_dir: PathBuf = PathBuf::new();
    /// Optimizer steps between lines of training metrics [default: 1]
    (long, value_name = "STEPS") logging_steps: usize = 1;
    /// Write the anchors and their log-probs to samples.jsonl [default: true]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    save_samples: bool = true;
    /// Number of held-out flagged prompts, and of ordinary prompts, that are answered at every evaluation,
    /// into completions.jsonl. The stop rule reads these answers, and "aweigh report" shows how they changed.
    /// 0 for none [default: 24]
    (long, value_name = "N") num_completions: usize = 24;
    /// Maximum length of these answers, in tokens [default: 32]
    (long, value_name = "TOKENS") completion_tokens: usize = 32;
    /// Minutes between checkpoints; one is also written before the first step. "aweigh align --resume DIR"
    /// continues from the last one. 0 turns off checkpoints by time [default: 10.0]
    (long, value_name = "MINUTES") save_minutes: f64 = 10.0;
    /// Keep only the last N checkpoints; each contains the best state too. A finished run keeps none
    /// [default: 2]
    (long, value_name = "N") save_total_limit: usize = 2;
    optional:
    /// Optimizer steps between checkpoints, in addition to --save-minutes
    (long, value_name = "STEPS") save_steps: usize;
}

section! {
    /// `[gpu]`: which GPU is used, and how.
    GpuConfig, GpuFlags;
    /// Ignore the kernel choices that "aweigh devices --tune" measured on this GPU. In a file: gpu.tuning =
    /// false
    (
        id = "no_tuning", long = "no-tuning", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = super::values::inverted
    )
    tuning: bool = true;
    /// Precision of the inputs of matrix products; f16 rounds them if the GPU supports f16. Sums stay f32
    /// [default: f32]
    (long, value_name = "TYPE") precision: Precision = Precision::F32;
    /// Change settings until the run fits --memory: first --max-num-seqs, --max-tokens-per-batch and
    /// --recompute, which change results at most by rounding (and dropout masks), then --optim, then
    /// --quantize, and if those do not suffice --offload too [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    fit: bool = false;
    /// Leave GPU time to the display and other programs: short submits with pauses between them. Slower;
    /// results do not change [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    background: bool = false;
    /// Compare some of this run's kernel results with f64 references on the CPU, and stop if they differ.
    /// Takes up to about a tenth of the time; results do not change [default: false]
    (long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")
    paranoid: bool = false;
    /// Optimizer steps between copies of the run's state to host memory; a run that loses its GPU continues
    /// from the last copy. 0 copies only when a checkpoint is written [default: 25]
    (long, value_name = "STEPS") snapshot_steps: usize = 25;
    optional:
    /// Maximum GPU memory for the run, as in 4GB or 3.5GiB: a run whose plan exceeds it does not start. The
    /// graphics API does not tell how much memory a GPU has
    (long, value_name = "SIZE") memory: MemorySize;
    /// GPU to use: its number in "aweigh devices", or part of its name. Without it, the fastest kind is used.
    /// In a file: gpu.adapter
    (id = "gpu", long = "gpu", value_name = "NUMBER|NAME", env = "AWEIGH_GPU") adapter: String;
    /// Graphics API to use. Without it, all that the system offers; OpenGL (gl) only if there is no other
    (long, value_name = "API") backend: Backend;
    /// Target duration of one submit to the GPU, in milliseconds. Lower it when the display stutters or the
    /// driver resets. If not given: 200, with --background 15
    (long = "submit-budget", value_name = "MS") submit_budget: f64;
}
