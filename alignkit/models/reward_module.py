"""A reward callable as the `nn.Module` that TRL's PPOTrainer wanted until 1.12: the reverse of `module_reward`.

    from trl.experimental.ppo import PPOTrainer  # trl 1.12
    trainer = PPOTrainer(..., reward_model=as_trl_reward_model(reward, tokenizer), processing_class=tokenizer)

That trainer asks a reward model for hidden states, puts them through its `score` and reads one position of each row. So
the backbone here scores each row's text once and gives that score at every position, and `score` changes nothing.
"""

import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from alignkit.errors import MissingColumnError, RewardCallError, RewardError, RewardValueError
from alignkit.reward import (
    call_reward,
    check_columns,
    granularity,
    in_evaluation,
    learned_rewards,
    required_columns,
    reward_name,
)


def as_trl_reward_model(
    reward: Any, tokenizer: Any, *, no_opinion: float | None = None, context_length: int | None = None
) -> "RewardModule":
    """A reward as `reward_model` of the PPOTrainer that TRL had until 1.12 (`trl.experimental.ppo`).

    Where that trainer scores, each row is a prompt, padded on either side to the width of its batch, and a completion,
    filled up with padding behind its stop token. Only the caller knows where the one ends and the other begins, and it
    does not say so; the module reads it from its caller, TRL's `get_reward(..., context_length)`, at every call. So the
    split is exact for every batch, in training and in evaluation. The completion ends before the first padding token
    behind that point, as it does for the trainer.

    The reward gets `prompts` and `completions`, decoded without special tokens, and `completion_ids`; a prompt that a
    chat template wrote is the text that remains of it, not a list of messages. What it returns or raises is checked as
    everywhere in alignkit.

    Args:
        reward: any reward that gives one number to a completion and needs no column of the data. A `LearnedReward` must
            stand still (`reward.eval()`): nothing there would teach it. Running statistics, such as those of `whiten`,
            go on, but that trainer's checkpoints do not have them.
        tokenizer: the trainer's `processing_class`.
        no_opinion: the score of a completion on which the reward has no opinion (None); that trainer can leave none
            out. Without it such a completion stops the run.
        context_length: the width to which the collator pads every prompt, for callers other than TRL's `get_reward`.

    Raises:
        MissingColumnError: the reward needs a column; token ids are all that the trainer passes.
        RewardError: it is a module itself, scores turns or tokens, or learns during the run.
    """
    return RewardModule(reward, tokenizer, no_opinion, context_length)


class RewardModule(nn.Module):
    """A reward with the two parts that TRL's `get_reward` asks a model for; see `as_trl_reward_model`.

    It has no weights of its own: a reward keeps its network, and the device it is on, to itself.
    """

    base_model_prefix = "backbone"

    def __init__(self, reward: Any, tokenizer: Any, no_opinion: float | None = None, context_length: int | None = None):
        super().__init__()
        _refuse_what_cannot_work(reward)
        self.backbone = RewardBackbone(reward, tokenizer, no_opinion, context_length)
        self.score = nn.Identity()


