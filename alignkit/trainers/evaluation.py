"""Evaluation on held-out prompts by metrics, not only by the reward that is being trained."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from trl.models import unwrap_model_for_generation

from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.sampling import Decoder
from alignkit.errors import DataError
from alignkit.evaluation import evaluate_rows
from alignkit.held_out import Row, generate_rows

if TYPE_CHECKING:
    from datasets import Dataset


class EvaluationMixin:
    """Completes held-out prompts with a fixed seed, scores them, and computes the metrics the trainer was given.

    The figures go through `Trainer`'s own machinery, so `eval_strategy`, `metric_for_best_model` and
    `load_best_model_at_end` work with any of them, for example `metric_for_best_model="eval_judge_positive_share"`.

    Attributes:
        eval_decoder: what completes held-out prompts; plain sampling when None, whatever completes them in training.
    """

    eval_decoder: Decoder | None = None

    @contextmanager
    def model_for_sampling(self: Any) -> Iterator[Any]:
        """The policy as a plain model that can generate, its weights gathered where they are sharded."""
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield model

    def generate_eval(self: Any, eval_dataset: "Dataset | None" = None) -> list[Row]:
        """Rows of completions of held-out prompts, see `alignkit.held_out.generate_rows`; the same prompts at every
        call, in the order of the data. Every process returns all rows."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if data is None:
            raise DataError("evaluation needs an eval_dataset with a column 'prompt'")
        count = len(data) if self.args.eval_samples is None else min(len(data), self.args.eval_samples)
        examples = [data[i] for i in range(count)]
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        # shares of equal size, for a process without a batch would leave the others waiting where weights are sharded
        share = -(-count // processes)
        mine = [examples[i % count] for i in range(rank, share * processes, processes)]
        hotter = self.args.eval_temperature
        config = generation_config_for(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            **{**sampling_settings(self.args), **({} if hotter is None else {"temperature": hotter})},
        )
        was_training = self.model.training
        self.model.eval()
        with self.model_for_sampling() as model:
            rows = generate_rows(
                model,
                self.processing_class,
                mine,
                generation_config=config,
                reward_funcs=self.rewards,
                reward_weights=self.reward_weights.tolist(),
                ref_model=self.ref_model,
                decoder=self.eval_decoder,
                batch_size=self.args.per_device_eval_batch_size,
                seed=self.args.eval_seed + rank,
                autocast=self.accelerator.autocast,
                chat_template_kwargs=self.chat_template_kwargs,
                reference_column=self.args.reference_column,
                score_references=self.args.eval_references,
            )
        self.model.train(was_training)
        everyone = gather_object(rows)  # one process's after the other's
        return [everyone[i % processes * share + i // processes] for i in range(count)]

    def evaluate(
        self: Any,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Metrics of `generate_eval`'s rows, logged under `<prefix>_...`."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, dict):
            figures: dict[str, float] = {}
            for name, part in data.items():
                figures.update(self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{name}"))
            return figures
        rows = self.generate_eval(data)
        figures = {
            f"{metric_key_prefix}_{key}": value for key, value in summarise(rows, self.reward_func_names).items()
        }
        figures.update({f"{metric_key_prefix}_{k}": v for k, v in evaluate_rows(rows, self.metrics).items()})
        self.eval_rows, self.eval_step = rows, self.state.global_step
        training = self.model.training
        self.model.eval()  # TRL's log decides by this whether it logs training or evaluation
        self.log(dict(figures))
        self.model.train(training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures


def summarise(rows: list[Row], reward_names: list[str]) -> dict[str, float]:
    """Means over rows: `reward`, `reward_std`, `rewards/<name>/mean`, `kl` (nats per response), `length`,
    and, where references were scored, `reference_perplexity` and `reference_perplexity_sampled` (per token, of all
    references together; at temperature 1 and at the one that completions are sampled with), with `Resample` also
    `reference_undrawn`, the share of references without weight, and `reference_perplexity_resampled`, left out
    where there are such."""
    figures: dict[str, float] = {}
    scored = [row["reward"] for row in rows if row["reward"] is not None]
    if scored:
        values = torch.tensor(scored, dtype=torch.float64)
        figures["reward"] = float(values.mean())
        figures["reward_std"] = float(values.std()) if len(values) > 1 else 0.0
    for name in reward_names:
        known = [row["rewards"][name] for row in rows if row["rewards"].get(name) is not None]
        if known:
            figures[f"rewards/{name}/mean"] = sum(known) / len(known)
    kls = [row["kl"] for row in rows if row["kl"] is not None]
    if kls:
        figures["kl"] = sum(kls) / len(kls)
    figures["completions/mean_length"] = sum(row["length"] for row in rows) / len(rows)
    for suffix in ("", "_sampled", "_resampled"):
        likely = [row for row in rows if row.get(f"reference_nll{suffix}") is not None]
        if likely and suffix == "_resampled":
            undrawn = sum(row["reference_nll_resampled"] == math.inf for row in likely)
            figures["reference_undrawn"] = undrawn / len(likely)
            likely = [] if undrawn else likely
        if likely:
            tokens = sum(row["reference_tokens"] for row in likely)
            nats = sum(row[f"reference_nll{suffix}"] for row in likely) / tokens
            figures[f"reference_perplexity{suffix}"] = math.exp(min(nats, 700.0))
    return figures


def sampling_settings(args: Any) -> dict[str, Any]:
    """What a trainer's config says of sampling; its `generation_kwargs` have the last word, as in TRL."""
    return {
        "max_new_tokens": args.max_completion_length,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        **(args.generation_kwargs or {}),
    }
