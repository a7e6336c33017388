"""What a pooled model costs: multiply-accumulates counted from its layers, and schedules for a budget.

Counted are convolutions, linear layers and the two products of attention; norms, activations and sums are
not. The cost of the clustering is counted beside them and included in every budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from timm.models import VisionTransformer
from torch import nn

from graftwork_token_pooling.schedule import Schedule, ScheduleError, ScheduleLike, parse, usual_blocks

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)(x|G)")


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one image.

    Args:
        network: Of the network itself.
        pooling: Of the pooling between its blocks.
    """

    network: int
    pooling: int

    @property
    def gmacs(self) -> float:
        """Both together, in units of 10^9."""
        return (self.network + self.pooling) / 1e9


@dataclass(frozen=True)
class Shape:
    """The sizes of a vision transformer that decide its cost.

    Args:
        depth: Blocks.
        tokens: Patch tokens.
        prefix: Class, distillation and register tokens.
        width: Channels of a token.
        attention: Channels of queries, keys and values.
        head: Channels of one attention head.
        token_linear: Weights of the linear layers that a token meets in one block, before the MLP and in it.
        fixed: Multiply-accumulates of the patch embedding and the classifier.
    """

    depth: int
    tokens: int
    prefix: int
    width: int
    attention: int
    head: int
    token_linear: tuple[int, int]
    fixed: int

    @classmethod
    def of(cls, model: VisionTransformer) -> Shape:
        """Read the sizes from a model; an attention-pooling head is not counted."""
        block = model.blocks[0]
        tokens = model.patch_embed.num_patches
        mlp = _linear_weights(block.mlp)
        heads = [layer for name in ("head", "head_dist") if (layer := getattr(model, name, None)) is not None]
        stem = sum(m.weight.numel() for m in model.patch_embed.modules() if isinstance(m, nn.Conv2d))
        return cls(
            depth=len(model.blocks),
            tokens=tokens,
            prefix=model.num_prefix_tokens,
            width=model.embed_dim,
            attention=block.attn.attn_dim,
            head=block.attn.head_dim,
            token_linear=(_linear_weights(block) - mlp, mlp),
            fixed=stem * tokens + sum(map(_linear_weights, heads)),
        )

    def cost(
        self,
        schedule: Schedule = Schedule(),  # noqa: B008  frozen
        method: str = "wk_medoids",
        iterations: int = 5,
        position: str = "post_block",
    ) -> Cost:
        """Count the multiply-accumulates of one image.

        Args:
            schedule: Where tokens are pooled; nowhere by default.
            method: How, which decides the cost of pooling.
            iterations: Rounds of the clustering.
            position: ``"post_block"``, or ``"pre_mlp"`` between the attention and the MLP of the block.

        Returns:
            Cost of the network and of the pooling.
        """
        counts = schedule.within(self.depth).counts(self.tokens)
        left, network, pooling = self.tokens, self.fixed, 0
        for block in range(1, self.depth + 1):
            n = left + self.prefix
            k = min(left, counts.get(block, left))
            behind = k + self.prefix if position == "pre_mlp" else n
            network += n * self.token_linear[0] + 2 * n * n * self.attention + behind * self.token_linear[1]
            if k < left:
                pooling += pooling_macs(method, left, k, self.width, self.head, iterations)
            left = k
        return Cost(network, pooling)


def pooling_macs(method: str, tokens: int, k: int, width: int, head: int, iterations: int) -> int:
    """Count what pooling `tokens` to `k` costs: distances and look-ups, not the averages.

    Args:
        method: One of the pooling methods.
        tokens: N.
        k: K.
        width: M.
        head: Channels of one attention head, on which ToMe compares tokens.
        iterations: T.

    Returns:
        N^2 M + T (N K + N^2) for K-Medoids, T N K M for K-Means, the bipartite similarities for ToMe, else 0.
    """
    if method in ("wk_medoids", "k_medoids"):
        return tokens * tokens * width + iterations * (tokens * k + tokens * tokens)
    if method in ("wk_means", "k_means"):
        return iterations * tokens * k * width
    total = 0
    while method == "tome" and tokens > k:
        total += ((tokens + 1) // 2) * (tokens // 2) * head
        tokens = max(k, tokens - tokens // 2)
    return total


def resolve(
    schedule: ScheduleLike,
    model: VisionTransformer,
    method: str = "wk_medoids",
    iterations: int = 5,
    position: str = "post_block",
) -> Schedule:
    """Read any way of writing a schedule, budgets included.

    Args:
        schedule: As in :func:`graftwork_token_pooling.schedule.parse`, or a budget: ``"0.58x"`` of the
            unpooled model's multiply-accumulates, ``"2.7G"`` of them.
        model: Whose depth, tokens and cost the schedule refers to.
        method: How tokens are pooled.
        iterations: Rounds of the clustering.
        position: Where in a block.

    Returns:
        The schedule; for a budget the ratio schedule with the most tokens, in steps of 0.001, whose cost,
        clustering included, stays within it.

    Raises:
        ScheduleError: It cannot be read, does not fit the model, or cannot be met.
    """
    found = _BUDGET.fullmatch(schedule) if isinstance(schedule, str) else None
    if found is None:
        return parse(schedule, len(model.blocks), model.patch_embed.num_patches)
    shape = Shape.of(model)
    base = shape.cost().gmacs
    budget = float(found[1]) * (base if found[2] == "x" else 1.0)

    def cost(candidate: Schedule) -> float:
        return shape.cost(candidate, method, iterations, position).gmacs

    return within_budget(
        budget, lambda step: Schedule.ratio(Fraction(step, 1000), usual_blocks(shape.depth)), 1000, cost
    )


def within_budget(
    gmacs: float, candidate: Callable[[int], Schedule], steps: int, cost: Callable[[Schedule], float]
) -> Schedule:
    """Return the candidate with the highest number, 1 to `steps`, whose cost stays within a budget.

    Args:
        gmacs: The budget.
        candidate: Schedule by number; a higher number costs at least as much.
        steps: Highest number.
        cost: GMACs of a schedule.

    Raises:
        ScheduleError: Even the first candidate exceeds the budget.
    """
    if cost(candidate(steps)) <= gmacs:
        return candidate(steps)
    if cost(candidate(1)) > gmacs:
        raise ScheduleError(
            f"a budget of {gmacs:.4g} GMACs cannot be met: with a single patch token per image left at each "
            f"site the model still costs {cost(candidate(1)):.4g}; pool earlier or use a smaller model."
        )
    low, high = 1, steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(candidate(middle)) <= gmacs else (low, middle - 1)
    return candidate(low)


def _linear_weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
