"""Monte Carlo tree search: completions that a reward likes, found by looking ahead of every token.

Sources: PUCT and the most visited child from Silver et al. (2017), "Mastering the game of Go without human knowledge";
for text, with the mean of a discriminator's values, Chaffin, Claveau and Kijak (2022), "PPL-MCTS"; with their maximum,
Scialom et al. (2021), "To beam or not to beam: that is a question of cooperation for language GANs".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from alignkit.compose import as_reward
from alignkit.decoding.growing import Growth, SearchStep
from alignkit.decoding.policy_tree import check_number, check_whole, search_of
from alignkit.decoding.prefix_scores import TextScorer
from alignkit.decoding.prompts import decode_completions
from alignkit.errors import ConfigError
from alignkit.reward import in_evaluation
from alignkit.text import Text, is_conversational

VALUES = ("prefix", "rollout")
BACKUPS = ("max", "mean")


@dataclass
class MCTSOutput(ModelOutput):
    """What `generate` gives for B prompts with `return_dict_in_generate=True`.

    Attributes:
        sequences: (B, L) as `generate` returns them without it.
        rewards: (B,) the reward of each completion; NaN where it had no opinion.
        log_probs: (B, T) log-probability of each token under the policy as such (temperature 1, no truncation).
        log_density: (B,) log-density of the completion under the search, where it samples; None where it does not.
        completions: B completions in the form in which the reward read them.
        completion_ids: their token ids, end-of-sequence token included and padding left out.
        steps: for each prompt what its search knew when it chose each token.
        evaluations: how often the policy and the reward were asked, for all prompts together.
        peak_bytes: what the policy's keys and values took at most.
    """

    sequences: torch.Tensor | None = None
    rewards: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    log_density: torch.Tensor | None = None
    completions: list[Text] | None = None
    completion_ids: list[list[int]] | None = None
    steps: list[list[SearchStep]] | None = None
    evaluations: int | None = None
    peak_bytes: int | None = None


class MCTS:
    """A `custom_generate` callable: before each token a tree search finds out where the tokens lead.

        model.generate(**inputs, custom_generate=MCTS(reward, tokenizer), prompts=texts, max_new_tokens=32)

    A simulation goes down from the text so far along the edges of highest
    `Q + exploration * prior * sqrt(sum of the children's N) / (1 + N)` (the likelier child of equals; Q of a child
    without a visit is 0), to a token that was never visited, learns its value, and tells it to the edges above. Then
    the child with most visits is the next token (the likelier of equals). Children are the tokens that the processors
    of `generate` leave (temperature, top-k, top-p, repetition penalty), at most `children`, their probabilities
    renormalised. A completion ends at an end-of-sequence token or at its greatest length.

    A subtree does not depend on what lies above it: kept or made again, it gives the same tokens and visits, and only
    the time differs. (Not so with several leaves a wave, or with rollouts that sample.)

    Args:
        reward: a reward, a name for `load_reward`, or a mapping with `use`. A `PrefixReward` reads each token once; any
            other is called on the text of the beginnings. Its values should lie between 0 and 1, or `exploration` be
            chosen to its range. No opinion (None) counts as 0.
        processing_class: the tokenizer of the model that generates.
        simulations: visits of the root before a token is chosen, the root's own expansion and inherited visits
            included. With 1 the likeliest token is taken at every step.
        children: most children of a node.
        exploration: weight of the policy's prior against the values.
        value: `prefix`, the reward of the text so far; or `rollout`, the reward of its completion by the policy.
        backup: Q is the `max` or the `mean` of the values below.
        keep_subtree: whether the search goes on with what it knows below the chosen token.
        visit_temperature: 0 takes the most visited child; above that, a child is drawn by N^(1 / visit_temperature).
        policy_share: share e of the policy in what is drawn: q(token) = (1 - e) N^(1/tau) / sum + e p(token). Above 0
            every completion that the policy as such can write has a density.
        leaves_per_wave: so many leaves of a tree are evaluated together; each waiting visit counts already (as one of
            value 0 in a mean). Above 1 it changes the search.
        rollout_temperature: of rollouts; 0 takes the likeliest token.

    Raises:
        ConfigError: a setting that is out of its range.
    """

    def __init__(
        self,
        reward: Any,
        processing_class: PreTrainedTokenizerBase,
        simulations: int = 50,
        children: int = 50,
        exploration: float = 8.0,
        value: str = "prefix",
        backup: str = "max",
        keep_subtree: bool = True,
        visit_temperature: float = 0.0,
        policy_share: float = 0.0,
        leaves_per_wave: int = 1,
        rollout_temperature: float = 0.0,
    ):
        for name, number in (
            ("simulations", simulations),
            ("children", children),
            ("leaves_per_wave", leaves_per_wave),
        ):
            check_whole(name, number)
        check_number("exploration", exploration)
        check_number("visit_temperature", visit_temperature)
        check_number("rollout_temperature", rollout_temperature)
        check_number("policy_share", policy_share, 0.0, 1.0)
        for name, word, known in (("value", value, VALUES), ("backup", backup, BACKUPS)):
            if word not in known:
                raise ConfigError(f"{name} is one of {', '.join(known)}; got {word!r}")
        if value == "prefix" and rollout_temperature:
            raise ConfigError("rollout_temperature is for value='rollout'; leave it out, or set value='rollout'")
        self.reward = as_reward(reward)
        self.processing_class = processing_class
        self.simulations, self.children, self.exploration = simulations, children, float(exploration)
        self.value, self.backup, self.keep_subtree = value, backup, keep_subtree
        self.visit_temperature, self.policy_share = float(visit_temperature), float(policy_share)
        self.leaves_per_wave, self.rollout_temperature = leaves_per_wave, float(rollout_temperature)

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn, so that a completion has a density."""
        return self.visit_temperature > 0 or self.policy_share > 0

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        prompts: list[Text] | None = None,
        columns: Mapping[str, list[Any]] | None = None,
        uniform: torch.Tensor | None = None,
        inputs_tensor: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> torch.Tensor | MCTSOutput:
        """What `generate` calls; the first three of these are for its caller, the rest is the host's.

        Args:
            prompts: B prompts as the reward shall read them, strings or message lists; by default the text of the
                prompts' tokens.
            columns: further columns of the data for the reward, B values each.
            uniform: (B, T, 3) numbers in [0, 1) to draw by instead of the random state's, three for each row and token:
                what becomes of a row then does not depend on the rows beside it.
            model, input_ids, logits_processor, stopping_criteria, generation_config: see transformers' `generate`.
            inputs_tensor: (B, P) the prompts' token ids.
            model_kwargs: inputs of the model's forward.

        Returns:
            (B, L) prompt and completion, or of an encoder-decoder the decoder's tokens, padded on the right; an
            `MCTSOutput` with `return_dict_in_generate=True`.

        Raises:
            ConfigError, DataError: see `alignkit.decoding.policy_tree.search_of`.
        """
        search = search_of(
            "MCTS", self.processing_class, model, input_ids, logits_processor, stopping_criteria, generation_config,
            prompts, columns, inputs_tensor, model_kwargs,
        )  # fmt: skip
        if uniform is None and self.samples:
            uniform = torch.rand((len(input_ids), search.length, 3), dtype=torch.float64)
        with in_evaluation([self.reward]):
            growth = Growth(self, search, uniform)
            growth.run()
            sequences = search.padded(growth.completion_ids)
            if not generation_config.return_dict_in_generate:
                return sequences
            scorer = TextScorer(
                self.reward, search.prompts, self.processing_class, search.columns, search.behind is not None
            )
            rewards = scorer.scores(range(len(search.prompts)), growth.completion_ids)
        device = input_ids.device
        log_probs = torch.zeros((len(sequences), sequences.shape[1] - search.ids.shape[1]), dtype=torch.float64)
        for row, values in enumerate(growth.log_probs):
            log_probs[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        density = torch.tensor(growth.log_density, dtype=torch.float64, device=device) if self.samples else None
        conversational = is_conversational(search.prompts[0])
        return MCTSOutput(
            sequences=sequences,
            rewards=torch.tensor(rewards),
            log_probs=log_probs.to(device, torch.promote_types(model.dtype, torch.float32)),
            log_density=density,
            completions=decode_completions(self.processing_class, growth.completion_ids, conversational, search.behind),
            completion_ids=growth.completion_ids,
            steps=growth.steps,
            evaluations=growth.evaluation.calls,
            peak_bytes=growth.policy.reader.bytes,
        )
