"""Exact answers for worlds small enough to write down.

The probabilities of a policy are [S, A]: `policy.logits.softmax(-1)` for a table, or
`probabilities_of` for any policy. That one and `values_of` give plain numbers. All
others work in the dtype of the tables (float64) and can be differentiated.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rl_notes.divergences import kl_exact


@runtime_checkable
class Tables(Protocol):
    """Anything that has these three tables, such as the maze.

    Attributes:
        transitions: P(s' | s, a). Every row sums to one.
        rewards: Expected reward of action a in state s.
        terminal: True where the episode is over. Nothing is earned from there.
    """

    @property
    def transitions(self) -> Float[Tensor, "S A S"]: ...  # noqa: D102
    @property
    def rewards(self) -> Float[Tensor, "S A"]: ...  # noqa: D102
    @property
    def terminal(self) -> Bool[Tensor, " S"]: ...  # noqa: D102


def action_values(
    tables: Tables, values: Float[Tensor, " S"], *, discount: float | int
) -> Float[Tensor, "S A"]:
    """Action values (Q-function), by one step of looking ahead (action value).

    Q(s, a) = r(s, a) + gamma sum_s' P(s' | s, a) V(s')

    V counts as 0 in terminal states, and so does Q: no action is taken there.
    """
    values = torch.where(tables.terminal, 0, values)
    ahead = tables.rewards + discount * tables.transitions @ values
    return torch.where(tables.terminal[:, None], 0, ahead)


def value_iteration(
    tables: Tables,
    *,
    discount: float | int,
    tolerance: float = 1e-12,
    iterations: int = 100_000,
) -> Float[Tensor, " S"]:
    """Value iteration: the optimal values (optimality).

    Value of the best policy.

    V(s) = max_a Q(s, a), repeated as an assignment until nothing moves.

    Starts from V = 0 and stops when no value changed by more than `tolerance`. Raises
    if that does not happen, as with discount 1 and a reward for every step.
    """
    _check_discount(discount)
    values = torch.zeros_like(tables.rewards[:, 0])
    for _ in range(iterations):
        improved = action_values(tables, values, discount=discount).amax(dim=1)
        change = float((improved - values).abs().max())
        values = improved
        if change <= tolerance:
            return values
    raise ValueError(
        f"The values still moved by {change:.3g} after {iterations} sweeps with "
        f"discount={discount}: does some policy earn without end? Use a discount "
        "below 1."
    )


def greedy(
    action_values: Float[Tensor, "S A"], *, tolerance: float = 1e-9
) -> Float[Tensor, "S A"]:
    """Greedy policy of action values; actions equally good share evenly."""
    best = action_values >= action_values.amax(dim=1, keepdim=True) - tolerance
    return best.to(action_values.dtype) / best.sum(dim=1, keepdim=True)


def policy_evaluation(
    tables: Tables, probabilities: Float[Tensor, "S A"], *, discount: float | int
) -> Float[Tensor, " S"]:
    """Policy evaluation: the exact values of a policy (Bellman).

    The solution of V = r_pi + gamma P_pi V.

    r_pi(s) = sum_a pi(a | s) r(s, a) and P_pi(s, s') = sum_a pi(a | s) P(s' | s, a),
    with V = 0 in terminal states.
    """
    rewards, matrix = _under_policy(tables, probabilities, discount)
    values: Tensor = torch.linalg.solve(matrix, rewards)
    return values


def probabilities_of(policy: nn.Module, tables: Tables) -> Float[Tensor, "S A"]:
    """The probabilities of a policy in every state, in the dtype of the tables.

    pi(a | s), without a gradient, on the device of the tables. The policy must take the
    numbers of states, as a table does, or a network that one-hot encodes them.
    """
    where = next(policy.parameters()).device
    every_state = torch.arange(len(tables.terminal), device=where)
    with torch.no_grad():
        logits: Tensor = policy(every_state[None])[0]
    return logits.softmax(-1).to(tables.rewards)


def values_of(
    policy: nn.Module, tables: Tables, *, discount: float | int
) -> Float[Tensor, " S"]:
    """Exact values of a policy, table or network: what it earns from every state.

    The mean over states is its exact return from a start that is drawn among them.
    """
    probabilities = probabilities_of(policy, tables)
    return policy_evaluation(tables, probabilities, discount=discount)


def advantages(
    tables: Tables, probabilities: Float[Tensor, "S A"], *, discount: float | int
) -> Float[Tensor, "S A"]:
    """Exact advantages A = Q - V of a policy (advantage).

    How much better an action is than what the policy does.

    A(s, a) = Q(s, a) - V(s)

    The mean under the policy is zero in every state: sum_a pi(a | s) A(s, a) = 0.
    """
    values = policy_evaluation(tables, probabilities, discount=discount)
    return action_values(tables, values, discount=discount) - values[:, None]


def occupancy(
    tables: Tables,
    probabilities: Float[Tensor, "S A"],
    *,
    discount: float | int,
    start: Float[Tensor, " S"],
) -> Float[Tensor, " S"]:
    """Discounted state occupancy, or visitation: d(s) = sum_t gamma^t Pr(s_t = s).

    The weights of (performance difference).

    `start` is the distribution of s_0. Not normalised: over the states that are not
    terminal it adds up to the expected discounted length of an episode. Terminal states
    count 0: no action is taken there.
    """
    _, matrix = _under_policy(tables, probabilities, discount)
    start = torch.where(tables.terminal, 0, start.to(matrix.dtype))
    visits: Tensor = torch.linalg.solve(matrix.T, start)
    return visits


def expected_return(
    tables: Tables,
    probabilities: Float[Tensor, "S A"],
    *,
    discount: float | int,
    start: Float[Tensor, " S"],
) -> Float[Tensor, ""]:
    """Exact expected return of a policy (value): J = sum_s start(s) V(s).

    Differentiable in `probabilities`: its gradient is the exact policy gradient.
    """
    values = policy_evaluation(tables, probabilities, discount=discount)
    return start.to(values.dtype) @ values


def expected_surrogate(
    tables: Tables,
    probabilities: Float[Tensor, "S A"],
    new_probabilities: Float[Tensor, "S A"],
    *,
    discount: float | int,
    start: Float[Tensor, " S"],
) -> Float[Tensor, ""]:
    """Exact expected surrogate objective of TRPO.

    What the old policy's visits promise of the new one.

    L(pi') = sum_s d(s) sum_a pi'(a | s) A(s, a), with d and A of the old policy pi. It
    is what the sampled (surrogate) estimates, less the advantages' own mean. With the
    visits of pi' it would be J(pi') - J(pi): see (performance difference).

    Differentiable in `new_probabilities`: where the two policies are equal, it is 0 and
    its gradient that of `expected_return`.
    """
    visits = occupancy(tables, probabilities, discount=discount, start=start)
    ahead = advantages(tables, probabilities, discount=discount)
    return visits @ (new_probabilities.to(ahead.dtype) * ahead).sum(dim=1)


def improvement_bound(
    tables: Tables,
    probabilities: Float[Tensor, "S A"],
    new_probabilities: Float[Tensor, "S A"],
    *,
    discount: float | int,
    start: Float[Tensor, " S"],
) -> Float[Tensor, ""]:
    """TRPO's lower bound on policy improvement (improvement bound).

    What the new policy gains at least.

    J(pi') - J(pi) >= L(pi') - C max_s KL(pi || pi')(s)
    with C = 4 A_max gamma / (1 - gamma)^2 and A_max = max_s,a |A(s, a)|

    Theorem 1 of Schulman et al. (2015), in its form with the KL divergence. L is
    `expected_surrogate`; the maximum is over states that are not terminal.
    """
    if not 0 <= discount < 1:
        raise ValueError(
            f"discount must be at least 0 and below 1, but it is {discount}: the bound "
            "divides by (1 - discount)^2."
        )
    promised = expected_surrogate(
        tables, probabilities, new_probabilities, discount=discount, start=start
    )
    ahead = advantages(tables, probabilities, discount=discount)
    kl = kl_exact(
        probabilities.to(ahead.dtype).log(), new_probabilities.to(ahead.dtype).log()
    )
    penalty = 4 * ahead.abs().max() * discount / (1 - discount) ** 2
    return promised - penalty * kl[~tables.terminal].max()


def one_start(tables: Tables, state: int) -> Float[Tensor, " S"]:
    """The start distribution that always begins in this state."""
    start = torch.zeros_like(tables.rewards[:, 0])
    start[state] = 1.0
    return start


def _under_policy(
    tables: Tables, probabilities: Tensor, discount: float | int
) -> tuple[Tensor, Tensor]:
    """r_pi [S] and the matrix I - gamma P_pi [S, S], both without terminal states."""
    _check_discount(discount)
    states, actions = tables.rewards.shape
    if tuple(probabilities.shape) != (states, actions):
        raise ValueError(
            f"probabilities has shape {tuple(probabilities.shape)}, but the world has "
            f"{states} states and {actions} actions."
        )
    probabilities = probabilities.to(tables.rewards.dtype)
    sums = probabilities.sum(dim=1)
    # float32 probabilities sum to 1 up to 1e-7 or so per action.
    if bool((probabilities < 0).any()) or not torch.allclose(
        sums, torch.ones_like(sums), atol=1e-5
    ):
        raise ValueError(
            "probabilities must not be negative and must sum to 1 in every state. Did "
            "you pass logits? Use logits.softmax(-1)."
        )
    alive = ~tables.terminal
    rewards = (probabilities * tables.rewards).sum(dim=1) * alive
    moves = torch.einsum("sa,sat->st", probabilities, tables.transitions)
    if discount == 1 and not _always_ends(moves, tables.terminal):
        raise ValueError(
            "With discount=1 some state never reaches the end under this policy, so "
            "its value is not finite. Use a discount below 1."
        )
    moves = moves * alive[:, None] * alive[None, :]
    matrix = torch.eye(states, dtype=moves.dtype, device=moves.device)
    return rewards, matrix - discount * moves


def _always_ends(moves: Tensor, terminal: Tensor) -> bool:
    """Can every state reach a terminal one? By walking backwards from those."""
    ends = terminal
    for _ in range(len(terminal)):
        grown = ends | ((moves > 0) & ends[None, :]).any(dim=1)
        if bool((grown == ends).all()):
            break
        ends = grown
    return bool(ends.all())


def _check_discount(discount: float | int) -> None:
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must lie between 0 and 1, but it is {discount}.")
