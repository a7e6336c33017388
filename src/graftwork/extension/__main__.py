"""``python -m graftwork.extension status|build|prebuild package.module:LIBRARY``, for authors of plugins."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from graftwork.extension import Library, Unavailable, build, prebuild, status


def _library(text: str) -> Library:
    module, colon, attribute = text.partition(":")
    found = getattr(importlib.import_module(module), attribute, None) if colon else None
    if not isinstance(found, Library):
        raise SystemExit(f'{text!r} is not an extension.Library; write "package.module:NAME".')
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m graftwork.extension", description=__doc__)
    parser.add_argument("action", choices=("status", "build", "prebuild"))
    parser.add_argument("library", help="import string of the description, package.module:NAME")
    parser.add_argument(
        "--out", type=Path, help="folder for prebuilt libraries instead of the package's _native"
    )
    parser.add_argument("--target", action="append", help="instruction set level or CUDA target; repeatable")
    options = parser.parse_args(arguments)
    library = _library(options.library)
    try:
        if options.action == "status":
            print(status(library))
        elif options.action == "build":
            print(build(library, targets=options.target))
        else:
            for path in prebuild(library, folder=options.out, targets=options.target):
                print(path)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
