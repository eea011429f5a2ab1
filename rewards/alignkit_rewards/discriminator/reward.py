"""The discriminator of adversarial and cooperative training, as a reward."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import RewardError
from alignkit.reward import LearnedReward, PrefixScorer
from alignkit.text import completion_text
from alignkit_rewards.network import NetworkReward

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alignkit_rewards.discriminator.learning import Learner

logger = logging.getLogger(__name__)
_BLANK_ADVICE = (
    "Write the references as the policy writes: with a blank in front if its completions begin with one, else without"
)
# How texts are read; saved with the network, and these where neither the user nor a saved one says anything.
_READING: dict[str, Any] = {"kind": "causal", "of": "both", "max_length": 512, "max_completion_tokens": None}


class Discriminator(NetworkReward, LearnedReward):
    """The probability that a person, not the policy, wrote a completion; it learns along with the policy.

    Range: (0, 1), and 0.5 where it cannot tell. With equal numbers of both kinds of texts and enough learning it is
    p_data / (p_data + p_policy). It learns from what the policy wrote and from the data's references, which every
    update needs.

    Kinds: `causal` labels each token of the completion, its end token included, reading from left to right; the score
    is the last label, and beginnings have scores too, so decoders search with it token by token (`begin`).
    `bidirectional` reads prompt and completion as a pair. `cnn` is the convolutional network of Kim (2014) with the
    highway layer of SeqGAN's discriminator.

    `update` logs, of texts as they were before it learned from them: `accuracy`, `real` and `fake` (mean scores of
    people's texts and of the policy's), `gap` (their distance in log-odds), `spread` (standard deviation of the
    policy's log-odds), `saturated` (share of the policy's texts below 0.01 or above 0.99), `gain` (E_data[log D] -
    log E_policy[D]: how many nats a text people's texts are likelier under policy times score, normalised, than under
    the policy; with prompts a lower bound), `token_accuracy` (causal); and `loss`, `grad_norm` and `replayed`. One that
    has collapsed has accuracy 0.5, gap, spread and gain 0; one that is perfect has accuracy 1, a growing gap, and all
    texts saturated: the policy learns from neither.

    Args:
        model: backbone, by name or folder or loaded, or the folder of a saved discriminator. A new output is put on a
            backbone without one.
        kind: "causal", "bidirectional" or "cnn"; by default what the saved one was, else causal.
        scratch: a new network in place of `model`: fields of `CausalSpec` (architecture gpt2, llama or lstm),
            `ClassifierSpec` or `TextCNNSpec`, without vocab_size.
        tokenizer: the name of a model whose tokenizer is read, best the policy's, or a loaded tokenizer. `scratch` and
            a loaded model need it; by default it is that of `model`.
        of: "both", prompt and completion (the default), or the "completion" alone.
        learning_rate, weight_decay, max_grad_norm: of AdamW.
        dropout: while it learns, in place of the network's own.
        updates: gradient steps of an update; 0 freezes a trained network.
        update_size: texts of each kind in a gradient step; what the policy wrote is drawn in random order, again and
            again.
        label_smoothing: taken off the label 1 of people's texts; the policy's keep 0 (Salimans et al. 2016).
        replay: earlier samples of the policy to keep; 0 keeps none (ColdGAN, Scialom et al. 2020).
        replay_share: their share of a step's policy texts.
        max_length: tokens per text, 512 by default; the network's own limit if that is lower.
        max_completion_tokens: tokens of a completion that are read, the end token included; best the policy's
            max_completion_length, so that references are cut where its texts are.
        batch_size: texts per forward, in learning too.
        device, trust_remote_code: see `NetworkReward`.
        dtype: of weights and computations; "bfloat16" while it learns is of computations only, weights stay in float32.
        seed: of a new output, of the order of texts, and of dropout.

    >>> from alignkit.models.tiny import tiny_tokenizer
    >>> reward = Discriminator(scratch={"hidden_size": 16, "heads": 2}, tokenizer=tiny_tokenizer(), learning_rate=0.01)
    >>> for _ in range(20):
    ...     figures = reward.update(["it was"] * 8, ["bad bad"] * 8, ["very good"] * 8)
    >>> [person, policy] = reward(prompts=["it was"] * 2, completions=["very good", "bad bad"])
    >>> person > 0.5 > policy
    True
    """

    __name__ = "discriminator"
    needs_references = True

    def __init__(
        self,
        model: "str | PreTrainedModel | None" = None,
        kind: str | None = None,
        scratch: dict[str, Any] | None = None,
        tokenizer: "str | PreTrainedTokenizerBase | None" = None,
        of: str | None = None,
        learning_rate: float = 1e-4,
        updates: int = 1,
        update_size: int = 64,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        label_smoothing: float = 0.0,
        dropout: float | None = None,
        replay: int = 0,
        replay_share: float = 0.5,
        max_length: int | None = None,
        max_completion_tokens: int | None = None,
        batch_size: int = 32,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        seed: int = 0,
    ):
        problems = []
        if (model is None) == (scratch is None):
            more = " (scratch: null takes out what a recipe extends)" if model is not None else ""
            problems.append(f"give model (a name, a folder or a loaded network) or scratch (a new one), not both{more}")
        if tokenizer is None and not isinstance(model, str):
            problems.append("scratch and a loaded model need tokenizer, the name of the policy for instance")
        if kind not in (None, "causal", "bidirectional", "cnn"):
            problems.append(f"kind is 'causal', 'bidirectional' or 'cnn', got {kind!r}")
        if of not in (None, "both", "completion"):
            problems.append(f"of is 'both' or 'completion', got {of!r}")
        if max_completion_tokens is not None and max_completion_tokens < 1:
            problems.append(f"max_completion_tokens must be at least 1, got {max_completion_tokens}")
        if scratch is not None and updates == 0:
            problems.append("updates: 0 freezes a network, and a new one gives random numbers; give a trained model")
        self.learning_rate, self.updates, self.update_size = learning_rate, updates, update_size
        self.learns = updates > 0
        self.weight_decay, self.max_grad_norm, self.label_smoothing = weight_decay, max_grad_norm, label_smoothing
        self.replay, self.replay_share, self.seed, self.dropout = replay, replay_share, seed, dropout
        problems += self._learning().problems()
        if updates and dtype in ("float16", "fp16", "half"):
            problems.append(f"dtype {dtype!r} cannot learn without scaled losses; give 'bfloat16' or 'float32'")
        if problems:
            raise RewardError("discriminator: " + "; ".join(problems))
        length = _READING["max_length"] if max_length is None else max_length
        own = tokenizer if not isinstance(tokenizer, str) else None
        super().__init__(model or "", own, batch_size, length, device, dtype, trust_remote_code)
        self.model, self.tokenizer, self.scratch, self.kind, self.of = model, tokenizer, scratch, kind, of
        self.max_length, self.max_completion_tokens = max_length, max_completion_tokens  # type: ignore[assignment]
        self._learner: Learner | None = None
        self._carried: dict[str, Any] | None = None
        self._compared, self._warned = (None, False), False

    @property
    def positive_above(self) -> float:
        """The score above which a person is likelier; `RewardMetric` counts the share above it."""
        return 0.5

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """One probability for each completion; None where a completion has no token and its tokenizer no end token."""
        from alignkit_rewards.discriminator.prefixes import probabilities

        odds = self._log_odds(prompts, completions)
        return [None if value != value else score for value, score in zip(odds, probabilities(odds), strict=True)]

    def log_scores(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """The logarithms of the scores, log-sigmoid of the log-odds: exact where the score itself rounds to 0 or 1."""
        import torch

        found = torch.nn.functional.logsigmoid(self._log_odds(prompts, completions)).tolist()
        return [None if value != value else value for value in found]

    def update(self, prompts: list, completions: list, references: list) -> dict[str, float]:
        """Takes `updates` gradient steps; see `LearnedReward.update`, and the class for what is logged.

        Args:
            prompts, completions: what the policy was asked and wrote.
            references: what people wrote: a text, messages, or several of them, of which one is drawn.

        Raises:
            RewardError: a reference is None, or the loss is no finite number any more.
        """
        return self._learn(prompts, completions, references)

    def update_again(self, prompts: list, completions: list, references: list) -> None:
        """As `update`, on what it got last; replay takes none of it for earlier samples."""
        self._learn(prompts, completions, references, again=True)

    def _learn(self, prompts: list, completions: list, references: list, again: bool = False) -> dict[str, float]:
        from alignkit_rewards.discriminator.texts import peoples_texts, unlike_beginnings

        given = peoples_texts(references, self.reference_column) if self.updates else []
        if not given:
            return {}
        learner = self.learner()
        people = [texts[learner.draw(len(texts))] for texts in given]
        reader = learner.reader
        written = [completion_text(completion) for completion in completions]
        differ = unlike_beginnings(people, written) if not self._warned else None
        if differ:
            self._warned = True
            logger.warning("%s: the discriminator tells them apart by that alone. %s", differ, _BLANK_ADVICE)
        real, fake = (
            [row for row in reader.encode(prompts, texts) if reader.readable(row)] for texts in (people, written)
        )
        return learner.learn(real, fake, again) if real and fake else {}

    def begin(self, prompts: list, processing_class: Any, columns: Mapping[str, list]) -> PrefixScorer | None:
        """A scorer of beginnings, token by token; see `PrefixReward.begin`.

        Returns:
            None for a network that reads whole texts; for another tokenizer one that reads each beginning anew.
        """
        from alignkit.models.tree import TreeReader
        from alignkit_rewards.discriminator.prefixes import DiscriminatorPrefixes, TextBeginnings

        reader = self.learner().reader
        if reader.kind != "causal":
            return None
        if not self._same_tokens(processing_class):
            return TextBeginnings(self, prompts, processing_class, columns)
        return DiscriminatorPrefixes(reader, reader.encode_prompts(prompts), TreeReader.of)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, counters, earlier samples and random state."""
        return self.learner().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts them back; RewardError if they are another network's."""
        self.learner().load_state_dict(state)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes network, tokenizer and how texts are read: `Discriminator(folder)` scores alike, and may learn on."""
        from alignkit.models.discriminators import SETTINGS

        model, tokenizer = self.network()
        setattr(model.config, SETTINGS, {name: getattr(self, name) for name in _READING})
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def network(self) -> tuple[Any, Any]:
        """The network in eval mode, where it runs, and a tokenizer of its own; loaded or built on first use."""
        if self._ready is None:
            from alignkit.models.discriminators import build_discriminator, check_discriminator

            self._settle()
            model: Any
            if isinstance(self.model, str):
                model, tokenizer = self.load(self.model)
                for weight in model.parameters():
                    # a file's places in memory are not torch's own: sums come out in other bits than before saving
                    weight.data = weight.data.clone()
            elif self.model is not None:
                model, tokenizer = self.model, self._tokenizer()
            else:
                tokenizer = self._tokenizer()
                model = build_discriminator(self.scratch or {}, self.kind, tokenizer)  # type: ignore[arg-type]
                model = model.to(dtype=self._precision()[0])
            if self.device or model is not self.model:
                model = model.to(self._device())
            check_discriminator(model.eval(), self.kind)  # type: ignore[arg-type]
            self._ready = (model, tokenizer)
        return self._ready

    def load(self, name: str) -> tuple[Any, Any]:
        """A network with one output; a new one where the checkpoint has none and this reward learns."""
        from alignkit.models.discriminators import load_discriminator

        model, tokenizer = load_discriminator(
            name,
            self.kind,  # type: ignore[arg-type]
            trained=not self.updates or self.scores_only,
            seed=self.seed,
            dtype=self._precision()[0],
            trust_remote_code=self.trust_remote_code,
        )
        return model, tokenizer if self.tokenizer is None else self._tokenizer()

    def learner(self) -> "Learner":
        """What learns and reads, with what was carried here in a pickle."""
        if self._learner is None:
            from alignkit_rewards.discriminator.learning import Learner
            from alignkit_rewards.discriminator.texts import Reader

            model, tokenizer = self.network()
            reader = Reader(
                model, tokenizer, str(self.kind), str(self.of), self.limit(), self.max_completion_tokens,
                self.batch_size, self._precision()[1],
            )  # fmt: skip
            self._learner = Learner(reader, self._learning())
            if self._carried is not None:
                self._learner.load_state_dict(self._carried)
                self._carried = None
        return self._learner

    def _log_odds(self, prompts: list, completions: list) -> "torch.Tensor":
        """(N,) in float64, NaN where there is nothing to read."""
        reader = self.learner().reader
        return reader.log_odds(reader.encode(prompts, completions))

    def _learning(self) -> Any:
        from alignkit_rewards.discriminator.settings import LearningSettings

        return LearningSettings(**{name: getattr(self, name) for name in LearningSettings.__dataclass_fields__})

    def _settle(self) -> None:
        """Fills in how texts are read: as the user says, else as the saved network does, else the default."""
        from alignkit.models.discriminators import SETTINGS, saved_settings

        if self.scratch is not None and self.scores_only:
            raise RewardError("discriminator: scratch is new, and its scores are random numbers; give a trained model")
        if isinstance(self.model, str):
            saved = saved_settings(self.model)
        else:
            saved = dict(getattr(self.model.config, SETTINGS, None) or {}) if self.model is not None else {}
        if saved and self.kind not in (None, saved["kind"]):
            raise RewardError(f"discriminator: {self.model!r} is of kind {saved['kind']!r}, not {self.kind!r}")
        for name, default in _READING.items():
            if getattr(self, name) is None:
                setattr(self, name, saved.get(name, default))

    def _tokenizer(self) -> Any:
        """A tokenizer of its own that pads on the right: sides are the policy's business."""
        if isinstance(self.tokenizer, str):
            from alignkit.models.loading import load_tokenizer

            return load_tokenizer(self.tokenizer, padding_side="right", trust_remote_code=self.trust_remote_code)
        own = copy.deepcopy(self.tokenizer)
        assert own is not None, "the constructor asks for a tokenizer"
        if own.pad_token_id is None:
            own.pad_token = own.eos_token
        own.padding_side = "right"
        return own

    def _device(self) -> Any:
        import torch

        return self.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"

    def _precision(self) -> tuple[Any, Any]:
        """Dtypes of the weights, and of computations under autocast or None; small steps get lost in half precision."""
        from alignkit.models.precision import named_dtype

        if self.updates and self.dtype not in ("float32", "fp32", "float", "float64", "fp64", "double"):
            return named_dtype("float32"), named_dtype(self.dtype)
        return named_dtype(self.dtype), None

    def _same_tokens(self, processing_class: Any) -> bool:
        """Whether another tokenizer has the same tokens and end token as the network's own."""
        if self._compared[0] is not processing_class:
            own = self.network()[1]
            other: dict[str, int] = dict(getattr(processing_class, "get_vocab", dict)())
            same = other == own.get_vocab() and processing_class.eos_token_id == own.eos_token_id
            self._compared = (processing_class, same)
        return self._compared[1]

    def __getstate__(self) -> dict[str, Any]:
        """What was learned goes along; a network that has learned nothing is loaded or built again."""
        own = {**self.__dict__, "_ready": None} if self.model is None else super().__getstate__()
        state = {**own, "_learner": None, "_compared": (None, False)}
        if self._learner is not None and self._learner.updates:
            state["_carried"] = self.state_dict()
        return state
