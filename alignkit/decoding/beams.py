"""Texts that grow side by side by `log p + alpha * log D`: the best of them go on, or one is drawn."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from alignkit.decoding.policy_tree import PolicyTree, Search
from alignkit.decoding.prefix_scores import prefix_scorer
from alignkit.decoding.sampling import draw
from alignkit.errors import RewardValueError
from alignkit.reward import reward_name

if TYPE_CHECKING:
    from alignkit.decoding.das import DAS


@dataclass
class GrowingText:
    """A text that is being written.

    Attributes:
        row: its prompt.
        ids: its tokens.
        policy, scorer: its numbers in the readers of policy and reward; of its parent, until it is read itself.
        read: whether the reward has read its last token.
        log_p: its log-probability by what the processors leave.
        score: what it is ranked by.
        log_density: of what was drawn.
        log_probs: of its tokens under the policy.
        ended: whether it takes no more tokens.
    """

    row: int
    ids: list[int]
    policy: int
    scorer: int
    read: bool = True
    log_p: float = 0.0
    score: float = 0.0
    log_density: float = 0.0
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False


@dataclass
class Candidates:
    """K tokens that may follow each of n texts.

    Attributes:
        tokens: (n, K) the likeliest first.
        log_p: (n, K) by what the processors leave; -inf where there are fewer.
        log_probs: (n, K) under the policy as such.
        log_d: (n, K) of the reward; -inf where it has no opinion.
        nodes: (n, K) the scorer's numbers.
        policy: (n, V) log-probabilities of all tokens under the policy.
        share: (n, V) the same of those that are not forbidden, renormalised.
    """

    tokens: np.ndarray
    log_p: np.ndarray
    log_probs: np.ndarray
    log_d: np.ndarray
    nodes: np.ndarray
    policy: torch.Tensor
    share: torch.Tensor


class BeamReading:
    """One call of a `DAS`.

    Args:
        settings: its settings.
        search: what is searched for.
    """

    def __init__(self, settings: "DAS", search: Search):
        self.settings, self.search = settings, search
        rows = len(search.prompts)
        limit = rows * settings.beams * (search.length + 1)
        self.policy = PolicyTree(search, limit, with_allowed=settings.policy_share > 0)
        self.scorer = prefix_scorer(
            settings.reward, search.prompts, settings.processing_class, search.columns, search.behind is not None,
            search.ends,
        )  # fmt: skip
        self.scored = rows
        self.weighed: set[int] = set()  # prompts of which the reward gave a beginning any weight
        self.following = self.policy.begin()

    def beams(self) -> list[GrowingText]:
        """The best text of each prompt."""
        beams = [[text] for text in self._empty()]
        while growing := [text for group in beams for text in group if not text.ended]:
            found = self._candidates(growing)
            made = [[text for text in group if text.ended] for group in beams]
            for i, text in enumerate(growing):
                for j in np.flatnonzero(np.isfinite(found.log_p[i])):
                    made[text.row].append(self._longer(text, int(found.tokens[i, j]), found, i, int(j)))
            beams = [sorted(group, key=_rank)[: self.settings.beams] for group in made]
            self._read([text for group in beams for text in group if not text.ended])
        return [group[0] for group in beams]

    def drawn(self, uniform: np.ndarray) -> list[GrowingText]:
        """A text of each prompt, drawn by p * D^alpha and the policy's share.

        Args:
            uniform: (B, T, 3) in [0, 1): whether a token is the policy's, which candidate it is, which of the policy's.
        """
        texts, share = self._empty(), self.settings.policy_share
        while growing := [text for text in texts if not text.ended]:
            found = self._candidates(growing)
            luck = uniform[[text.row for text in growing], len(growing[0].ids)]
            by_policy = draw(found.share.exp(), torch.from_numpy(luck[:, 2].copy()).to(found.share.device)).cpu()
            for i, text in enumerate(growing):
                shares = self._shares(found.log_p[i], found.log_d[i])
                place: int | None
                if luck[i, 0] < share:
                    token = int(by_policy[i])
                    places = np.flatnonzero((found.tokens[i] == token) & np.isfinite(found.log_p[i]))
                    place = int(places[0]) if len(places) else None
                else:
                    place = int(draw(torch.from_numpy(shares)[None], torch.tensor([luck[i, 1]]))[0])
                    token = int(found.tokens[i, place])
                longer = self._longer(text, token, found, i, place)
                chosen = 0.0 if place is None else shares[place]
                longer.log_density = text.log_density + float(
                    np.log((1 - share) * chosen + share * np.exp(float(found.share[i, token])))
                )
                texts[text.row] = longer
            self._read([text for text in texts if not text.ended])
        return texts

    def _empty(self) -> list[GrowingText]:
        return [GrowingText(row, [], row, row) for row in range(len(self.search.prompts))]

    def _candidates(self, growing: list[GrowingText]) -> Candidates:
        alpha = self.settings.alpha
        logits, scores, allowed = self.following
        log_p, tokens = scores.log_softmax(-1).topk(min(self.settings.candidates, scores.shape[1]))
        policy = logits.log_softmax(-1)
        found = Candidates(
            tokens.cpu().numpy(),
            log_p.double().cpu().numpy(),
            policy.gather(1, tokens).double().cpu().numpy(),
            np.full(tuple(tokens.shape), -np.inf),
            np.zeros(tuple(tokens.shape), dtype=np.int64),
            policy,
            policy if allowed is logits else allowed.log_softmax(-1),
        )
        if not alpha:
            found.log_d[:] = 0.0
            return found
        at, place = np.nonzero(np.isfinite(found.log_p))
        parents = [growing[i].scorer for i in at]
        found.log_d[at, place] = self._log_d(self.scorer.extend(parents, found.tokens[at, place].tolist()))
        found.nodes[at, place] = np.arange(self.scored, self.scored + len(at))
        self.scored += len(at)
        self.weighed.update(growing[i].row for i in np.flatnonzero(np.isfinite(found.log_d).any(1)))
        return found

    def _log_d(self, scores: list[float]) -> np.ndarray:
        values = np.asarray(scores, dtype=np.float64)
        unknown = np.isnan(values)
        if self.settings.reward_as == "probability":
            outside = ~unknown & ((values < 0) | (values > 1))
            if outside.any():
                raise RewardValueError(
                    f"reward '{reward_name(self.settings.reward)}' gave {values[outside][0]:g}, and DAS reads it as a "
                    "probability between 0 and 1; set reward_as='exponential' (--reward-as exponential) for a "
                    "reward of another range"
                )
            with np.errstate(divide="ignore"):
                values = np.log(values)
        return np.where(unknown, -np.inf, values)

    def _shares(self, log_p: np.ndarray, log_d: np.ndarray) -> np.ndarray:
        """p * D^alpha, renormalised; p alone where the reward leaves nothing."""
        weights = log_p + self.settings.alpha * log_d if self.settings.alpha else log_p
        weights = weights if np.isfinite(weights).any() else log_p
        shares = np.exp(weights - weights.max())
        return shares / shares.sum()

    def _longer(self, text: GrowingText, token: int, found: Candidates, i: int, place: int | None) -> GrowingText:
        """The text with `token`, the candidate at `place` or none of the candidates of text `i`."""
        known = place is not None
        log_prob = found.log_probs[i, place] if known else found.policy[i, token]
        log_p = text.log_p + (float(found.log_p[i, place]) if known else 0.0)
        read = known and self.settings.alpha > 0
        ids = [*text.ids, token]
        return GrowingText(
            text.row,
            ids,
            text.policy,
            int(found.nodes[i, place]) if read else text.scorer,
            read,
            log_p,
            log_p + self.settings.alpha * float(found.log_d[i, place]) if read else log_p,
            0.0,
            [*text.log_probs, float(log_prob)],
            token in self.search.ends or len(ids) == self.search.length,
        )

    def _read(self, growing: list[GrowingText]) -> None:
        """Let policy and reward read what the next step begins from, and forget the rest."""
        if not growing:
            return
        unread = [text for text in growing if not text.read and self.settings.alpha]
        if unread:  # drawn by the policy alone
            self.scorer.extend([text.scorer for text in unread], [text.ids[-1] for text in unread])
            for text in unread:
                text.scorer, self.scored = self.scored, self.scored + 1
        if self.settings.alpha:
            self.scorer.keep([text.scorer for text in growing])
        self.policy.keep(sorted({text.policy for text in growing}))
        begun = self.policy.made
        self.following = self.policy.extend([text.policy for text in growing], [text.ids[-1] for text in growing])
        for number, text in enumerate(growing):
            text.policy = begun + number


def _rank(text: GrowingText) -> tuple[float, float]:
    """Smaller is better: by the score, and by the policy where the reward gave no weight."""
    return -text.score, 0.0 if np.isfinite(text.score) else -text.log_p
