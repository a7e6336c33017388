"""The ``graftwork`` command."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from graftwork import __version__
from graftwork.catalog import Catalog, Entry, PluginWarning, plugins

KIND_NAMES = {"models": "model", "components": "component", "scenes": "scene", "backends": "backend"}
FRAMEWORKS = {"models": "timm", "components": "mmengine", "scenes": "nerfstudio", "backends": "torch"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Words after ``graftwork``; those of the process when None.

    Returns:
        0 on success, 1 when something failed, 2 when the command line was wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:  # `graftwork list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graftwork",
        description="Published vision methods as plugins for timm, MMDetection and nerfstudio.",
    )
    parser.add_argument("--version", action="version", version=f"graftwork {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="what the installed plugins offer")
    command.add_argument("--json", action="store_true", help="machine-readable, with problems")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="paper, weights and code of one method")
    command.add_argument("name", help="name from `graftwork list`")
    command.set_defaults(run=_info)

    command = commands.add_parser("doctor", help="check the installation and say how to mend it")
    command.add_argument("name", nargs="?", help="only this plugin or method, with tracebacks")
    command.set_defaults(run=_doctor)

    command = commands.add_parser("run", help="run a script with every variant registered")
    command.add_argument(
        "-m", dest="module", action="store_true", help="SCRIPT is a module name, as in python -m"
    )
    command.add_argument("script", metavar="SCRIPT")
    command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="passed to the script")
    command.set_defaults(run=_run)

    for name, purpose in (
        ("demo", "each method's main job on data that needs no download"),
        ("bench", "the measured tables: ratios against named peers"),
    ):
        command = commands.add_parser(name, help=purpose)
        command.add_argument("methods", nargs="*", metavar="METHOD", help="plugins to run; all when omitted")
        command.add_argument("--quick", action="store_true", help="seconds that only prove it runs")
        command.add_argument("--out", type=Path, help=f"folder for the report (graftwork-{name})")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", default="cpu")
        if name == "bench":
            command.add_argument(
                "--parts", default="", metavar="A,B", help="parts of the benchmark; all when omitted"
            )
            command.add_argument(
                "--threads", default="1,2", metavar="N,N", help="CPU threads to measure with"
            )
            command.add_argument("--data", type=Path, help="real data ($GRAFTWORK_DATA, else ../shared/data)")
        command.set_defaults(run=_demo if name == "demo" else _bench)

    command = commands.add_parser("new", help="write a plugin that passes its contract, to start from")
    command.add_argument("name", help="lower-case words joined by hyphens, such as fast-mix")
    command.add_argument(
        "--kind", choices=KIND_NAMES.values(), default="model", help="what it offers (model)"
    )
    command.add_argument("--out", type=Path, help="folder to write (graftwork-NAME)")
    command.set_defaults(run=_new)
    return parser


def _quiet_catalog() -> Catalog:
    """Read the catalogue without warnings; the command prints its problems itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return plugins()


def _status(kind: str, name: str, entry: Entry) -> str:
    if name != entry.name:
        return "name collision"
    framework = FRAMEWORKS[kind]
    return "ready" if find_spec(framework) is not None else f"needs {framework}"


def _list(options: argparse.Namespace) -> int:
    from graftwork.report import format_table

    catalog = _quiet_catalog()
    rows = [
        (name, KIND_NAMES[kind], entry.plugin, entry.version, _status(kind, name, entry), _summary(entry))
        for kind, name, entry in catalog
    ]
    if options.json:
        keys = ("name", "kind", "plugin", "version", "status", "summary")
        problems = [
            {
                "plugin": problem.plugin,
                "distribution": problem.distribution,
                "stage": problem.stage,
                "error": f"{type(problem.exception).__name__}: {problem.exception}",
                "hint": problem.hint,
                "fatal": problem.fatal,
            }
            for problem in catalog.problems
        ]
        methods = [dict(zip(keys, row, strict=True)) for row in rows]
        print(json.dumps({"methods": methods, "problems": problems, "blocked": catalog.blocked}, indent=2))
        return 0
    if rows:
        print(format_table(("name", "kind", "plugin", "version", "status"), [row[:5] for row in rows]))
    else:
        print("No plugin is installed. Try `pip install graftwork-spin`.")
    if catalog.blocked:
        print(f"blocked by GRAFTWORK_PLUGINS: {', '.join(catalog.blocked)}", file=sys.stderr)
    for problem in catalog.problems:
        if problem.fatal:
            print(problem, file=sys.stderr)
    return 0


