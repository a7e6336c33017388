"""``python -m graftwork_multiscale plan``: what a schedule is and costs, before anything is trained."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.report import format_table
from graftwork_multiscale.configs import config_names, config_path
from graftwork_multiscale.cost import ImageCost, PlanCost, area_cost, head_warning, padding_fill, plan_cost
from graftwork_multiscale.plan import Schedule, make_schedule
from graftwork_multiscale.scales import effective_base

FEW_POSITIVES = 20
COMPILED_SHAPES = 8  # torch._dynamo.config.cache_size_limit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Words after ``python -m graftwork_multiscale``; those of the process when None.

    Returns:
        0, or 2 when the options make no schedule.
    """
    options = _parser().parse_args(arguments)
    if options.command == "configs":
        for name in config_names():
            print(f"{name}  {config_path(name)}")
        return 0
    try:
        schedule, model, samples, epochs = _read(options)
        print_plan(schedule, model, samples, epochs, options)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"graftwork_multiscale: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m graftwork_multiscale", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("configs", help="names and paths of the shipped configurations")
    plan = commands.add_parser("plan", help="scale table, expected iterations, cost ratios, a picture")
    plan.add_argument("config", nargs="?", help="an mmengine config, or the name of a shipped one")
    plan.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="changes to the config")
    plan.add_argument("--base", type=int, help="base side in pixels")
    plan.add_argument("--min", type=int, help="smallest side")
    plan.add_argument("--max", type=int, help="largest side")
    plan.add_argument("--batch", type=int, default=128, help="images per step and rank at the base (128)")
    plan.add_argument("--scales", type=int, default=5, help="at most so many scales (5)")
    plan.add_argument("--divisor", type=int, default=32)
    plan.add_argument("--mode", default="MSc-VBS", help="SSc-FBS, MSc-FBS, MSc-VBS (default) or MSc-VBSWC")
    plan.add_argument("--curriculum", help="grow_max, prefix_k, window, gaussian, or a JSON mapping")
    plan.add_argument("--last-batch", default="wrap")
    plan.add_argument("--epochs", type=int, help="length of the training")
    plan.add_argument("--samples", type=int, help="size of the data set")
    plan.add_argument("--world-size", type=int, default=1, help="number of ranks (1)")
    plan.add_argument("--seed", type=int, default=0)
    plan.add_argument("--model", help="timm model whose FLOPs are counted")
    plan.add_argument("--out", type=Path, default=Path("multiscale-plan.png"), help="where the picture goes")
    plan.add_argument("--json", action="store_true", help="machine-readable, without a picture")
    return parser


def _read(options: argparse.Namespace) -> tuple[Schedule, Any, int | None, int]:
    """Return the schedule, the detector's configuration if there is one, samples and epochs."""
    if options.config is None:
        if None in (options.base, options.min, options.max):
            raise ValueError("plan needs a CONFIG, or --base, --min and --max.")
        curriculum = options.curriculum
        if curriculum and curriculum.startswith("{"):
            curriculum = json.loads(curriculum)
        schedule = make_schedule(
            base_size=options.base,
            base_batch=options.batch,
            min_size=options.min,
            max_size=options.max,
            max_scales=options.scales,
            divisor=options.divisor,
            mode=options.mode,
            curriculum=curriculum,
            epochs=options.epochs,
            last_batch=options.last_batch,
            seed=options.seed,
        )
        _say_rounding(options.base, options.divisor)
        return schedule, None, options.samples, options.epochs or schedule.epochs or 1
    return _read_config(options)


