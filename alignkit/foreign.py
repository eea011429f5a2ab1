"""Rewards written for OpenRLHF, verl and trlX, as rewards of the contract.

    reward = from_verl(compute_score)
    PPOTrainer(model="gpt2", reward_funcs=[reward], ...)

The functions stay as they are. What they see is text without special tokens; a conversation is written out as
`role: content` lines, and its prompt ends where the assistant's words begin, so that functions which cut the prompt off
the query find the completion. Whatever they raise or return is checked like any reward's answer. The wrappers can be
pickled where the function can.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from alignkit.errors import RewardError, RewardValueError
from alignkit.registry import find_reward
from alignkit.reward import RESERVED, reward_name
from alignkit.reward.call import settle
from alignkit.text import completion_text, prompt_text


def from_openrlhf(func: Callable, *, label: str | None = None, name: str | None = None) -> "OpenRLHFReward":
    """Wraps OpenRLHF's `reward_func(queries, prompts, labels)`.

    Args:
        func: returns a tensor or list of N numbers, or a dict with them under `rewards`. The dict's `extra_logs` are
            logged; its `scores`, which OpenRLHF filters prompts by, are not used.
        label: the column whose values are passed as `labels` (OpenRLHF's `--label_key`); without it they are empty
            strings, as there.
        name: the name in the log; the function's own by default.

    >>> def reward_func(queries, prompts, labels):
    ...     return {"rewards": [float(label in q[len(p):]) for q, p, label in zip(queries, prompts, labels)]}
    >>> reward = from_openrlhf(reward_func, label="answer")
    >>> reward(prompts=["1 + 1 = "], completions=["2"], answer=["2"])
    [1.0]
    """
    return OpenRLHFReward(func, label, name)


def from_verl(
    func: Callable,
    *,
    ground_truth: str = "ground_truth",
    batched: bool = False,
    name: str | None = None,
) -> "VerlReward":
    """Wraps verl's `compute_score(data_source, solution_str, ground_truth, extra_info=None)`.

    Args:
        func: called once for each completion, by keyword; returns a number, a dict with `score` (its other numbers are
            logged), or a sequence whose first element is the score. May be `async`.
        ground_truth: the column with the right answers. Where a value is a mapping, as in verl's column
            `reward_model`, its entry `ground_truth` counts. Columns `data_source` and `extra_info` are passed on where
            the data have them.
        batched: call it once with lists, `(data_sources, solution_strs, ground_truths, extra_infos)`, as verl's batch
            reward manager does.
        name: the name in the log; the function's own by default.

    >>> def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    ...     return {"score": float(solution_str.strip() == ground_truth), "length": len(solution_str)}
    >>> from_verl(compute_score)(prompts=["1 + 1 = "], completions=[" 2"], ground_truth=["2"])
    [1.0]
    """
    return VerlReward(func, ground_truth, batched, name)


def from_trlx(
    func: Callable, *, tokenizer: Any = None, granularity: str = "completion", name: str | None = None
) -> "TrlxReward":
    """Wraps trlX's `reward_fn(samples, prompts, outputs, **metadata)`.

    Args:
        func: returns N numbers, or with `granularity="token"` N sequences with a number for each token of the output.
            The columns of the data are its metadata: all of them if it takes `**kwargs`, else those that it names.
        tokenizer: passed as `tokenizer` if given, as newer versions of trlX pass theirs.
        granularity: "completion" or "token".
        name: the name in the log; the function's own by default.

    >>> def reward_fn(samples, prompts, outputs, **metadata):
    ...     return [len(output.split()) for output in outputs]
    >>> from_trlx(reward_fn)(prompts=["Tell me."], completions=[" Not today."])
    [2]
    """
    return TrlxReward(func, tokenizer, granularity, name)


class _Foreign:
    """A function of another library, under its own name; recipes give it as `file.py:function`."""

    def __init__(self, func: Callable | str, name: str | None):
        if isinstance(func, str):
            func = find_reward(func)
        if not callable(func):
            raise RewardError(f"expected a function to wrap, or the name of one, got {func!r}")
        self.func = func
        self.__name__ = name or reward_name(func)


class OpenRLHFReward(_Foreign):
    """A reward with OpenRLHF's signature; see `from_openrlhf`."""

    def __init__(self, func: Callable | str, label: str | None = None, name: str | None = None):
        super().__init__(func, name)
        self.label = label

    @property
    def required_columns(self) -> list[str]:
        """The column of the labels, if there is one."""
        return [] if self.label is None else [self.label]

    def __call__(self, prompts: list, completions: list, **columns: Any) -> Any:
        """What the function gives for queries, prompts and labels."""
        asked, queries, _ = _written_out(prompts, completions)
        labels = [""] * len(completions) if self.label is None else columns[self.label]
        answer = settle(self.func(queries, asked, labels))
        if not isinstance(answer, Mapping):
            return answer
        if "rewards" not in answer:
            raise RewardValueError(
                f"reward '{self.__name__}' returned a dict with {', '.join(map(repr, answer)) or 'nothing'}; OpenRLHF "
                "expects the numbers under 'rewards'"
            )
        for key, value in (answer.get("extra_logs") or {}).items():
            _log(columns, f"{self.__name__}/{key}", _numbers(value))
        return answer["rewards"]


class VerlReward(_Foreign):
    """A reward with verl's signature; see `from_verl`."""

    def __init__(
        self, func: Callable | str, ground_truth: str = "ground_truth", batched: bool = False, name: str | None = None
    ):
        super().__init__(func, name)
        self.ground_truth, self.batched = ground_truth, batched

    @property
    def required_columns(self) -> list[str]:
        """The column of the right answers."""
        return [self.ground_truth]

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list:
        """A score for each completion."""
        count = len(completions)
        rows = {
            "data_source": columns.get("data_source", [""] * count),
            "solution_str": [completion_text(completion) for completion in completions],
            "ground_truth": [_opened(value) for value in columns[self.ground_truth]],
            "extra_info": columns.get("extra_info", [None] * count),
        }
        if self.batched:
            results = list(settle(self.func(**{f"{key}s": values for key, values in rows.items()})))
        else:
            results = _all([self.func(**{key: values[i] for key, values in rows.items()}) for i in range(count)])
        logged: dict[str, list] = {}
        for result in results:
            if isinstance(result, Mapping):
                for key, value in result.items():
                    if key != "score":
                        logged.setdefault(key, []).extend(_numbers(value))
        for key, values in logged.items():
            _log(columns, f"{self.__name__}/{key}", values)
        return [self._score(result) for result in results]

    def _score(self, result: Any) -> Any:
        if isinstance(result, Mapping):
            if "score" not in result:
                raise RewardValueError(
                    f"reward '{self.__name__}' returned a dict with {', '.join(map(repr, result)) or 'nothing'}; verl "
                    "expects the number under 'score'"
                )
            return result["score"]
        if isinstance(result, list | tuple) and result:
            return result[0]
        return result


class TrlxReward(_Foreign):
    """A reward with trlX's signature; see `from_trlx`."""

    def __init__(
        self, func: Callable | str, tokenizer: Any = None, granularity: str = "completion", name: str | None = None
    ):
        super().__init__(func, name)
        if granularity not in ("completion", "token"):
            raise RewardError(f"trlX scores a 'completion' or each 'token', got granularity {granularity!r}")
        self.tokenizer, self.granularity = tokenizer, granularity

    @property
    def required_columns(self) -> list[str]:
        """Metadata that the function names without a default."""
        given = {"samples", "prompts", "outputs", "tokenizer"}
        return [
            name
            for name, p in inspect.signature(self.func).parameters.items()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in given
        ]

    def __call__(self, prompts: list, completions: list, **columns: Any) -> Any:
        """What the function gives for samples, prompts, outputs and metadata."""
        asked, samples, outputs = _written_out(prompts, completions)
        metadata = {key: value for key, value in columns.items() if key not in RESERVED}
        if self.tokenizer is not None:
            metadata["tokenizer"] = self.tokenizer
        taken = inspect.signature(self.func).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            metadata = {key: value for key, value in metadata.items() if key in taken}
        return settle(self.func(samples=samples, prompts=asked, outputs=outputs, **metadata))


def _written_out(prompts: list, completions: list) -> tuple[list[str], list[str], list[str]]:
    """Prompts up to where the answer begins, prompts with answers, and answers."""
    asked = [p if isinstance(p, str) else prompt_text(p) + "\nassistant: " for p in prompts]
    written = [completion_text(completion) for completion in completions]
    return asked, [prompt + answer for prompt, answer in zip(asked, written, strict=True)], written


def _opened(value: Any) -> Any:
    return value["ground_truth"] if isinstance(value, Mapping) and "ground_truth" in value else value


def _all(results: list) -> list:
    """Every result, those that must be awaited at the same time."""
    if not any(inspect.isawaitable(result) for result in results):
        return results

    async def together() -> list:
        import asyncio

        return list(await asyncio.gather(*results))

    return settle(together())


def _numbers(value: Any) -> list[float]:
    """The numbers in a scalar, list, array or tensor; none in anything else."""
    value = value.tolist() if callable(getattr(value, "tolist", None)) else value
    values = value if isinstance(value, list | tuple) else [value]
    return [float(item) for item in values if isinstance(item, bool | int | float)]


def _log(columns: Mapping[str, Any], name: str, values: list[float]) -> None:
    log_metric = columns.get("log_metric")
    if log_metric is not None and values:
        log_metric(name, sum(values) / len(values))
