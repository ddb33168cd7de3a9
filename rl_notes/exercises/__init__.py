"""Checkers of the book's exercises, one module a chapter.

A checker says nothing while the exercise is unanswered (the stub returns `...` or
None), says so when the answer is right, and names the mistake when it is a likely one:
it compares the answer with wrong solutions that people write.
"""

from rl_notes.exercises.critic import check_discounts, check_gae
from rl_notes.exercises.grpo import check_group_advantages, check_grpo_objective
from rl_notes.exercises.grpo_family import (
    check_accumulated_mean,
    check_answer_ratio,
)
from rl_notes.exercises.llm_as_policy import check_sampled_mask, check_sequence_logprob
from rl_notes.exercises.maze import check_discounted_return, check_success_rate
from rl_notes.exercises.off_policy import check_answer_weights, check_dppo_mask
from rl_notes.exercises.policy_gradient import check_baseline, check_log_gradient
from rl_notes.exercises.ppo import check_clipped_surrogate, check_epoch_objectives
from rl_notes.exercises.real_model import check_rounding_by_chance
from rl_notes.exercises.reward_model import (
    check_preference_loss,
    check_score_at_end,
)
from rl_notes.exercises.rlhf import check_k3, check_padded_gae
from rl_notes.exercises.side_by_side import (
    check_bias_and_noise,
    check_earned_at_budget,
)
from rl_notes.exercises.thinking import check_pass_at_k, check_rule
from rl_notes.exercises.three_steps import check_answer_mask, check_next_token_loss
from rl_notes.exercises.trpo import check_mean_kl, check_natural_step
from rl_notes.exercises.trpo_in_depth import (
    check_conjugate_gradient,
    check_line_search,
)
from rl_notes.exercises.values import check_action_values, check_value_iteration

__all__ = [
    "check_accumulated_mean",
    "check_action_values",
    "check_answer_mask",
    "check_answer_ratio",
    "check_answer_weights",
    "check_baseline",
    "check_bias_and_noise",
    "check_clipped_surrogate",
    "check_conjugate_gradient",
    "check_discounted_return",
    "check_discounts",
    "check_dppo_mask",
    "check_earned_at_budget",
    "check_epoch_objectives",
    "check_gae",
    "check_group_advantages",
    "check_grpo_objective",
    "check_k3",
    "check_line_search",
    "check_log_gradient",
    "check_mean_kl",
    "check_natural_step",
    "check_next_token_loss",
    "check_padded_gae",
    "check_pass_at_k",
    "check_preference_loss",
    "check_rounding_by_chance",
    "check_rule",
    "check_sampled_mask",
    "check_score_at_end",
    "check_sequence_logprob",
    "check_success_rate",
    "check_value_iteration",
]
