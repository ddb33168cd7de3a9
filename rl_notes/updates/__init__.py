"""One update of a policy, or of a value function. One module for each.

Nothing here knows a maze from a language model.
"""

from rl_notes.updates._shared import UpdateStats
from rl_notes.updates.grpo import ClipStats, GroupStats, grpo_update
from rl_notes.updates.ppo import ppo_update
from rl_notes.updates.reinforce import reinforce_update
from rl_notes.updates.trpo import TrustRegionStats, trpo_update
from rl_notes.updates.value import ValueStats, fit_value

__all__ = [
    "ClipStats",
    "GroupStats",
    "TrustRegionStats",
    "UpdateStats",
    "ValueStats",
    "fit_value",
    "grpo_update",
    "ppo_update",
    "reinforce_update",
    "trpo_update",
]
