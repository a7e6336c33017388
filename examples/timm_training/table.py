"""Print the last epoch of several runs of train.py as a Markdown table.

python table.py output/unshared output/shared ...
"""

import json
import sys
from pathlib import Path


def main() -> None:
    print("| run | parameters | epochs | top-1 | top-1 (EMA) |")
    print("|---|---:|---:|---:|---:|")
    for folder in map(Path, sys.argv[1:]):
        epochs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        last = epochs[-1]
        accuracy = f"{last['top1']:.2f} | {last['top1_ema']:.2f}"
        print(f"| {folder.name} | {last['parameters']:,} | {len(epochs)} | {accuracy} |")


if __name__ == "__main__":
    main()
