"""A report on disk: text, tables and pictures, in the order they were made.

``graftwork demo`` and ``graftwork bench`` both end in one. Tables also go to the terminal and to CSV files.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | None


def format_cell(value: Cell) -> str:
    """Format one table cell: integers with separators, floats with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return value


def format_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Lay a table out in columns for a terminal; numbers are right-aligned."""
    texts = [list(header), *([format_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    numeric = [bool(rows) and all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(texts[0]), "  ".join("-" * w for w in widths), *map(line, texts[1:])])


class Report:
    """Collects what a run shows and writes it as ``report.md`` with its pictures and CSV files beside it.

    Example:
        >>> report = Report(Path("out"), "Digits")              # doctest: +SKIP
        >>> report.table("Cost", ["model", "params"], [["plain", 21514]])   # doctest: +SKIP

    Args:
        out: Folder to write into; created when missing.
        title: First heading of the report.
        echo: Print text and tables to the terminal as they come.
    """

    def __init__(self, out: Path, title: str, *, echo: bool = True) -> None:
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.echo = echo
        self._parts: list[str] = [f"# {title}"]

    def _add(self, markdown: str, terminal: str | None = None) -> None:
        self._parts.append(markdown)
        if self.echo:
            print(markdown if terminal is None else terminal, flush=True)
        self.write()

    def heading(self, text: str) -> None:
        """Start a section."""
        self._add(f"## {text}", f"\n{text}\n{'=' * len(text)}")

    def text(self, markdown: str) -> None:
        """Add a paragraph."""
        self._add(markdown)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Path:
        """Add a table and write it as CSV.

        Args:
            title: Caption; also names the CSV file.
            header: Column names.
            rows: Cells; numbers keep full precision in the CSV.

        Returns:
            Path of the CSV file.
        """
        for row in rows:
            if len(row) != len(header):
                raise ValueError(
                    f"table {title!r}: a row has {len(row)} cells, the header has {len(header)}: {row}"
                )
        path = self.out / f"{_slug(title)}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        markdown = [
            f"**{title}** ([csv]({path.name}))\n",
            "| " + " | ".join(header) + " |",
            "|" + "---|" * len(header),
            *("| " + " | ".join(format_cell(cell) for cell in row) + " |" for row in rows),
        ]
        self._add("\n".join(markdown), f"\n{title}\n{format_table(header, rows)}\n")
        return path

    def figure(self, figure: Figure, name: str, caption: str) -> Path:
        """Save a matplotlib figure as PNG and add it with a caption.

        Args:
            figure: What to save; it is closed afterwards.
            name: File name without suffix.
            caption: One sentence that says what is to be seen.

        Returns:
            Path of the PNG file.
        """
        import matplotlib.pyplot as plt

        path = self.out / f"{_slug(name)}.png"
        figure.savefig(path, dpi=130, bbox_inches="tight")
        plt.close(figure)
        return self.picture(path, caption)

    def picture(self, path: Path, caption: str) -> Path:
        """Add a picture that already lies in the report's folder."""
        self._add(f"![{caption}]({path.relative_to(self.out).as_posix()})\n\n*{caption}*", f"picture: {path}")
        return path

    def write(self) -> Path:
        """Write ``report.md``, after every part, so that an interrupted run leaves what it had."""
        path = self.out / "report.md"
        path.write_text("\n\n".join(self._parts) + "\n", encoding="utf-8")
        return path


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "table"
