"""``graftwork doctor``: what is installed, what is wrong, and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal, get_args

from graftwork.catalog import Catalog, LoadError, Plugin, PluginWarning, load
from graftwork.spec import ModelVariant, RenderKind

Level = Literal["ok", "note", "error"]
_MARKS: dict[Level, str] = {"ok": "ok   ", "note": "note ", "error": "ERROR"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        level: ``note`` is worth knowing, ``error`` makes the exit code 1.
        text: What was found.
        fix: What to do about it.
        details: Traceback, shown when one plugin is asked for.
    """

    level: Level
    text: str
    fix: str = ""
    details: str = ""


def examine(catalog: Catalog, plugin: str | None = None) -> int:
    """Print findings and return the exit code.

    Args:
        catalog: What the installed plugins offer.
        plugin: Only this plugin, with tracebacks; everything when None.

    Returns:
        1 if any finding is an error, else 0.
    """
    sections: list[tuple[str, Iterator[Finding]]] = []
    if plugin is None:
        sections += [
            ("environment", _environment()),
            ("frameworks", _frameworks()),
            ("autoload", _autoload()),
        ]
    sections += [("plugins", _plugins(catalog, plugin)), ("timm", _timm(catalog, plugin))]
    sections.append(("mmengine", _mmengine(catalog, plugin)))
    sections += [("render backends", _backends(catalog, plugin)), ("code", _code(catalog, plugin))]
    errors = 0
    for title, findings in sections:
        lines = list(findings)
        if not lines:
            continue
        print(f"\n{title}")
        for finding in lines:
            print(f"  {_MARKS[finding.level]} {finding.text}")
            if finding.fix:
                print(f"        {finding.fix}")
            if finding.details and plugin is not None:
                print("\n".join(f"        {line}" for line in finding.details.rstrip().splitlines()))
            errors += finding.level == "error"
    print(f"\n{errors} error{'s' if errors != 1 else ''}" if errors else "\nall is well")
    return 1 if errors else 0


def _environment() -> Iterator[Finding]:
    from graftwork import __version__

    yield Finding("ok", f"graftwork {__version__}, Python {platform.python_version()}, {platform.platform()}")
    if find_spec("torch") is None:
        yield Finding("note", "torch is not installed", "Plugins bring it: `pip install graftwork-spin`.")
    else:
        import torch

        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield Finding("ok", f"torch {torch.__version__}, {build}, {torch.get_num_threads()} threads")
        if torch.cuda.is_available():
            names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
            yield Finding("ok", f"CUDA devices: {torch.cuda.device_count()} ({', '.join(sorted(names))})")
        else:
            yield Finding("note", "no CUDA device: everything runs on the CPU")
    for compiler, purpose in (("c++", "native CPU code"), ("nvcc", "native CUDA code")):
        path = shutil.which(os.environ.get("CXX", compiler) if compiler == "c++" else compiler)
        if path is None and compiler == "c++":
            path = shutil.which("g++") or shutil.which("clang++")
        if path is None:
            yield Finding(
                "note", f"no {compiler}: {purpose} cannot be built here, the PyTorch path is used instead"
            )
        else:
            yield Finding("ok", f"{compiler}: {_first_line(path)}")


def _first_line(path: str) -> str:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run: {error}"
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    release = [line for line in lines if "release" in line]
    return (release or lines or [path])[0].strip()


def _frameworks() -> Iterator[Finding]:
    """Compare installed frameworks with the ranges that the core's extras state, their only home."""
    from packaging.requirements import Requirement

    for text in metadata.requires("graftwork") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.name not in ("timm", "mmengine"):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(
                "note",
                f"{requirement.name} is not installed",
                f"`pip install 'graftwork[{requirement.name}]'`",
            )
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            yield Finding("ok", f"{requirement.name} {installed} (supported: {requirement.specifier})")
        else:
            yield Finding(
                "error",
                f"{requirement.name} {installed} is outside the supported range {requirement.specifier}",
                f"`pip install '{requirement.name}{requirement.specifier}'`",
            )
    yield from _nerfstudio()


def _nerfstudio() -> Iterator[Finding]:
    try:
        version = metadata.version("nerfstudio")
    except metadata.PackageNotFoundError:
        yield Finding("note", "nerfstudio is not installed", "`pip install --no-deps nerfstudio==1.1.5`")
        return
    yield Finding("ok", f"nerfstudio {version}")
    pins = [text for text in metadata.requires("nerfstudio") or () if text.startswith("timm==")]
    try:
        timm_version = metadata.version("timm")
    except metadata.PackageNotFoundError:
        return
    if pins and f"timm=={timm_version}" not in pins:
        yield Finding(
            "note",
            f"`pip check` complains that nerfstudio wants {pins[0]}: harmless, nerfstudio never imports timm",
        )


def _autoload() -> Iterator[Finding]:
    if find_spec("graftwork_autoload") is None:
        yield Finding("ok", "not installed: write `import graftwork.timm`, or use `graftwork run SCRIPT`")
    elif os.environ.get("GRAFTWORK_AUTOLOAD", "1") == "0":
        yield Finding("note", "installed, switched off by GRAFTWORK_AUTOLOAD=0")
    else:
        active = "graftwork_autoload" in sys.modules
        fix = "" if active else "Python was started with -S or -I, or the .pth file is missing; reinstall it."
        yield Finding("ok" if active else "note", f"installed, {'active' if active else 'not active'}", fix)


