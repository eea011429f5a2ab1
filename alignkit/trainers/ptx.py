"""The text whose likelihood PPO keeps up (the ptx term), a few rows for every micro-batch."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from alignkit.decoding.prompts import encode_prompts, pad_left, pad_right
from alignkit.errors import ConfigError, DataError
from alignkit.text import completion_text
from alignkit.trainers.ppo_config import PPOConfig
from alignkit.trainers.rollout import Batch


@dataclass
class PtxText:
    """Rows of a data set, taken in an order that depends only on seed and step, so that a resumed run sees the same.

    Attributes:
        rows: (prompt ids, completion ids) of each text.
        seed: of the order.
        pad_token_id: for padding.
        accelerator: tells device and rank.
        accumulation: micro-steps of one optimiser step.
    """

    rows: list[tuple[list[int], list[int]]]
    seed: int
    pad_token_id: int
    accelerator: Accelerator
    accumulation: int = 1

    def __post_init__(self) -> None:
        self._counted = (-1, 0, 0)  # optimiser step, rows of a micro-batch, tokens of all
        self._epoch, self._order = -1, list[int]()

    @classmethod
    def from_settings(
        cls, data: Dataset | None, args: PPOConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
    ) -> "PtxText | None":
        """None where `ptx_coef` is 0."""
        if not args.ptx_coef:
            if data is not None:
                raise ConfigError("a ptx_dataset was given but ptx_coef is 0; set ptx_coef, or leave the data out")
            return None
        if data is None:
            raise ConfigError(f"ptx_coef={args.ptx_coef} needs a ptx_dataset with a column {args.ptx_column!r}")
        if args.ptx_column not in data.column_names:
            raise DataError(
                f"ptx_dataset has no column {args.ptx_column!r}; it has: {', '.join(data.column_names)}. Set ptx_column"
            )
        texts = [completion_text(text) for text in data[args.ptx_column]]
        completions = tokenizer(text=texts, add_special_tokens=False)["input_ids"]
        if "prompt" in data.column_names:
            prompts = encode_prompts(tokenizer, list(data["prompt"]), args.chat_template_kwargs)
            rows = [(p, c[: args.ptx_max_length]) for p, c in zip(prompts, completions, strict=True)]
        else:  # the first token is given, the rest is predicted from it
            rows = [(c[:1], c[1 : args.ptx_max_length]) for c in completions]
        rows = [(prompt, completion) for prompt, completion in rows if prompt and completion]
        if not rows:
            raise DataError(f"ptx_dataset's column {args.ptx_column!r} has no text of two tokens or more")
        return cls(rows, args.seed, tokenizer.pad_token_id, accelerator, args.gradient_accumulation_steps)

    def next(self, count: int, step: int) -> Batch:
        """`count` rows for micro-step `step`, as `extra_*` tensors.

        Which texts an optimiser step takes does not depend on how many processes share its rows. `extra_token_share` is
        the number of their tokens, divided by the number of processes, as in `alignkit.trainers.rollout.split`.
        """
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        first = (step * processes + rank) * count
        chosen = [self.rows[self._place(first + i)] for i in range(count)]
        device: Any = self.accelerator.device
        prompt_ids, prompt_mask = pad_left([prompt for prompt, _ in chosen], self.pad_token_id, device)
        ids, mask = pad_right([completion for _, completion in chosen], self.pad_token_id, device)
        share = self._tokens(step // self.accumulation, count) / processes
        return {
            "extra_prompt_ids": prompt_ids,
            "extra_prompt_mask": prompt_mask,
            "extra_completion_ids": ids,
            "extra_completion_mask": mask,
            "extra_token_share": torch.tensor(share, device=device),
        }

    def _tokens(self, optimiser_step: int, count: int) -> int:
        """Tokens of all texts, of all processes, that one optimiser step takes `count` at a time."""
        if self._counted[:2] != (optimiser_step, count):
            together = self.accumulation * self.accelerator.num_processes * count
            places = [self._place(optimiser_step * together + i) for i in range(together)]
            self._counted = (optimiser_step, count, sum(len(self.rows[place][1]) for place in places))
        return self._counted[2]

    def _place(self, index: int) -> int:
        """Row of the `index`-th draw: a fresh permutation for every pass through the data."""
        epoch, place = divmod(index, len(self.rows))
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._order = torch.randperm(len(self.rows), generator=generator).tolist()
            self._epoch = epoch
        return self._order[place]