def _read_config(options: argparse.Namespace) -> tuple[Schedule, Any, int | None, int]:
    from mmengine.config import Config, DictAction

    named = options.config in config_names()
    config = Config.fromfile(config_path(options.config) if named else options.config)
    if options.cfg_options:
        parser = argparse.ArgumentParser()
        parser.add_argument("--cfg-options", nargs="+", action=DictAction)
        config.merge_from_dict(parser.parse_args(["--cfg-options", *options.cfg_options]).cfg_options)
    loader = config.train_dataloader
    sampler = dict(loader.get("batch_sampler") or {})
    if not str(sampler.pop("type", "")).endswith("MultiScaleBatchSampler"):
        raise ValueError(f"{options.config}: train_dataloader has no graftwork.MultiScaleBatchSampler.")
    for name in ("aspect_groups", "shuffle", "rank", "world_size"):
        sampler.pop(name, None)
    sampler.setdefault("seed", (config.get("randomness") or {}).get("seed") or options.seed)
    schedule = make_schedule(base_batch=loader.batch_size, **sampler)
    _say_rounding(sampler["base_size"], sampler.get("divisor", 32))
    samples = options.samples or _dataset_size(loader.dataset)
    epochs = options.epochs or schedule.epochs or config.get("train_cfg", {}).get("max_epochs") or 1
    return schedule, config.get("model"), samples, epochs


def _dataset_size(description: Any) -> int | None:
    inner = description.get("dataset", description)
    if not Path(inner.get("data_root", ""), inner.get("ann_file", "")).is_file():
        return None
    from mmdet.utils import register_all_modules
    from mmengine.registry import DATASETS

    register_all_modules(init_default_scope=True)
    dataset = DATASETS.build(description)
    dataset.full_init()
    return len(dataset)


def _say_rounding(base: Any, divisor: int) -> None:
    height, width = effective_base(base, divisor)
    if (height, width) != ((base, base) if isinstance(base, int) else tuple(base)):
        print(f"the base {base} is rounded to {height}x{width}; its budget is that of the size as given\n")


def conventions(model: Any, timm_name: str | None) -> dict[str, ImageCost]:
    """Return the ways to count the cost of an image, besides updates.

    Args:
        model: Configuration of a two-stage detector of MMDetection, or None.
        timm_name: A timm model, or None.
    """
    found: dict[str, ImageCost] = {"pixels": area_cost}
    counter = "counted by torch.utils.flop_counter"
    if timm_name:
        from graftwork_multiscale.flops import model_flops

        found[f"forward FLOPs of {timm_name}, {counter}"] = model_flops(lambda: _timm_model(timm_name))
    if model is not None and "roi_head" in model:
        from graftwork_multiscale.flops import DetectorFlops

        try:
            parts = DetectorFlops(model)
        except ModuleNotFoundError as error:
            print(
                f"the model's FLOPs are not counted: {error}. `pip install graftwork-mmcv-ops` serves "
                "mmdet.\n"
            )
            return found
        found[f"backbone and pyramid, {counter}"] = parts.features
        for positives in (FEW_POSITIVES, parts.most_positives):
            label = f"whole model, {parts.rois} regions per image of which {positives} get masks, {counter}"
            found[label] = parts.whole(positives)
    return found


def _timm_model(name: str) -> Any:
    import timm

    try:
        return timm.create_model(name, dynamic_img_size=True)  # transformers that take any size
    except TypeError:
        return timm.create_model(name)


def print_plan(
    schedule: Schedule, model: Any, samples: int | None, epochs: int, options: argparse.Namespace
) -> None:
    """Print table, iterations, cost under each convention and warnings; draw the schedule.

    Args:
        schedule: What to describe.
        model: See :func:`conventions`.
        samples: Size of the data set, if known.
        epochs: Length of the training.
        options: Of the command line.
    """
    per_rank = math.ceil(samples / options.world_size) if samples else None
    costs = {
        label: plan_cost(schedule, image_cost=cost, epochs=epochs, samples=per_rank)
        for label, cost in conventions(model, options.model).items()
    }
    first = costs["pixels"]
    last_label, last = list(costs.items())[-1]
    rows = _ratio_rows(costs)
    if options.json:
        print(json.dumps(_as_mapping(schedule, first, rows, epochs, per_rank), indent=2))
        return
    print(f"{schedule.mode}, {epochs} epochs; one step of one rank")
    table = [
        (f"{scale.height}x{scale.width}", scale.batch, 100 * pixels, 100 * share, cost)
        for scale, pixels, share, cost in zip(
            schedule.scales, first.pixel_shares, first.image_shares, last.step_costs, strict=True
        )
    ]
    print(format_table(("scale", "images", "% of pixel budget", "% of images seen", "cost of a step"), table))
    print(f"cost of a step: times a base step, {last_label}\n")
    print(format_table(("compared with one scale, computed", "ratio", "saved %"), rows), end="\n\n")
    for note in _notes(schedule, first, last, per_rank, epochs, options.world_size):
        print(f"- {note}")
    _draw(schedule, per_rank, epochs, options.out)


