"""How the other party will feel about a reply: the user sentiment look-ahead of Shin et al. (2019)."""

import inspect
from typing import TYPE_CHECKING, Any

from alignkit.text import completion_text, last_turn
from alignkit_rewards.sentiment import Sentiment

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LookAhead(Sentiment):
    """How likely the user's next turn is positive, foreseen from the user's last turn and the reply to it.

    The predictor is a sequence classifier of pairs of texts, trained on what users said next (data set `look_ahead`,
    recipe look_ahead/predictor.yaml), and its card lies in its folder: README.md, with accuracy beside the guess that a
    reply changes nothing, calibration and reliability.png. The user's last turn is the prompt's last message, or its
    last line.

    Range: [0, 1] for `output="probability"`, any number for `output="logit"`. A reply without a single token has None.

    Args:
        model, tokenizer, batch_size, max_length, device, dtype, trust_remote_code: see `NetworkReward`.
        label: the class that counts, by name or number; by default the one called positive.
        output: "probability" or "logit".

    >>> from alignkit.models.tiny import tiny_classifier, tiny_tokenizer
    >>> reward = LookAhead(tiny_classifier(), tokenizer=tiny_tokenizer())
    >>> [score] = reward(prompts=["i hated it !"], completions=["the film was bad ."])
    >>> 0 < score < 1
    True
    """

    __name__ = "look_ahead"

    def __init__(
        self,
        model: "str | PreTrainedModel",
        label: str | int | None = None,
        output: str = "probability",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        batch_size: int = 32,
        max_length: int = 512,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ):
        super().__init__(
            model, label, "both", output, tokenizer, batch_size, max_length, device, dtype, trust_remote_code
        )

    def encode(self, tokenizer: Any, prompts: list, completions: list) -> dict[str, list]:
        """The user's last turn and the reply, as a pair."""
        asked = [last_turn(prompt) for prompt in prompts]
        replies = [completion_text(completion).strip() for completion in completions]
        encoded = tokenizer(asked, replies, truncation=True, max_length=self.limit(), return_token_type_ids=True)
        model, _ = self.network()
        told_apart = "token_type_ids" in inspect.signature(model.forward).parameters
        names = ["input_ids", "token_type_ids"] if told_apart else ["input_ids"]
        return {name: encoded[name] for name in names}
