"""Training with mmengine: the hook chooses the levels, the loop stays the framework's."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.training import step_levels


class LCSHook(Hook):  # type: ignore[misc]
    """Visits the compression levels of every training step and adds the regulariser.

    The model, or a part of it such as its backbone, must be a network made by
    :func:`graftwork_subspaces.wrap`. All levels of a step but the last run forward and backward here, the
    last one in the framework's own step; so every model, optimiser wrapper, precision and accumulation of
    mmengine works unchanged.

    Example:
        >>> custom_hooks = [dict(type="graftwork.LCSHook", seed=0)]

    Args:
        seed: Decides the levels, the same on every rank.
        per_rank: Let every rank draw its own levels.
        eval_alpha: Position at which validation and test run; the accurate end when None.
    """

    priority = "NORMAL"

    def __init__(self, seed: int = 0, per_rank: bool = False, eval_alpha: float | None = None) -> None:
        self.seed, self.per_rank, self.eval_alpha = seed, per_rank, eval_alpha
        self._entered = ExitStack()

    def before_run(self, runner: Any) -> None:
        """Look for the network, so that a wrong configuration fails before training."""
        network_of(runner.model)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Run all levels but the last, add the regulariser's gradient, and enter the last level."""
        net, wrapper = network_of(runner.model), runner.optim_wrapper
        counts = getattr(wrapper, "_accumulative_counts", 1)
        total = max(1, -(-runner.max_iters // counts))
        rank = get_rank() if self.per_rank else 0
        levels = step_levels(net, min(runner.iter // counts, total - 1), total, seed=self.seed, rank=rank)
        with ExitStack() as quiet:
            if is_model_wrapper(runner.model) and hasattr(runner.model, "no_sync"):
                quiet.enter_context(runner.model.no_sync())
            for level in levels[:-1]:
                with net.context.enter(level):
                    _add_gradient(wrapper, _loss(runner.model, wrapper, data_batch))
            penalty = net.regulariser()
            if penalty is not None:
                _add_gradient(wrapper, penalty)
        self._entered.enter_context(net.context.enter(levels[-1]))
        runner.message_hub.update_scalar("train/lcs_alpha", levels[-1].alpha)
        runner.message_hub.update_scalar(f"train/lcs_{net.settings.map.value_name}", levels[-1].value)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Leave the level."""
        self._entered.close()

    def before_val_epoch(self, runner: Any) -> None:
        """Enter the level of validation."""
        self._evaluate(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Leave it."""
        self._entered.close()

    def before_test_epoch(self, runner: Any) -> None:
        """Enter the level of the test."""
        self._evaluate(runner)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Leave it."""
        self._entered.close()

    def after_run(self, runner: Any) -> None:
        """Leave a level that an interrupted step left open."""
        self._entered.close()

    def _evaluate(self, runner: Any) -> None:
        if self.eval_alpha is not None:
            net = network_of(runner.model)
            training, net.training = net.training, False  # the loop calls eval() only after this hook
            self._entered.enter_context(net.at(self.eval_alpha))
            net.training = training


def network_of(model: nn.Module) -> CompressibleNet:
    """Return the compressible network inside a model.

    Raises:
        ValueError: There is none, or more than one.
    """
    found = [module for module in model.modules() if isinstance(module, CompressibleNet)]
    if len(found) != 1:
        raise ValueError(
            f"LCSHook needs exactly one network made by graftwork_subspaces.wrap in {type(model).__name__}, "
            "found "
            f"{len(found)}. Wrap the backbone where the model is built, before the optimiser is."
        )
    return found[0]


def _loss(model: Any, wrapper: Any, data_batch: Any) -> Any:
    inner = model.module if is_model_wrapper(model) else model
    with wrapper.optim_context(inner):
        # preprocessors may write into the batch, and the framework's own step takes it again
        data = inner.data_preprocessor(copy.deepcopy(data_batch), True)
        if isinstance(data, dict):
            losses = model(**data, mode="loss")
        elif isinstance(data, (list, tuple)):
            losses = model(*data, mode="loss")
        else:
            losses = model(data, mode="loss")
    return inner.parse_losses(losses)[0]


def _add_gradient(wrapper: Any, loss: Any) -> None:
    """Add a loss's gradient without counting it as an iteration of the optimiser wrapper."""
    loss = wrapper.scale_loss(loss)
    scaler = getattr(wrapper, "loss_scaler", None)
    (loss if scaler is None else scaler.scale(loss)).backward()
