"""How much a completion reads like the text that a language model was trained on."""

from typing import TYPE_CHECKING, Any

from alignkit.errors import RewardError
from alignkit.text import completion_text, joined_text
from alignkit_rewards.network import NetworkReward, even_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LanguageStyle(NetworkReward):
    """Log-probability of a completion under a frozen language model, per token of that model, in nats.

    Range: below 0; the perplexity of the completion is exp(-score). Divided by the number of tokens it does not favour
    short texts. A completion without tokens has None. Texts over `max_length` lose their beginning.

    The model reads text, so its tokenizer may be another than the policy's. A model of one author's letters makes the
    policy write like that author; a general one keeps it fluent.

    Args:
        model, tokenizer, batch_size, max_length, device, dtype, trust_remote_code: see `NetworkReward`; any causal or
            encoder-decoder language model.
        given: "prompt" conditions on the prompt; "nothing" scores the completion as a text of its own, from the model's
            beginning-of-sequence token on (without such a token the first one goes unscored).

    >>> from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
    >>> reward = LanguageStyle(tiny_causal_lm(), tokenizer=tiny_tokenizer())
    >>> [score] = reward(prompts=["the movie was"], completions=[" good ."])
    >>> -10 < score < 0
    True
    """

    __name__ = "language_style"

    def __init__(
        self,
        model: "str | PreTrainedModel",
        given: str = "prompt",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        batch_size: int = 16,
        max_length: int = 512,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ):
        super().__init__(model, tokenizer, batch_size, max_length, device, dtype, trust_remote_code)
        if given not in ("prompt", "nothing"):
            raise RewardError(f"language_style: given is 'prompt' or 'nothing', got {given!r}")
        self.given = given

    def load(self, name: str) -> tuple[Any, Any]:
        """A language model, causal or encoder-decoder."""
        from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer

        model = load_causal_or_seq2seq(name, dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        return model, load_tokenizer(name, trust_remote_code=self.trust_remote_code)

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """One mean log-probability for each completion."""
        import torch

        from alignkit.decoding.prompts import pad_left, pad_right
        from alignkit.models.scoring import add_scoring, score_completions

        scores: list[float | None] = [None] * len(completions)
        if not completions:
            return scores
        model, tokenizer = self.network()
        add_scoring(model)
        split = [self._split(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        kept = [i for i, (_, written) in enumerate(split) if written]
        for batch in even_batches([sum(map(len, split[i])) for i in kept], self.batch_size):
            rows = [kept[i] for i in batch]
            context = pad_left([split[i][0] for i in rows], tokenizer.pad_token_id, model.device)
            written = pad_right([split[i][1] for i in rows], tokenizer.pad_token_id, model.device)
            with torch.inference_mode():
                log_probs = score_completions(model, *context, *written)["log_probs"].float()
            means = (log_probs * written[1]).sum(1) / written[1].sum(1)
            for i, value in zip(rows, means.tolist(), strict=True):
                scores[i] = value
        return scores

    def _split(self, prompt: Any, completion: Any) -> tuple[list[int], list[int]]:
        """Token ids of what is given (at least one) and of what is scored."""
        from alignkit.decoding.prompts import split_ids

        model, tokenizer = self.network()
        whole = completion_text(completion) if self.given == "nothing" else joined_text(prompt, completion)
        begins = len(whole) - len(completion_text(completion))
        context, written = split_ids(tokenizer, whole, begins, apart=model.config.is_encoder_decoder)
        if not context:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            context, written = ([start], written) if start is not None else (written[:1], written[1:])
        written = written[-(self.limit() - 1) :]
        return context[-max(1, self.limit() - len(written)) :], written
