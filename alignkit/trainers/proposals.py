"""Where a cooperative trainer takes its completions from: the one table of proposals."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignkit.decoding.enumeration import EnumerationDecoder
from alignkit.decoding.mixture import MixtureDecoder
from alignkit.decoding.sampling import Decoder, SamplingDecoder
from alignkit.errors import ConfigError
from alignkit.settings import argument_problems


def policy_proposal(temperature: float = 1.0) -> Decoder:
    """Plain samples of the policy, or its samples at another temperature: full support either way.

    Args:
        temperature: divides the logits of what is drawn; the policy itself stays at 1.
    """
    return SamplingDecoder() if temperature == 1 else MixtureDecoder(policy_share=0.0, temperature=temperature)


@dataclass(frozen=True)
class Proposal:
    """One value of the setting `proposal`.

    Attributes:
        make: the decoder from `proposal_settings`; of a guided one from the reward and the tokenizer as well.
        guided: it asks the reward while it decodes, so that its completions say something even unweighted.
    """

    make: Callable[..., Decoder]
    guided: bool = False

    def problems(self, name: str, settings: dict[str, Any]) -> list[str]:
        """What is wrong with `proposal_settings`, a sentence each."""
        taken = dict(inspect.signature(self.make).parameters)
        if self.guided:
            taken = dict(list(taken.items())[2:])
        found = argument_problems(f"the proposal {name!r}", settings, taken, where="proposal_settings")
        if found or self.guided:
            return found
        try:
            self.make(**settings)
        except ConfigError as error:
            return [f"proposal_settings: {error}"]
        return []


PROPOSALS = {
    "policy": Proposal(policy_proposal),
    "mixture": Proposal(MixtureDecoder),
    "exact": Proposal(EnumerationDecoder),
}


def make_proposal(name: str, settings: dict[str, Any], reward: Any, processing_class: Any) -> Decoder:
    """The decoder that a config asks for.

    Args:
        name: a key of `PROPOSALS`.
        settings: of that decoder.
        reward: what a guided one asks.
        processing_class: the policy's tokenizer, by which it asks.
    """
    proposal = PROPOSALS[name]
    return proposal.make(reward, processing_class, **settings) if proposal.guided else proposal.make(**settings)
