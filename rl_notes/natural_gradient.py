"""Natural gradient: Fisher-vector products, conjugate gradient, line search.

How far a step may go: the Fisher matrix without the matrix, and who solves it.
Parameters are one flat vector of P numbers here: those that require a gradient, in the
order of `policy.parameters()`. Weights that two layers share are in it once.
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rl_notes.policies import states
from rl_notes.trajectories import Trajectories

Product = Callable[[Tensor], Tensor]
ROWS_AT_A_TIME = 32


def conjugate_gradient(
    product: Product, b: Float[Tensor, " P"], *, iterations: int = 10
) -> tuple[Float[Tensor, " P"], float]:
    """Conjugate gradient: solve A x = b from products with A (conjugate gradient).

    Minimises 1/2 x'Ax - b'x, starting from x = 0, along directions that do not undo
    each other: p_i'A p_j = 0. For P numbers it is exact after P iterations, and close
    much earlier if A has few different eigenvalues (Hestenes and Stiefel 1952).

    Args:
        product: x -> A x, with A symmetric and positive.
        b: The right-hand side. It is not changed.
        iterations: Products at most. Fewer are made once the relative residual is
            below 1e-10, or as small as the number format can hold.

    Returns:
        x, and its relative residual |b - A x| / |b|: 0 if x is exact, 1 at x = 0. On
        the way it may rise, even above 1, while the quadratic falls with every step.
    """
    if not bool(torch.isfinite(b).all()):
        raise ValueError("The right-hand side b holds a value that is not finite.")
    solution = torch.zeros_like(b)
    residual = direction = b  # never changed in place: they share their memory with b
    squared = residual @ residual
    small = max(1e-10, torch.finfo(b.dtype).eps) * float(b.norm())
    for _ in range(iterations):
        if float(residual.norm()) <= small:
            break
        image = product(direction)
        step = squared / _curvature(direction, image)
        solution = solution + step * direction
        residual = residual - step * image
        before, squared = squared, residual @ residual
        direction = residual + (squared / before) * direction
    length = float(b.norm())
    return solution, float(residual.norm()) / length if length > 0 else 0.0


def fisher_vector_product(
    policy: nn.Module,
    trajectories: Trajectories,
    *,
    damping: float | int = 0.0,
    rows: Int[Tensor, " M"] | None = None,
) -> Product:
    """Fisher-vector product v -> (F + damping I) v, for the policy as it is (fisher).

    F = mean over steps of sum_a pi(a | s_t) grad log pi(a | s_t) grad log pi(a | s_t)'

    It is the matrix of second derivatives of the mean of KL(old || new), and of
    KL(new || old) as well, where new = old: KL = 1/2 s'F s + ... for a step s. The mean
    is over all steps of the batch, a long row weighing more than a short one, as in
    `UpdateStats.kl_mean`. The sum over the actions is exact; what was chosen, earned,
    or stored beyond the mask plays no part.

    With J the derivative of the logits, F = mean of J'(diag(p) - p p')J, and so v'F v
    is never negative. The policy is run once, here, on few rows of similar length at a
    time; a product costs about as much as one more forward and backward pass. Use it
    before the parameters change: it belongs to those of now.

    Args:
        policy: Any `policy(observations) -> logits`.
        trajectories: The steps to take the mean over.
        damping: Added to the diagonal. F has zeros among its eigenvalues whenever some
            change of the parameters leaves the policy as it is.
        rows: Only these rows, to save time: another, noisier F.
    """
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping must not be negative, but it is {damping}.")
    if rows is not None:
        trajectories = trajectories.select(rows)
    seen, mask, lengths = states(trajectories), trajectories.mask, trajectories.lengths
    steps = int(mask.sum())
    if steps == 0:
        raise ValueError("The mask selects no step at all, so there is no mean.")
    weights = trainable(policy)
    # Short rows are not made to pay for the padding that the longest one needs.
    order = lengths.argsort()[int((lengths == 0).sum()) :]
    parts = []
    for part in torch.split(order, ROWS_AT_A_TIME):
        longest = int(lengths[part].max())
        shorter = seen[part, :longest], mask[part, :longest]
        parts.append(_summed_product(policy, *shorter, weights))

    def product(v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        image = torch.zeros_like(v)
        for part in parts:
            image = image + part(v)
        return image / steps + damping * v

    return product


def _summed_product(
    policy: nn.Module,
    seen: Shaped[Tensor, "N T ..."],
    mask: Bool[Tensor, "N T"],
    weights: Mapping[str, Tensor],
) -> Product:
    """The function v -> sum over steps of J'(diag(p) - p p')J v.

    J'u is linear in u. Its derivative with respect to u, times v, is therefore J v,
    whatever u is: two backward passes in place of a forward one.
    """
    # Fused attention kernels cannot be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        logits = policy(seen)[mask]  # [steps, A]
    probabilities = logits.detach().softmax(-1)
    u = torch.zeros_like(logits, requires_grad=True)
    pulled = torch.autograd.grad(
        logits, list(weights.values()), u, create_graph=True, allow_unused=True
    )  # J'u
    # Weights that the logits do not depend on: their part of J is zero.
    used = {
        name: part
        for name, part in zip(weights, pulled, strict=True)
        if part is not None
    }

    def product(v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        parts = split(v, weights)
        (pushed,) = torch.autograd.grad(
            list(used.values()), u, [parts[name] for name in used], retain_graph=True
        )  # J v
        mean = (probabilities * pushed).sum(-1, keepdim=True)
        return flat_gradient(
            logits, weights, probabilities * (pushed - mean), keep=True
        )

    return product


def natural_step(
    product: Product,
    ascent: Float[Tensor, " P"],
    *,
    max_kl: float | int,
    iterations: int = 10,
) -> tuple[Float[Tensor, " P"], float]:
    """Natural gradient step, as long as the trust region allows (natural step).

    The step that gains most among those of one length in KL.

    s = sqrt(2 max_kl / x'Ax) x, with A x = g and A = F + damping I, so that
    1/2 s'A s = max_kl (Kakade 2001; Schulman et al. 2015, appendix C).

    The damping is part of that length: where it outweighs the Fisher matrix it uses up
    the radius, and the policy moves less than `max_kl`. A gradient of zero has no
    direction: the step is zero.

    Returns:
        s, and the relative residual that `conjugate_gradient` has left in x.
    """
    x, residual = conjugate_gradient(product, ascent, iterations=iterations)
    if not bool(x.any()):
        return x, residual
    return (2 * max_kl / _curvature(x, product(x))).sqrt() * x, residual


def line_search(
    acceptable: Callable[[float], bool], *, backtracks: int = 10, shrink: float = 0.8
) -> tuple[float, int]:
    """Backtracking line search: shorten a step until it is acceptable (line search).

    The first of 1, shrink, shrink^2, ..., shrink^backtracks that is acceptable.

    Returns:
        The factor, or 0 if none was acceptable: then nothing may change. And how many
        times the step was shortened.
    """
    for backtrack in range(backtracks + 1):
        scale = shrink**backtrack
        if acceptable(scale):
            return scale, backtrack
    return 0.0, backtracks


def trainable(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; shared ones once."""
    found = {
        name: weight
        for name, weight in policy.named_parameters()
        if weight.requires_grad
    }
    if not found:
        raise ValueError(
            "No parameter of the policy requires a gradient, so there is nothing to "
            "update."
        )
    return found


def flat_gradient(
    output: Tensor,
    weights: Mapping[str, Tensor],
    vector: Tensor | None = None,
    *,
    keep: bool = False,
) -> Float[Tensor, " P"]:
    """The gradient of a number, or J'vector of several, as one flat vector.

    Zero for weights that the output does not depend on. `keep` the graph to use it
    again.
    """
    parts = torch.autograd.grad(
        output,
        list(weights.values()),
        vector,
        retain_graph=keep,
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([part.reshape(-1) for part in parts])


def split(
    vector: Float[Tensor, " P"], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The inverse of `parameters_to_vector`: tensors named and shaped as weights."""
    sizes = [weight.numel() for weight in weights.values()]
    parts = torch.split(vector, sizes)
    return {
        name: part.view_as(weight).to(weight.dtype)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


@torch.no_grad()
def move(weights: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    """Set the weights, in place: whoever shares their memory sees the change."""
    for name, weight in weights.items():
        weight.copy_(there[name])


def _curvature(x: Tensor, image: Tensor) -> Tensor:
    """x'Ax, given x and A x. Raise unless it is a positive number."""
    curvature = x @ image
    if not 0 < float(curvature) < math.inf:
        raise ValueError(
            f"The product A x of a direction x has x'A x = {float(curvature):.3g}, but "
            "A must be symmetric and positive. For a Fisher matrix, raise the damping; "
            "if it is not a number, look for infinite logits."
        )
    return curvature
