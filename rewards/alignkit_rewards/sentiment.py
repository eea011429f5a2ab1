"""What a sequence classifier thinks of a completion."""

from typing import TYPE_CHECKING, Any

from alignkit.errors import RewardError
from alignkit.text import completion_text, joined_text
from alignkit_rewards.network import NetworkReward, even_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POSITIVE = ("positive", "pos", "label_1")


class Sentiment(NetworkReward):
    """How likely a completion is positive, by any Hugging Face sequence classifier.

    Range: [0, 1] for `output="probability"`; any number for `output="logit"`, which is log(p / (1 - p)) and does not
    flatten out where the classifier is sure. A completion without a single token has None. The classifier must be
    trained: a checkpoint whose head is missing is refused. One that `alignkit train` made (recipe
    look_ahead/classifier.yaml) has its card in its folder: README.md, with accuracy, calibration and reliability.png.

    Args:
        model, tokenizer, batch_size, max_length, device, dtype, trust_remote_code: see `NetworkReward`.
        label: the class that counts, by name or number; by default the one called positive (or LABEL_1 of two), or the
            only one of a head with one output.
        of: score the "completion" alone, or "both", the prompt and what follows it. Texts that are too long lose their
            end, respectively their beginning, so that the completion is read.
        output: "probability" or "logit".

    >>> from alignkit.models.tiny import tiny_classifier, tiny_tokenizer
    >>> reward = Sentiment(tiny_classifier(), tokenizer=tiny_tokenizer())
    >>> [score] = reward(prompts=["the movie was"], completions=["good ."])
    >>> 0 < score < 1
    True
    """

    __name__ = "sentiment"

    def __init__(
        self,
        model: "str | PreTrainedModel",
        label: str | int | None = None,
        of: str = "completion",
        output: str = "probability",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        batch_size: int = 32,
        max_length: int = 512,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ):
        super().__init__(model, tokenizer, batch_size, max_length, device, dtype, trust_remote_code)
        if of not in ("completion", "both"):
            raise RewardError(f"sentiment: of is 'completion' or 'both', got {of!r}")
        if output not in ("probability", "logit"):
            raise RewardError(f"sentiment: output is 'probability' or 'logit', got {output!r}")
        self.label, self.of, self.output = label, of, output

    @property
    def positive_above(self) -> float:
        """The score above which the class is likelier than not; `RewardMetric` counts the share above it."""
        return 0.5 if self.output == "probability" else 0.0

    def load(self, name: str) -> tuple[Any, Any]:
        """A trained sequence classifier; ModelError if its head is not in the checkpoint."""
        from alignkit.models.loading import load_classifier

        return load_classifier(name, dtype=self.dtype, trust_remote_code=self.trust_remote_code)

    def encode(self, tokenizer: Any, prompts: list, completions: list) -> dict[str, list]:
        """What the classifier is given for each completion: `input_ids`, and further inputs of the same lengths."""
        if self.of == "both":
            texts = [joined_text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        else:
            texts = [completion_text(completion) for completion in completions]
        tokenizer.truncation_side = "left" if self.of == "both" else "right"
        return {"input_ids": tokenizer(texts, truncation=True, max_length=self.limit())["input_ids"]}

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """One score for each completion."""
        import torch

        scores: list[float | None] = [None] * len(completions)
        if not completions:
            return scores
        model, tokenizer = self.network()
        index = label_index(model.config, self.label)
        encoded = self.encode(tokenizer, prompts, completions)
        ids = encoded["input_ids"]
        # an encoder's own marks around nothing are no text
        kept = [i for i, row in enumerate(ids) if len(row) and completion_text(completions[i]).strip()]
        for batch in even_batches([len(ids[i]) for i in kept], self.batch_size):
            rows = [kept[i] for i in batch]
            columns_of = {name: [values[i] for i in rows] for name, values in encoded.items()}
            inputs = tokenizer.pad(columns_of, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                odds = log_odds(model(**inputs).logits.float(), index, model.config)
            values = odds if self.output == "logit" else odds.sigmoid()
            for i, value in zip(rows, values.tolist(), strict=True):
                scores[i] = value
        return scores


def label_index(config: Any, label: str | int | None) -> int:
    """The output that stands for `label`; see `Sentiment`.

    Raises:
        RewardError: the classifier has no such label, or none that is evidently the positive one.
    """
    names = {int(i): str(name) for i, name in config.id2label.items()}
    offer = ", ".join(f"{i} {name!r}" for i, name in sorted(names.items()))
    if label is None:
        if len(names) == 1:
            return 0
        found = [i for i, name in names.items() if name.lower() in POSITIVE[: 3 if len(names) == 2 else 2]]
        if len(found) == 1:
            return found[0]
        raise RewardError(f"sentiment: none of the classifier's labels is called positive; name one: {offer}")
    for i, name in names.items():
        if label == i or str(label).lower() == name.lower():
            return i
    raise RewardError(f"sentiment: the classifier has no label {label!r}; it has {offer}")


def log_odds(logits: Any, index: int, config: Any) -> Any:
    """Log-odds log(p / (1 - p)) of one class: (B, C) logits to (B,).

    With one output, or where several classes may hold at once, that is the logit itself; among classes that exclude
    each other it is the class's logit minus the logsumexp of the others.
    """
    import torch

    if logits.shape[1] == 1 or config.problem_type == "multi_label_classification":
        return logits[:, index]
    others = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
    return logits[:, index] - others.logsumexp(dim=1)