def _plugins(catalog: Catalog, slug: str | None) -> Iterator[Finding]:
    for plugin in catalog.plugins:
        if slug in (None, plugin.slug):
            yield Finding(
                "ok", f"{_title(plugin)}: {_count(catalog, plugin)}, described in {plugin.seconds:.2f} s"
            )
    for name in catalog.blocked:
        if slug in (None, name):
            yield Finding("note", f"{name} is blocked by GRAFTWORK_PLUGINS", "Unset or change the variable.")
    for problem in catalog.problems:
        if slug in (None, problem.plugin):
            text = (
                f"{problem.plugin} ({problem.distribution}), {problem.stage}: {_describe(problem.exception)}"
            )
            yield Finding("error" if problem.fatal else "note", text, problem.hint, problem.details())


def _title(plugin: Plugin) -> str:
    return f"{plugin.slug} ({plugin.distribution} {plugin.version})".replace(" )", ")")


def _count(catalog: Catalog, plugin: Plugin) -> str:
    counts: dict[str, int] = {}
    for kind, _, entry in catalog:
        if entry.plugin == plugin.slug:
            counts[kind] = counts.get(kind, 0) + 1
    return (
        ", ".join(f"{count} {kind if count != 1 else kind[:-1]}" for kind, count in counts.items())
        or "nothing"
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _timm(catalog: Catalog, slug: str | None) -> Iterator[Finding]:
    if find_spec("timm") is None or not catalog.models:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PluginWarning)
            import graftwork.timm as adapter
    except Exception as error:
        yield Finding(
            "error",
            f"the adapter cannot be imported: {_describe(error)}",
            "`python -c 'import timm'` shows more.",
        )
        return
    if slug is None:
        yield Finding("ok", f"{len(adapter.registered())} variants registered")
    for problem in adapter.problems():
        if slug in (None, problem.plugin):
            yield Finding("error", f"{problem.plugin}: {_describe(problem.exception)}", problem.hint)


def _mmengine(catalog: Catalog, slug: str | None) -> Iterator[Finding]:
    if find_spec("mmengine") is None or not catalog.components:
        return
    try:
        import graftwork.mmengine as adapter
    except Exception as error:
        text = f"the adapter cannot be imported: {_describe(error)}"
        yield Finding("error", text, "`python -c 'import mmengine'` shows more.")
        return
    for level, text, fix in adapter.findings(catalog, slug):
        yield Finding(level, text, fix)


def _code(catalog: Catalog, slug: str | None) -> Iterator[Finding]:
    """Import the code behind each method of a framework that is here, then ask about native libraries."""
    modules = {"models": "timm", "components": "mmengine", "scenes": "nerfstudio", "backends": "torch"}
    failed: set[str] = set()
    targets: list[str] = []
    for kind, name, entry in catalog:
        if slug not in (None, entry.plugin) or find_spec(modules[kind]) is None:
            continue
        module = entry.description.target.partition(":")[0]
        if module in failed:
            continue
        try:
            target = load(entry.description)
        except LoadError as error:
            failed.add(module)
            cause = error.__cause__ or error
            yield Finding(
                "error", f"{name}: {_describe(cause)}", f"Reinstall {entry.distribution}.", str(error)
            )
            continue
        targets.append(entry.description.target)
        if isinstance(entry.description, ModelVariant) and not callable(target):
            yield Finding("error", f"{name}: target {entry.description.target!r} is no function")
    if targets:
        yield Finding("ok", f"the code of {len(targets)} method{'s' if len(targets) > 1 else ''} imports")
    yield from _native({target.partition(".")[0] for target in targets})


def _native(packages: set[str]) -> Iterator[Finding]:
    """Say what loading each native library would do that the imported code describes; compile nothing."""
    from graftwork import extension

    found: dict[str, extension.Library] = {}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in packages:
            for value in list(vars(module).values()):
                if isinstance(value, extension.Library):
                    found[f"{value.package}/{value.name}"] = value
    for name, library in found.items():
        status = extension.status(library)
        if status.state == "unavailable":
            yield Finding(
                "note", f"native {name}: {status.detail}", f"{status.fix} PyTorch serves meanwhile."
            )
        else:
            yield Finding("ok", f"native {name}: {status}")


def _backends(catalog: Catalog, slug: str | None) -> Iterator[Finding]:
    """Say which render backend "auto" would take on each device that is here, and why not the others."""
    if not catalog.backends or find_spec("torch") is None:
        return
    import torch

    from graftwork import backends

    scenes = sorted({entry.description.name.partition(":")[0] for entry in catalog.backends.values()})
    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    levels: dict[str, Level] = {"chosen": "ok", "available": "ok", "refused": "note"}
    for scene in scenes:
        for kind in get_args(RenderKind):
            for device in devices:
                for verdict in backends.explain(scene, kind, device, catalog=catalog):
                    if slug in (None, verdict.plugin):
                        text = f"{kind} on {device}: {verdict.name} {verdict.state}"
                        text += f": {verdict.reason}" if verdict.reason else ""
                        yield Finding(levels[verdict.state], text, verdict.fix)
