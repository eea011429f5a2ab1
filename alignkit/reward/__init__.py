"""The reward contract: what a reward is, how it is called, and what it may answer.

A reward scores text. Trainers learn from it, decoders search with it, metrics report it. All of them call it through
`call_reward`, so that a reward which works in one place works in every place:

- `contract`: the protocol, names for the log, required columns, and a description for the run's record;
- `call`: the one call, which passes what the reward accepts and refuses what it must not answer;
- `learned`: rewards that train along, and the state that checkpoints carry;
- `prefix`: rewards that score beginnings, token by token, for decoders that search.

Importing this package loads the standard library only.
"""

from alignkit.reward.call import call_reward, scalar_score
from alignkit.reward.contract import (
    GRANULARITIES,
    RESERVED,
    Reward,
    check_columns,
    describe_reward,
    granularity,
    required_columns,
    reward_name,
    unique_names,
)
from alignkit.reward.learned import (
    LearnedReward,
    check_references,
    in_evaluation,
    learned_rewards,
    stateful_rewards,
    walk_rewards,
)
from alignkit.reward.prefix import PrefixReward, PrefixScorer

__all__ = [
    "GRANULARITIES",
    "RESERVED",
    "LearnedReward",
    "PrefixReward",
    "PrefixScorer",
    "Reward",
    "call_reward",
    "check_columns",
    "check_references",
    "describe_reward",
    "granularity",
    "in_evaluation",
    "learned_rewards",
    "required_columns",
    "reward_name",
    "scalar_score",
    "stateful_rewards",
    "unique_names",
    "walk_rewards",
]
