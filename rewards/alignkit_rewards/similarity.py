"""How close in meaning a completion is to the reference."""

from typing import TYPE_CHECKING, Any

from alignkit.errors import ModelError, RewardError
from alignkit.text import completion_text
from alignkit_rewards.network import NetworkReward, even_batches
from alignkit_rewards.words import references

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Similarity(NetworkReward):
    """Cosine of the angle between the embeddings of a completion and of the reference.

    Range: [-1, 1]. Of several references the nearest counts. None where there is no reference, or no token. The
    embedding is that of Sentence-BERT (Reimers and Gurevych, 2019): the mean of the encoder's last states, or the
    first state.

    Args:
        model, tokenizer, batch_size, max_length, device, dtype, trust_remote_code: see `NetworkReward`; a sentence
            encoder, such as "sentence-transformers/all-MiniLM-L6-v2".
        pooling: "mean" over the tokens, or "first" for the state of the first one ([CLS]).
        column: the column of the data that has the reference: a text, messages, or a list of either.

    >>> from alignkit.models.tiny import tiny_classifier, tiny_tokenizer
    >>> reward = Similarity(tiny_classifier().bert, tokenizer=tiny_tokenizer())
    >>> [score] = reward(prompts=["the movie was"], completions=["good ."], reference=["good ."])
    >>> round(score, 4)
    1.0
    """

    __name__ = "similarity"

    def __init__(
        self,
        model: "str | PreTrainedModel" = "sentence-transformers/all-MiniLM-L6-v2",
        pooling: str = "mean",
        column: str = "reference",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        batch_size: int = 32,
        max_length: int = 256,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ):
        super().__init__(model, tokenizer, batch_size, max_length, device, dtype, trust_remote_code)
        if pooling not in ("mean", "first"):
            raise RewardError(f"similarity: pooling is 'mean' or 'first', got {pooling!r}")
        self.pooling, self.column = pooling, column

    @property
    def required_columns(self) -> list[str]:
        """The column with the references."""
        return [self.column]

    def load(self, name: str) -> tuple[Any, Any]:
        """An encoder with all its weights; the pooler, which is not used, may be missing."""
        from transformers import AutoModel

        from alignkit.models.loading import load_tokenizer
        from alignkit.models.locating import explained, resolve_model

        folder = resolve_model(name)
        with explained(name, folder, "model"):
            model, report = AutoModel.from_pretrained(
                folder, dtype=self.dtype, trust_remote_code=self.trust_remote_code, output_loading_info=True
            )
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
        if missing:
            raise ModelError(
                f"the encoder {name!r} lacks weights, which would be random numbers: {', '.join(missing[:4])}. "
                "Give a complete sentence encoder"
            )
        return model, load_tokenizer(name, padding_side=None, trust_remote_code=self.trust_remote_code)

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """One cosine for each completion."""
        texts = [completion_text(completion) for completion in completions]
        wanted = [references(value) for value in columns[self.column]]
        vectors = self._embed(list(dict.fromkeys([*texts, *(text for row in wanted for text in row)])))
        scores: list[float | None] = []
        for text, row in zip(texts, wanted, strict=True):
            known = [vectors[other] for other in row if other in vectors]
            score = max((float(vectors[text] @ other) for other in known), default=None) if text in vectors else None
            scores.append(None if score is None else max(-1.0, min(1.0, score)))
        return scores

    def _embed(self, texts: list[str]) -> dict[str, Any]:
        """Unit vectors of the texts that have tokens, each computed once."""
        import torch

        vectors: dict[str, Any] = {}
        if not texts:
            return vectors
        model, tokenizer = self.network()
        ids = tokenizer(texts, truncation=True, max_length=self.limit())["input_ids"]
        # an encoder's own marks around nothing are no text
        kept = [i for i, row in enumerate(ids) if len(row) and texts[i].strip()]
        for batch in even_batches([len(ids[i]) for i in kept], self.batch_size):
            rows = [kept[i] for i in batch]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                states = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][:, :, None]
            first = inputs["attention_mask"].argmax(dim=1)
            pooled = (states * mask).sum(1) / mask.sum(1)
            if self.pooling == "first":
                pooled = states[torch.arange(len(rows), device=states.device), first]
            unit = torch.nn.functional.normalize(pooled, dim=1).cpu()
            vectors.update((texts[i], vector) for i, vector in zip(rows, unit, strict=True))
        return vectors