class RewardBackbone(nn.Module):
    """Token ids in, the score of each row's text at every position out."""

    def __init__(self, reward: Any, tokenizer: Any, no_opinion: float | None, context_length: int | None):
        super().__init__()
        self.reward, self.tokenizer = reward, tokenizer
        self.no_opinion, self.context_length = no_opinion, context_length

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **ignored: Any
    ) -> SimpleNamespace:
        """The scores as `hidden_states[-1]`, (B, T, 1), float32, on the device of `input_ids`.

        Args:
            input_ids: (B, T), prompts and completions.
            attention_mask: (B, T), true where a token is not padding.
            ignored: positions and flags, which a text does not need.

        Raises:
            RewardCallError: there is no mask, or nothing says where the prompts end.
        """
        if attention_mask is None:
            raise RewardCallError(
                f"the module of reward '{reward_name(self.reward)}' was called without attention_mask; expected one "
                "that is true for tokens and false for padding"
            )
        width = _callers_context_length(input_ids)
        width = self.context_length if width is None else width
        if width is None or not 0 < width <= input_ids.shape[1]:
            raise RewardCallError(
                f"the module of reward '{reward_name(self.reward)}' was given {input_ids.shape[1]} token ids a row and "
                f"context_length={width}: it cannot tell where the prompts end. It is made for `reward_model` of TRL "
                "1.12's PPOTrainer (it is no value_model), whose get_reward says it; for another caller pad all "
                "prompts to one width and pass as_trl_reward_model(..., context_length=that width)"
            )
        scores = torch.tensor(self.scores(input_ids, attention_mask, width), device=input_ids.device)
        return SimpleNamespace(hidden_states=(scores[:, None, None].expand(*input_ids.shape, 1),))

    def scores(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, context_length: int) -> list[float]:
        """B scores, for rows whose first `context_length` positions hold the prompt."""
        real = attention_mask.bool()
        ids, masks = input_ids.tolist(), real.tolist()
        prompt_ids = [
            [token for token, kept in zip(row[:context_length], mask[:context_length], strict=True) if kept]
            for row, mask in zip(ids, masks, strict=True)
        ]
        lengths = real[:, context_length:].long().cumprod(1).sum(1).tolist()
        completion_ids = [
            row[context_length : context_length + length] for row, length in zip(ids, lengths, strict=True)
        ]
        prompts = self.tokenizer.batch_decode(prompt_ids, skip_special_tokens=True)
        completions = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        with in_evaluation(learned_rewards([self.reward])):
            given = call_reward(self.reward, prompts, completions, completion_ids=completion_ids)
        return [self._number(score, i, prompts, completions) for i, score in enumerate(given)]

    def _number(self, score: Any, i: int, prompts: list[str], completions: list[str]) -> float:
        if score is not None:
            return float(score)
        if self.no_opinion is not None:
            return float(self.no_opinion)
        raise RewardValueError(
            f"reward '{reward_name(self.reward)}' has no opinion (None) on sample {i + 1} of {len(completions)}, and "
            "TRL 1.12's PPOTrainer can leave no completion out; pass as_trl_reward_model(..., no_opinion=a number)\n"
            f"  prompt: {prompts[i]!r}\n  completion: {completions[i]!r}"
        )


def _callers_context_length(input_ids: torch.Tensor) -> int | None:
    """What TRL's `get_reward`, which is calling, was told about the width of the prompts; None for another caller.

    It hands a backbone everything but this number. Whatever else could give it is a guess: the width of a collated
    batch is that of the next one already where batches are fetched ahead, and the width of completions varies with the
    stop token.
    """
    frame = sys._getframe(1)
    while frame is not None:
        known = frame.f_locals if frame.f_code.co_name == "get_reward" else {}
        rows = known.get("query_responses")
        if "context_length" in known and isinstance(rows, torch.Tensor) and rows.shape == input_ids.shape:
            return int(known["context_length"])
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _refuse_what_cannot_work(reward: Any) -> None:
    name = reward_name(reward)
    if isinstance(reward, nn.Module):
        raise RewardError(
            f"'{name}' is an nn.Module, expected a reward callable: give a sequence classifier to PPOTrainer as it is, "
            "or score with it through the reward 'sentiment'"
        )
    unit = granularity(reward)
    if unit != "completion":
        raise RewardError(
            f"reward '{name}' scores each {unit}; TRL 1.12's PPOTrainer takes one number for a completion. "
            "alignkit.PPOTrainer takes this reward"
        )
    columns = required_columns(reward)
    check_columns([reward], columns)
    if columns:
        raise MissingColumnError(
            f"reward '{name}' needs {'columns' if len(columns) > 1 else 'column'} {', '.join(map(repr, columns))}; TRL "
            "1.12's PPOTrainer passes token ids and no columns. alignkit.PPOTrainer takes this reward"
        )
    learning = [reward_name(learned) for learned in learned_rewards([reward]) if learned.training]
    if learning:
        raise RewardError(
            f"{', '.join(map(repr, learning))} learns during the run, but TRL 1.12's PPOTrainer never updates a "
            "reward; call its eval() to score with it as it stands, or train with alignkit.PPOTrainer"
        )
