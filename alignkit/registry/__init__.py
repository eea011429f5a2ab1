"""From a reward's name to the reward: registered by an installed plugin, `package.module:Object`, or `file.py:Object`.

A plugin registers its rewards in the entry-point group `alignkit.rewards`; alignkit's own use the same group. Importing
this package loads the standard library only.
"""

from alignkit.registry.entries import GROUP, RewardEntry, available_rewards
from alignkit.registry.resolving import find_reward, load_reward

__all__ = ["GROUP", "RewardEntry", "available_rewards", "find_reward", "load_reward"]