def _ratio_rows(costs: Mapping[str, PlanCost]) -> list[tuple[str, float, float]]:
    ratios = {"optimiser updates, every step counted alike": next(iter(costs.values())).updates_ratio}
    ratios |= {label: cost.flops_ratio for label, cost in costs.items()}
    return [(label, round(ratio, 4), round(100 * (1 - ratio), 1)) for label, ratio in ratios.items()]


def _as_mapping(
    schedule: Schedule, cost: PlanCost, rows: Sequence[Sequence[Any]], epochs: int, per_rank: int | None
) -> dict[str, Any]:
    return {
        "mode": schedule.mode,
        "scales": [list(scale) for scale in schedule.scales],
        "epochs": epochs,
        "expected_steps_per_epoch": cost.steps,
        "single_scale_steps_per_epoch": cost.single_scale_steps,
        "total_steps": schedule.total_steps(epochs, per_rank) if per_rank else None,
        "image_shares": list(cost.image_shares),
        "ratios": {label: ratio for label, ratio, _ in rows},
    }


def _notes(
    schedule: Schedule, cost: PlanCost, whole: PlanCost, per_rank: int | None, epochs: int, ranks: int
) -> list[str]:
    smallest, base = schedule.scales[0], schedule.scales[schedule.base]
    notes = []
    if per_rank and cost.steps is not None and cost.single_scale_steps is not None:
        notes.append(
            f"{cost.steps:.1f} iterations per epoch are expected ({math.ceil(cost.single_scale_steps)} "
            "with one "
            f"scale); exactly {schedule.total_steps(epochs, per_rank)} in {epochs} epochs with seed "
            f"{schedule.seed}."
        )
    else:
        notes.append("pass --samples, the size of the data set, for the number of iterations.")
    notes.append(
        f"the mean batch is {cost.mean_batch:.1f} per rank, {cost.mean_batch * ranks:.0f} in all. The "
        "learning rate "
        "is not rescaled; schedules by epoch keep their meaning, those by iteration need the number above."
    )
    if cost.flops_ratio > 0.95:
        notes.append(
            f"next to nothing is saved: {smallest.height} pixels are {smallest.height / base.height:.2f} "
            "of the base, "
            "and savings come from scales well below it (about half)."
        )
    low, high = min(cost.pixel_shares), max(cost.pixel_shares)
    notes.append(
        f"memory by pixels: {100 * low:.0f} to {100 * high:.0f} % of the budget of "
        f"{base.height * base.width} x "
        f"{schedule.base_batch} pixels; {'flat' if low > 0.95 else 'whole images do not fill it'}."
    )
    warning = head_warning(whole, schedule.scales, schedule.base)
    if warning is not None:
        notes.append(f"WARNING: {warning}")
    demand = smallest.batch / base.batch
    if demand > 1:
        notes.append(
            f"the loader must deliver {demand:.1f} times the images of a base step at {smallest.height} "
            "pixels: "
            "choose the number of workers for that scale."
        )
    if len(schedule.scales) >= COMPILED_SHAPES:
        notes.append(
            f"torch.compile makes {len(schedule.scales)} graphs and one for testing; raise "
            f"torch._dynamo.config.cache_size_limit above {COMPILED_SHAPES}."
        )
    fill = padding_fill(schedule.scales, [4 / 3])
    notes.append(f"if 4:3 images keep their ratio, they fill {100 * fill:.0f} % of the padded pixels.")
    return notes


def _draw(schedule: Schedule, per_rank: int | None, epochs: int, out: Path) -> None:
    try:
        from graftwork_multiscale.picture import draw_schedule

        figure = draw_schedule(schedule, per_rank or 60 * schedule.base_batch, epochs)
    except ModuleNotFoundError as error:
        print(f"\nno picture: {error}; `pip install matplotlib`")
        return
    figure.savefig(out, dpi=120)
    print(f"\npicture: {out.resolve()}")
