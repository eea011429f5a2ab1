"""The limit: the same PPO step written by hand, without a trainer. What our trainer is measured against, not a product.

    python benchmarks/limit.py --check      compare its gradients with plain autograd through transformers' GPT-2

One trunk with a value head; old log-probabilities and values kept while sampling; a KV cache allocated once; logits at
answer positions only, a chunk at a time; head and loss in one pass that leaves a gradient instead of logits; one
backward call. The numbers of the algorithm (advantages, losses, per-token rewards) are alignkit's own functions.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from clock import Clock
from gpt2 import Weights, attention_mask, empty_cache, trunk
from job import END_OF_SEQUENCE, KL_COEF, LEARNING_RATE, PAD, SEED, Job, changed, model, prompts, tokenizer
from torch.nn import functional as F

from alignkit.advantages import gae, token_rewards, whiten
from alignkit.losses import clipped_policy_loss, clipped_value_loss

CLIP, VALUE_COEF, LAMBDA = 0.2, 0.1, 0.95
CHUNK = 256  # answer positions whose logits exist at one time
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Rollout = dict[str, torch.Tensor]


class Limit:
    """PPO by hand.

    Args:
        job: model, batch, steps, precision.
        clock: is told of every step.
        phase: opens a phase of `phases.py`; does nothing in a timed run.
    """

    def __init__(self, job: Job, clock: Clock, phase: Callable[[str], AbstractContextManager] = nullcontext):
        torch.manual_seed(SEED)
        self.job, self.clock, self.phase, self.dtype = job, clock, phase, DTYPES[job.precision]
        policy = model(job).eval()
        self.weights = Weights.of(policy)
        self.reference = self.weights.frozen_copy().cast(self.dtype)
        self.value_head = torch.nn.Linear(job.width, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        trained = [*self.weights.tensors.values(), *self.value_head.parameters()]
        self.optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
        encode = tokenizer(job)
        self.prompts = [encode(row["prompt"])["input_ids"] for row in prompts(job)]
        self.order = torch.randperm(len(self.prompts)).tolist()

    def train(self) -> None:
        """All steps of the job."""
        self.clock.start()
        for step in range(self.job.warmup + self.job.steps):
            rollout = self.rollout(*self.batch(step))
            for _ in range(self.job.epochs):
                self.gradients(rollout)
                with self.phase("optimiser"):
                    self.optimiser.step()
                    self.optimiser.zero_grad()
            self.clock.end_step()

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The step's prompts, padded on the left, and where they are real: both (B, P)."""
        chosen = [self.order[(step * self.job.batch + i) % len(self.order)] for i in range(self.job.batch)]
        rows = [torch.tensor(self.prompts[i]) for i in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1, padding_side="left")
        return ids.where(ids >= 0, PAD), ids >= 0

    @torch.no_grad()
    def rollout(self, prompt: torch.Tensor, real: torch.Tensor) -> Rollout:
        """Sample, score, shape: everything that the updates read."""
        answer, old_log_probs, old_values, positions, mask = self.sample(prompt, real)
        first = prompt.shape[1] - 1  # the last prompt token predicts the first answer token
        # the last answer token predicts nothing that is used
        ids = torch.cat([prompt, answer[:, :-1]], 1)
        with self.phase("old_scores"):
            states = trunk(self.reference, ids, positions, mask, first)
            ref_log_probs = self.log_probs(self.reference, states.flatten(0, 1), answer.flatten()).view_as(answer)
        with self.phase("reward"):
            scores = (answer % 2 == 0).float().mean(1)
        whole = torch.ones_like(answer, dtype=torch.bool)
        rewards = token_rewards(scores, whole, old_log_probs - ref_log_probs, KL_COEF)
        advantages, returns = gae(rewards, old_values, whole, 1.0, LAMBDA)
        return {
            "ids": ids,
            "positions": positions,
            "mask": mask,
            "first": torch.tensor(first),
            "answer": answer.flatten(),
            "old_log_probs": old_log_probs.flatten(),
            "old_values": old_values.flatten(),
            "advantages": whiten(advantages, whole).flatten(),
            "returns": returns.flatten(),
        }

    def sample(self, prompt: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Answers (B, T), their log-probabilities and values, and positions and mask of prompt and answer together."""
        with self.phase("sampling"):
            rows, width, new = *prompt.shape, self.job.new_tokens
            weights = self.weights.cast(self.dtype)
            real = torch.cat([real, real.new_ones(rows, new - 1)], 1)
            positions = (real.long().cumsum(1) - 1).clamp(min=0)
            mask = attention_mask(real, self.dtype)
            cache = empty_cache(weights, rows, width + new - 1)
            head = weights["wte.weight"].T
            tokens, log_probs, values = [], [], []
            states = trunk(weights, prompt, positions[:, :width], mask[:, :, :width, :width], width - 1, cache)
            for column in range(width, width + new):
                last = states[:, -1]
                logits = (last.to(self.dtype) @ head).float()
                token, log_prob = draw(logits)
                tokens.append(token)
                log_probs.append(log_prob)
                values.append(self.value_head(last))
                if column < width + new - 1:
                    at, seen = slice(column, column + 1), mask[:, :, column : column + 1, : column + 1]
                    states = trunk(weights, token, positions[:, at], seen, 0, cache, column)
            return torch.cat(tokens, 1), torch.cat(log_probs, 1), torch.cat(values, 1), positions, mask

    def log_probs(self, weights: Weights, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(N,) log-probabilities of `labels` (N,) from `states` (N, D), a chunk at a time; no gradient."""
        head, parts = weights["wte.weight"].T, []
        for some, wanted in zip(states.split(CHUNK), labels.split(CHUNK), strict=True):
            logits = (some.to(self.dtype) @ head).float()
            parts.append(logits.gather(1, wanted[:, None]).squeeze(1) - logits.logsumexp(1))
        return torch.cat(parts)

    def gradients(self, rollout: Rollout) -> None:
        """One update's gradients, added to every weight's `.grad`."""
        weights = self.weights.cast(self.dtype)
        with self.phase("forward"):
            batch = (rollout["ids"], rollout["positions"], rollout["mask"], int(rollout["first"]))
            states = trunk(weights, *batch)
        head = weights["wte.weight"]
        with self.phase("head_loss"):
            d_states, d_head = self.head_and_policy_loss(states.detach().flatten(0, 1), head.detach(), rollout)
            values = self.value_head(states).flatten()
            value_loss, _ = clipped_value_loss(values, rollout["old_values"], rollout["returns"], CLIP)
            loss = VALUE_COEF * value_loss.mean()
        with self.phase("backward"):
            outputs = [states, loss, head] if head.grad_fn is not None else [states, loss]
            gradients = [d_states.view_as(states), None, d_head.to(head.dtype)][: len(outputs)]
            torch.autograd.backward(outputs, gradients)
            if head.grad_fn is None:  # the embedding itself, not a copy in bf16
                head.grad = d_head if head.grad is None else head.grad.add_(d_head)

    @torch.no_grad()
    def head_and_policy_loss(
        self, states: torch.Tensor, head: torch.Tensor, rollout: Rollout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the mean policy loss with respect to states (N, D) and head (V, D).

        `d log p(y) / d logit_j = [j = y] - p_j`, so that the logits of a chunk turn into their gradient in place.
        """
        count = len(states)
        d_states = torch.empty_like(states)
        d_head = torch.zeros(head.shape, dtype=torch.float32)
        for start in range(0, count, CHUNK):
            rows = slice(start, start + CHUNK)
            some, labels = states[rows].to(self.dtype), rollout["answer"][rows, None]
            logits = (some @ head.T).float()
            normaliser = logits.logsumexp(1, keepdim=True)
            log_probs = (logits.gather(1, labels) - normaliser).squeeze(1)
            slope = policy_slope(log_probs, rollout["old_log_probs"][rows], rollout["advantages"][rows]) / count
            d_logits = logits.sub_(normaliser).exp_().mul_(-slope[:, None])
            d_logits.scatter_add_(1, labels, slope[:, None])
            narrow = d_logits.to(self.dtype)
            d_states[rows] = narrow @ head
            if self.dtype is torch.float32:
                d_head.addmm_(narrow.T, some)
            else:
                d_head.add_(narrow.T @ some)
        return d_states, d_head


def draw(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row of logits (B, V), never the end of sequence, and its log-probability before that was left
    out: both (B, 1). One uniform number a row, looked up in the cumulative distribution."""
    normaliser = logits.logsumexp(1, keepdim=True)
    probabilities = (logits - normaliser).exp_()
    probabilities[:, END_OF_SEQUENCE] = 0.0
    cumulative = probabilities.cumsum(1)
    token = torch.searchsorted(cumulative, torch.rand(len(logits), 1) * cumulative[:, -1:], right=True)
    token.clamp_(max=logits.shape[1] - 1)
    return token, logits.gather(1, token) - normaliser


def policy_slope(log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """(N,) derivative of the clipped policy loss with respect to each log-probability, by autograd on N numbers."""
    with torch.enable_grad():
        log_probs = log_probs.detach().requires_grad_()
        loss, _ = clipped_policy_loss(log_probs[None], old[None], advantages[None], CLIP)
        return torch.autograd.grad(loss.sum(), log_probs)[0]


def gradient_error(job: Job) -> float:
    """Largest relative error of any weight's gradient, beside plain autograd through transformers' own forward.

    Old log-probabilities are disturbed and the value head is random, so that every branch of both losses is taken.
    Biases of keys are left out: their gradient is zero but for rounding.
    """
    limit = Limit(job, Clock(job, 1))
    torch.nn.init.normal_(limit.value_head.weight, std=0.02)
    prompt, real = limit.batch(0)
    rollout = limit.rollout(prompt, real)
    rollout["old_log_probs"] = rollout["old_log_probs"] + 0.2 * torch.randn_like(rollout["old_log_probs"])
    rollout["returns"] = rollout["returns"] + 0.5 * torch.randn_like(rollout["returns"])
    rollout["old_values"] = rollout["old_values"] + 0.3 * torch.randn_like(rollout["old_values"])
    limit.gradients(rollout)
    names = {**limit.weights.tensors, "value_head": limit.value_head.weight}
    fast = {name: tensor.grad.clone() for name, tensor in names.items() if tensor.grad is not None}
    policy: Any = model(job).eval()
    plain = {n.removeprefix("transformer."): p for n, p in policy.named_parameters()}
    plain["value_head"] = limit.value_head.weight
    limit.value_head.weight.grad = None
    _plain_loss(policy, limit.value_head, rollout, real).backward()
    return max(_relative(name, fast[name], plain[name].grad, job.width) for name in plain)


def _plain_loss(policy: Any, value_head: torch.nn.Linear, rollout: Rollout, real: torch.Tensor) -> torch.Tensor:
    ids, first = rollout["ids"], int(rollout["first"])
    seen = torch.cat([real, real.new_ones(len(ids), ids.shape[1] - real.shape[1])], 1).long()
    out = policy(input_ids=ids, attention_mask=seen, position_ids=rollout["positions"], output_hidden_states=True)
    log_probs = F.log_softmax(out.logits[:, first:], -1).flatten(0, 1).gather(1, rollout["answer"][:, None]).squeeze(1)
    values = value_head(out.hidden_states[-1][:, first:]).flatten()
    policy_loss, _ = clipped_policy_loss(log_probs, rollout["old_log_probs"], rollout["advantages"], CLIP)
    value_loss, _ = clipped_value_loss(values, rollout["old_values"], rollout["returns"], CLIP)
    return (policy_loss + VALUE_COEF * value_loss).mean()


def _relative(name: str, fast: torch.Tensor, plain: torch.Tensor, width: int) -> float:
    if name.endswith("attn.c_attn.bias"):
        fast, plain = (torch.cat([t[:width], t[2 * width :]]) for t in (fast, plain))
    return float((fast - plain).norm() / plain.norm())


def main() -> None:
    """Checks the gradients on the job of size S, or on a smaller one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True, help="compare gradients with plain autograd")
    parser.add_argument("--size", choices=("S", "tiny"), default="S")
    error = gradient_error(changed(parser.parse_args().size))
    print(f"largest relative error of a gradient: {error:.1e}")
    raise SystemExit(error >= 1e-5)


if __name__ == "__main__":
    main()
