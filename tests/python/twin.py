"""A model in PyTorch, sampled and scored as the engine does it: what habit.py and refuse.py share."""

import json

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def text(messages):
    return messages[0]["content"]


class Model:
    """A model, its tokenizer, and where its answers end."""

    def __init__(self, path, adapter=None):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.lm = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if adapter:
            self.lm = PeftModel.from_pretrained(self.lm, adapter).merge_and_unload()
        self.end = self.tokenizer.eos_token_id

    def prompt(self, messages):
        form = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(form, add_special_tokens=False).input_ids

    def answer(self, messages, most=64):
        ids = self.tokenizer(text(messages), add_special_tokens=False).input_ids
        return (ids + [self.end])[:most]

    def core(self):
        return self.lm.get_base_model() if isinstance(self.lm, PeftModel) else self.lm

    @torch.inference_mode()
    def sample(self, prompts, most, seed, shown=(), temperature=0.9, top_p=0.95, rows=64):
        """An answer to each prompt, after the messages of `shown`."""
        torch.manual_seed(seed)
        core = self.core()
        ids = [self.prompt([*shown, *prompt]) for prompt in prompts]
        shared = 0
        while all(len(row) > shared + 1 and row[shared] == ids[0][shared] for row in ids):
            shared += 1
        prefix = DynamicCache()
        core.model(input_ids=torch.tensor([ids[0][:shared]]), past_key_values=prefix, use_cache=True)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = [""] * len(ids)
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            own = [ids[i][shared:] for i in chosen]
            width = max(map(len, own))
            tokens = torch.tensor([[self.end] * (width - len(row)) + row for row in own])
            mask = torch.tensor(
                [[1] * shared + [0] * (width - len(row)) + [1] * len(row) for row in own]
            )
            place = (mask.cumsum(1) - 1)[:, shared:].clamp(min=0)
            cache = DynamicCache()
            for layer, source in enumerate(prefix.layers):
                many = (len(chosen), -1, -1, -1)
                cache.update(source.keys.expand(many), source.values.expand(many), layer)
            done = torch.zeros(len(chosen), dtype=torch.bool)
            drawn = []
            while True:
                states = core.model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=place,
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[:, -1]
                shares = (core.lm_head(states).float() / temperature).softmax(-1)
                if top_p < 1:
                    shares, choice = shares.topk(2000, -1)
                    shares = shares.masked_fill(shares.cumsum(-1) - shares > top_p, 0)
                    token = choice.gather(1, torch.multinomial(shares, 1))[:, 0]
                else:
                    token = torch.multinomial(shares, 1)[:, 0]
                token = torch.where(done, self.end, token)
                drawn.append(token)
                done |= token == self.end
                if done.all() or len(drawn) == most:
                    break
                tokens, place = token[:, None], place[:, -1:] + 1
                mask = torch.cat([mask, torch.ones(len(chosen), 1, dtype=mask.dtype)], 1)
            for i, row in zip(chosen, torch.stack(drawn, 1).tolist()):
                row = row[: row.index(self.end)] if self.end in row else row
                out[i] = self.tokenizer.decode(row, skip_special_tokens=True)
        return out

    def log_probs(self, groups):
        """The log-prob of each answer token; a group is a prompt and its answers, in one row."""
        sizes = [len(prompt) + sum(map(len, answers)) for prompt, answers in groups]
        width = max(sizes)
        tokens = torch.full((len(groups), width), self.end)
        place = torch.zeros(len(groups), width, dtype=torch.long)
        seen = torch.eye(width, dtype=torch.bool).repeat(len(groups), 1, 1)
        source, target, lengths = [], [], []
        for row, (prompt, answers) in enumerate(groups):
            ahead = len(prompt)
            tokens[row, :ahead] = torch.tensor(prompt)
            place[row, :ahead] = torch.arange(ahead)
            seen[row, :ahead, :ahead] = torch.ones(ahead, ahead).tril().bool()
            start = ahead
            for answer in answers:
                end = start + len(answer)
                tokens[row, start:end] = torch.tensor(answer)
                place[row, start:end] = torch.arange(ahead, ahead + len(answer))
                seen[row, start:end, :ahead] = True
                seen[row, start:end, start:end] = torch.ones(len(answer), len(answer)).tril().bool()
                source += [row * width + i for i in [ahead - 1, *range(start, end - 1)]]
                target += answer
                lengths.append(len(answer))
                start = end
        hidden = torch.zeros(seen.shape).masked_fill(~seen, -1e9)[:, None]
        core = self.core()
        states = core.model(
            input_ids=tokens, attention_mask=hidden, position_ids=place, use_cache=False
        ).last_hidden_state.flatten(0, 1)[torch.tensor(source)]
        logits = core.lm_head(states).float()
        each = iter(F.cross_entropy(logits, torch.tensor(target), reduction="none").neg().split(lengths))
        return [[next(each) for _ in answers] for _, answers in groups]
