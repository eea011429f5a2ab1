"""What a simulated user says to a completion, and what a reward thinks of it: a look ahead that training never saw."""

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.data.dialogue import TURN_END
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import decode_completions, encode_prompts, pad_left
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError, ModelError
from alignkit.metrics.text_metric import TextMetric
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.registry import load_reward
from alignkit.reward import call_reward, in_evaluation, reward_name, scalar_score
from alignkit.text import Text, completion_text


class NextTurnMetric(TextMetric):
    """Mean score of what a simulated user says to each completion, by any reward.

    The user is a language model that learned what people say next (recipe look_ahead/user.yaml). It reads the turns of
    the prompt and the completion, each ended by a newline, and answers with one line, several times for each of them.
    The completion is one turn, whatever line ends are in it, so that a policy cannot write the user's answer itself.

    A row's score is the mean over its turns that are not empty and of which the reward has an opinion. Keys: `<name>`
    (mean over rows), `<name>_se` (its standard error: rows vary, not turns of one row), `<name>_empty` (share of turns
    that are empty) and, where the reward has a threshold, `<name>_positive_share` (share of scored turns above it).

    The n-th row draws its turns by its own random numbers, so that they depend on its text, the seed, `samples` and
    `max_new_tokens`, and not on the rows beside it or on `batch_size`; two systems are answered with the same luck.
    Only rounding depends on the shape of a batch: in float32 one turn in 512 came out otherwise in batches of 128 than
    of 16, with a user of 10M parameters. Hence float64, which costs little with a model of that size.

    Args:
        user: causal LM or encoder-decoder; a folder or hub id is loaded when it is first needed.
        reward: a reward, a name for `load_reward`, or a mapping of `use` and settings as in a recipe. It scores a turn
            as a completion of what the user has read; columns of the data reach it too.
        processing_class: tokenizer of the user; loaded from the model's folder where it is not given.
        name: for the keys.
        samples: turns for each row.
        temperature: of the user; 0 takes the likeliest token, and one turn a row is enough.
        max_new_tokens: the longest turn.
        seed: of the sampling.
        batch_size: turns that are sampled at a time.
        positive_above: what counts as good; by default the reward's attribute `positive_above`, where it has one.
        dtype: of the weights of a user that is loaded by name; "float32" or "bfloat16" for a large one.
    """

    def __init__(
        self,
        user: str | os.PathLike | PreTrainedModel,
        reward: Any,
        processing_class: PreTrainedTokenizerBase | None = None,
        name: str = "next_turn",
        samples: int = 4,
        temperature: float = 1.0,
        max_new_tokens: int = 32,
        seed: int = 0,
        batch_size: int = 64,
        positive_above: float | None = None,
        dtype: str = "float64",
    ):
        if samples < 1 or max_new_tokens < 1 or batch_size < 1 or temperature < 0:
            raise ConfigError(
                "the metric 'next_turn' takes samples, max_new_tokens and batch_size from 1 on, temperature from 0 "
                f"on; got {samples}, {max_new_tokens}, {batch_size} and {temperature}"
            )
        if isinstance(reward, Mapping):
            reward = load_reward(reward["use"], **{key: value for key, value in reward.items() if key != "use"})
        elif isinstance(reward, str):
            reward = load_reward(reward)
        super().__init__()
        self.user, self.processing_class, self.dtype = user, processing_class, dtype
        self.reward, self.key = reward, name
        self.samples, self.max_new_tokens, self.batch_size = samples, max_new_tokens, batch_size
        self.temperature, self.sampling_seed = temperature, seed
        self.positive_above = getattr(reward, "positive_above", None) if positive_above is None else positive_above

    def _compute(  # type: ignore[override]
        self,
        predictions: Sequence[str],
        prompts: Sequence[Text] | None = None,
        columns: Mapping[str, list] | None = None,
    ) -> dict[str, float]:
        given = list(prompts) if prompts is not None else [""] * len(predictions)
        read = [heard(prompt, text) for prompt, text in zip(given, predictions, strict=True)]
        turns = self.next_turns(read)
        scores = self._scores(read, turns, columns or {})
        own = [[score for score in row if score is not None] for row in scores]
        known = [statistics.fmean(row) if row else None for row in own]
        means = [score for score in known if score is not None]
        self.row_scores = {self.key: known}
        figures = {
            # no opinion on anything is no figure, and no zero either
            self.key: statistics.fmean(means) if means else float("nan"),
            f"{self.key}_se": statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("nan"),
            f"{self.key}_empty": statistics.fmean(not turn for row in turns for turn in row),
        }
        if self.positive_above is not None:
            above = [score > self.positive_above for row in own for score in row]
            figures[f"{self.key}_positive_share"] = statistics.fmean(above) if above else float("nan")
        return figures

    def next_turns(self, read: Sequence[str]) -> list[list[str]]:
        """What the user says: `samples` turns for each text that it has read, empty where it says nothing."""
        model, tokenizer = self._loaded()
        encoded = [self._cut(model, tokenizer, ids) for ids in encode_prompts(tokenizer, list(read))]
        luck = numpy.random.default_rng(self.sampling_seed).random((len(read), self.samples, self.max_new_tokens))
        config = generation_config_for(
            model, tokenizer, max_new_tokens=self.max_new_tokens, temperature=self.temperature
        )
        # lengths sorted: batches without padding to speak of
        order = sorted(range(len(read)), key=lambda row: len(encoded[row]))
        places = [(row, sample) for row in order for sample in range(self.samples)]
        turns = [[""] * self.samples for _ in read]
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            ids, mask = pad_left([encoded[row] for row, _ in batch], config.pad_token_id, model.device)
            uniform = torch.from_numpy(numpy.stack([luck[place] for place in batch])).to(model.device)
            made = SamplingDecoder(uniform=uniform)(model, ids, mask, config)
            for (row, sample), text in zip(batch, decode_completions(tokenizer, made.ids(), False), strict=True):
                turns[row][sample] = first_line(completion_text(text))
        return turns

    def _scores(self, read: list[str], turns: list[list[str]], columns: Mapping[str, list]) -> list[list[float | None]]:
        places = [(row, sample) for row, said in enumerate(turns) for sample, turn in enumerate(said) if turn]
        scores: list[list[float | None]] = [[None] * self.samples for _ in read]
        if not places:
            return scores
        with in_evaluation([self.reward]):
            found = call_reward(
                self.reward,
                [read[row] for row, _ in places],
                [turns[row][sample] for row, sample in places],
                columns={name: [values[row] for row, _ in places] for name, values in columns.items()},
                name=f"{self.key} ({reward_name(self.reward)})",
            )
        for (row, sample), score in zip(places, found, strict=True):
            scores[row][sample] = scalar_score(score)
        return scores

    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if isinstance(self.user, str | os.PathLike):
            self.processing_class = self.processing_class or load_tokenizer(self.user)
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
            self.user = load_causal_or_seq2seq(self.user, dtype=self.dtype).to(device)
        if self.processing_class is None:
            raise ModelError(f"a loaded {type(self.user).__name__} needs its tokenizer: pass processing_class= as well")
        return self.user, self.processing_class

    def _cut(self, model: PreTrainedModel, tokenizer: Any, ids: list[int]) -> list[int]:
        """The end of what the user has read, as much of it as the model takes beside its answer."""
        room = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**9)
        if not model.config.is_encoder_decoder:
            room -= self.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"the simulated user's context holds {room + self.max_new_tokens} tokens, and max_new_tokens="
                f"{self.max_new_tokens} leaves none for what it answers to; lower max_new_tokens"
            )
        return ids[-room:]


def heard(prompt: Text, completion: str) -> str:
    """The dialogue as the user has heard it, in the text form of the data sets of dialogues.

    >>> heard("Hi.\\n", " Hello.\\nThanks, I feel great!")
    'Hi.\\nHello. Thanks, I feel great!\\n'
    >>> heard([{"role": "user", "content": "Hi."}], "Hello.")
    'Hi.\\nHello.\\n'
    >>> heard("The film was", " good.")
    'The film was good.\\n'
    """
    if isinstance(prompt, str):
        apart = " " if completion[:1].isspace() and prompt and not prompt[-1].isspace() else ""
        return prompt + apart + _one_line(completion) + TURN_END
    turns = [completion_text([message]) for message in prompt if message["role"] != "system"]
    return "".join(_one_line(turn) + TURN_END for turn in [*turns, completion])


def first_line(text: str) -> str:
    """The first line of what was generated, without spaces around it.

    >>> first_line(" Fine.\\nAnd you?"), first_line("\\nFine.")
    ('Fine.', '')
    """
    return text.split(TURN_END, 1)[0].strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
