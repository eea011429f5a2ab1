"""Where a cooperative trainer takes its completions from: the one table of proposals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from alignkit.decoding.choosing import chooser_problems
from alignkit.decoding.das import DAS
from alignkit.decoding.enumeration import EnumerationDecoder
from alignkit.decoding.mcts import MCTS
from alignkit.decoding.mixture import MixtureDecoder
from alignkit.decoding.proposal import SearchProposal
from alignkit.decoding.sampling import Decoder, SamplingDecoder


def policy_proposal(temperature: float = 1.0) -> Decoder:
    """Plain samples of the policy, or its samples at another temperature: full support either way.

    Args:
        temperature: divides the logits of what is drawn; the policy itself stays at 1.
    """
    return SamplingDecoder() if temperature == 1 else MixtureDecoder(policy_share=0.0, temperature=temperature)


def search_proposal(search: type, reward: Any, processing_class: Any, **settings: Any) -> Decoder:
    """A search that samples as a proposal.

    Args:
        search: `MCTS` or `DAS`.
        reward: what it asks.
        processing_class: the policy's tokenizer.
        settings: of the search.
    """
    return SearchProposal(search(reward, processing_class, **settings))


class OwnProposal:
    """Stands for a decoder that the trainer is given; it takes no settings."""


@dataclass(frozen=True)
class Proposal:
    """One value of the setting `proposal`.

    Attributes:
        make: the decoder from `proposal_settings`; of a guided one from the reward and the tokenizer before them.
        takes: what has the settings for parameters, behind reward and tokenizer where it is guided.
        guided: it asks the reward while it decodes, so that its completions say something even unweighted.
        defaults: settings that differ from those of `takes`: a proposal samples, and leaves nothing out.
    """

    make: Callable[..., Any]
    takes: Callable[..., Any]
    guided: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def problems(self, name: str, settings: dict[str, Any], needs_density: bool = False) -> list[str]:
        """What is wrong with `proposal_settings`, a sentence each.

        Args:
            name: of the proposal.
            settings: its settings.
            needs_density: completions will be weighted by their density.
        """
        found = chooser_problems(
            f"the proposal {name!r}", self.takes, settings, "proposal_settings",
            make=self.make, guided=self.guided, defaults=self.defaults,
        )  # fmt: skip
        if found:
            return found
        if self.guided and needs_density and not {**self.defaults, **settings}["policy_share"]:
            return [
                f"proposal_settings: policy_share=0 leaves out what {name!r} never tries, and no weight can make up "
                "for that; set it above 0 (0.1, say), or weighting to 'uniform' or 'best'"
            ]
        return []


PROPOSALS = {
    "policy": Proposal(policy_proposal, policy_proposal),
    "mixture": Proposal(MixtureDecoder, MixtureDecoder),
    "mcts": Proposal(
        partial(search_proposal, MCTS), MCTS, guided=True, defaults={"visit_temperature": 1.0, "policy_share": 0.1}
    ),
    "das": Proposal(partial(search_proposal, DAS), DAS, guided=True, defaults={"sample": True, "policy_share": 0.1}),
    "exact": Proposal(EnumerationDecoder, EnumerationDecoder),
    "own": Proposal(OwnProposal, OwnProposal),
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
    asked = (reward, processing_class) if proposal.guided else ()
    return proposal.make(*asked, **{**proposal.defaults, **settings})
