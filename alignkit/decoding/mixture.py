"""A proposal with full support that mostly samples from the policy's nucleus, and knows its density exactly.

ColdGAN (Scialom et al. 2020) explores near the policy's mode and keeps a share of plain samples, so that importance
weights stay finite.
"""

from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alignkit.decoding.sampling import SamplingDecoder, SamplingLoop, draw
from alignkit.errors import ConfigError


class MixtureDecoder(SamplingDecoder):
    """Each completion whole from the policy, or whole from its truncated and tempered form, chosen by chance.

    With the share e = `policy_share` of the policy p, the density of a completion is that of the mixture, whichever
    component it came from: `log q^ = logaddexp(log e + log p, log(1 - e) + log q_cut)`, where q_cut is the product of
    the renormalised truncated conditionals at `temperature`. Both are computed in the same loop.

    What the generation config forbids besides (`min_new_tokens`, `bad_words_ids`) is forbidden in both components; its
    own temperature must be 1 and it must not truncate.

    Args:
        policy_share: e, in [0, 1].
        temperature: of the other component.
        top_p: its nucleus; 1 takes all tokens.
        top_k: its k likeliest tokens; 0 takes all.
        min_p: its tokens with at least this share of the likeliest one's probability; None takes all.

    Raises:
        ConfigError: a number out of its range; a truncated component without a share of the policy, which would leave
            completions without any density.
    """

    def __init__(
        self,
        policy_share: float = 0.1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
    ):
        super().__init__()
        ranges = {
            "policy_share": (policy_share, 0 <= policy_share <= 1, "a number between 0 and 1"),
            "temperature": (temperature, temperature > 0, "a number above 0"),
            "top_p": (top_p, 0 < top_p <= 1, "a number above 0, at most 1"),
            "top_k": (top_k, top_k >= 0 and top_k == int(top_k), "a whole number of 0 or more"),
            "min_p": (min_p, min_p is None or 0 <= min_p < 1, "a number of 0 or more, below 1, or None"),
        }
        problems = [f"{name}={value!r}; expected {what}" for name, (value, good, what) in ranges.items() if not good]
        if problems:
            raise ConfigError("; ".join(problems))
        self.policy_share = policy_share
        self.cut: list[Any] = [] if temperature == 1 else [TemperatureLogitsWarper(float(temperature))]
        truncating: list[Any] = [TopKLogitsWarper(int(top_k))] if top_k else []
        truncating += [TopPLogitsWarper(float(top_p))] if top_p < 1 else []
        truncating += [MinPLogitsWarper(float(min_p))] if min_p else []
        if truncating and policy_share == 0:
            raise ConfigError(
                f"policy_share=0 with top_p={top_p}, top_k={top_k}, min_p={min_p}: completions outside of the cut "
                "would never be drawn, and no weight can make up for that; set policy_share above 0 (0.1, say), or "
                "leave the cut out and set temperature alone"
            )
        self.cut += truncating

    def loop(self, rows: int, synced_gpus: bool) -> "MixtureLoop":
        """What samples one batch, with a component chosen for each row."""
        return MixtureLoop(LogitsProcessorList(self.cut), self.policy_share, synced_gpus)


class MixtureLoop(SamplingLoop):
    """A `SamplingLoop` that draws each row from one of two components and notes the density under both.

    Args:
        cut: the processors of the truncated component.
        policy_share: the chance of the policy.
        synced_gpus: see `SamplingLoop`.
    """

    def __init__(self, cut: LogitsProcessorList, policy_share: float, synced_gpus: bool):
        super().__init__(with_values=False, synced_gpus=synced_gpus, uniform=None)
        self.cut = cut
        self.policy_share = policy_share
        self.from_policy: torch.Tensor | None = None
        self.cut_densities: list[torch.Tensor] = []

    def choose(
        self, input_ids: torch.Tensor, logits: torch.Tensor, logits_processor: Any, generation_config: GenerationConfig
    ) -> torch.Tensor:
        if self.from_policy is None:
            self.from_policy = torch.rand(len(logits), device=logits.device) < self.policy_share
        allowed = logits_processor(input_ids, logits)
        whole, cut = allowed.log_softmax(-1), self.cut(input_ids, allowed).log_softmax(-1)
        tokens = draw(torch.where(self.from_policy[:, None], whole, cut).exp())
        for noted, log_p in (
            (self.log_probs, logits.log_softmax(-1)),
            (self.log_densities, whole),
            (self.cut_densities, cut),
        ):
            noted.append(log_p.gather(-1, tokens[:, None]).squeeze(-1))
        return tokens

    def log_density(self, mask: torch.Tensor) -> torch.Tensor:
        share = torch.tensor(self.policy_share, dtype=self.log_densities[0].dtype, device=mask.device)
        # a token that the cut leaves out has -inf there, at padded places too
        whole, cut = (
            torch.where(mask.bool(), torch.stack(noted, 1), 0.0).sum(1)
            for noted in (self.log_densities, self.cut_densities)
        )
        return torch.logaddexp(share.log() + whole, torch.log1p(-share) + cut)
