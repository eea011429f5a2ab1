"""The probability that a person wrote a completion, by a network that trains along with the policy.

- `reward`: the reward;
- `texts`: how it reads texts;
- `learning`: how it learns;
- `prefixes`: how it scores beginnings for a search.
"""

from alignkit_rewards.discriminator.reward import Discriminator

__all__ = ["Discriminator"]