def _summary(entry: Entry) -> str:
    return str(getattr(entry.description, "summary", ""))


def _info(options: argparse.Namespace) -> int:
    catalog = _quiet_catalog()
    hits = catalog.find(options.name)
    if not hits:
        return _unknown(options.name, catalog)
    for kind, name, entry in hits:
        description = entry.description
        facts: list[tuple[str, object]] = [
            ("name", name),
            ("kind", KIND_NAMES[kind]),
            ("summary", _summary(entry)),
            ("plugin", f"{entry.plugin} ({entry.distribution} {entry.version})"),
            ("status", _status(kind, name, entry)),
            ("target", description.target),
        ]
        for attribute in ("base", "accelerator", "kinds", "device", "priority"):
            if getattr(description, attribute, None) is not None:
                value = getattr(description, attribute)
                facts.append((attribute, ", ".join(sorted(value)) if isinstance(value, frozenset) else value))
        paper = getattr(description, "paper", None)
        if paper is not None:
            facts.append(("paper", f"{paper.title} ({paper.year}), {paper.url}"))
        for tag, fields in getattr(description, "weights", {}).items():
            source = fields.get("hf_hub_id") or fields.get("url") or fields.get("file")
            facts.append((f"weights {tag or 'default'}", source or "none published: random initialisation"))
        if kind == "models":
            facts.append(("use", f'import timm, graftwork.timm; timm.create_model("{entry.name}")'))
        width = max(len(label) for label, _ in facts)
        print("\n".join(f"{label.ljust(width)}  {value}" for label, value in facts), end="\n\n")
    return 0


def _unknown(name: str, catalog: Catalog) -> int:
    from difflib import get_close_matches

    known = sorted({entry_name for _, entry_name, _ in catalog} | {plugin.slug for plugin in catalog.plugins})
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else "`graftwork list` shows what is installed."
    print(f"graftwork: nothing is called {name!r}. {hint}", file=sys.stderr)
    return 2


def _doctor(options: argparse.Namespace) -> int:
    from graftwork.doctor import examine

    catalog = _quiet_catalog()
    name: str | None = options.name
    if name is not None:
        slugs = {plugin.slug for plugin in catalog.plugins} | {problem.plugin for problem in catalog.problems}
        slugs |= set(catalog.blocked)
        if name not in slugs:
            hits = catalog.find(name)
            if not hits:
                return _unknown(name, catalog)
            name = hits[0][2].plugin
    return examine(catalog, name)


def _run(options: argparse.Namespace) -> int:
    from graftwork.runner import run_module, run_script

    run = run_module if options.module else run_script
    return run(options.script, options.arguments)


def _demo(options: argparse.Namespace) -> int:
    from graftwork.demo import run_demos

    out = options.out or Path("graftwork-demo")
    return run_demos(options.methods, out, quick=options.quick, seed=options.seed, device=options.device)


def _bench(options: argparse.Namespace) -> int:
    from graftwork.bench import run_benchmarks

    try:
        threads = tuple(int(word) for word in options.threads.split(","))
    except ValueError:
        print(f"graftwork: --threads takes numbers such as 1,2, got {options.threads!r}.", file=sys.stderr)
        return 2
    return run_benchmarks(
        options.methods,
        options.out or Path("graftwork-bench"),
        quick=options.quick,
        seed=options.seed,
        device=options.device,
        threads=threads,
        parts=tuple(filter(None, options.parts.split(","))),
        data=options.data,
    )


def _new(options: argparse.Namespace) -> int:
    from graftwork.new import create

    return create(options.name, options.kind, options.out)
