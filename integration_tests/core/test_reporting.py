"""Reports, timing and the small training loop that demos and benchmarks share."""

from __future__ import annotations

import csv
import tarfile
import time

import pytest
import torch
from PIL import Image

from graftwork.bench import Bench
from graftwork.classify import ImageSet, evaluate, fit, flip_and_shift, load_digits, load_image_tree
from graftwork.report import Report, format_table


def test_table_goes_to_the_terminal_to_markdown_and_in_full_precision_to_csv(tmp_path, capsys):
    report = Report(tmp_path, "Title")
    path = report.table(
        "Cost per model", ["model", "params", "ratio"], [["a", 1234567, 1 / 3], ["b", 5, None]]
    )
    assert capsys.readouterr().out.splitlines()[2:] == [
        "model     params   ratio",
        "-----  ---------  ------",
        "a      1,234,567  0.3333",
        "b              5       -",
        "",
    ]
    assert "| a | 1,234,567 | 0.3333 |" in (tmp_path / "report.md").read_text()
    assert list(csv.reader(path.open()))[1] == ["a", "1234567", str(1 / 3)]


def test_row_of_the_wrong_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a row has 1 cells, the header has 2"):
        Report(tmp_path, "Title", echo=False).table("T", ["a", "b"], [["x"]])


def test_empty_table_is_a_header():
    assert format_table(["a", "b"], []).splitlines() == ["a  b", "-  -"]


def test_compare_ranks_a_slow_call_behind_a_fast_one(tmp_path):
    bench = Bench(Report(tmp_path, "Title", echo=False))
    timings = bench.compare(
        {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002)}, seconds=0.1
    )
    assert 5 < timings["slow"].median / timings["fast"].median < 15
    assert timings["slow"].best <= timings["slow"].median <= timings["slow"].p95


def test_torch_threads_are_put_back(tmp_path):
    bench = Bench(Report(tmp_path, "Title", echo=False))
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), bench.torch_threads(1):
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_digits_are_split_by_class_and_normalised():
    train, test = load_digits(size=16, channels=3)
    assert train.images.shape == (1347, 3, 16, 16) and len(test) == 450
    assert abs(float(train.images.mean())) < 0.05
    counts = torch.bincount(test.labels)
    assert counts.min() >= 43 and counts.max() <= 46


def test_image_tree_is_read_from_a_folder_and_from_an_archive(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (8, 8), (100 * number, 50, index)).save(
                tmp_path / "tree" / name / f"{index}.png"
            )
    with tarfile.open(tmp_path / "tree.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "tree", arcname="tree")
    folder = load_image_tree(tmp_path / "tree", size=8)
    archived = load_image_tree(tmp_path / "tree.tar.gz", size=8)
    assert folder.classes == ("cat", "dog") and folder.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(folder.images, archived.images) and torch.equal(folder.labels, archived.labels)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image_tree(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        load_image_tree(tmp_path / "empty")


def separable(count=200):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1) * 2.0
    return ImageSet(images, labels, ("a", "b"))


def test_fit_learns_a_separable_set_and_repeats_itself():
    def train():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        return fit(net, separable(), separable(), epochs=5, lr=0.05, batch_size=20)

    result = train()
    assert result.accuracy > 95 and result.losses[-1] < result.losses[0] / 2
    assert train().losses == result.losses


def test_fit_refuses_a_batch_larger_than_the_set():
    with pytest.raises(ValueError, match="larger than the training set of 10 images"):
        fit(torch.nn.Flatten(), separable(10), separable(10), epochs=1, batch_size=20)


def test_evaluate_leaves_the_mode_as_it_was():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).train()
    evaluate(net, separable())
    assert net.training


def test_flip_and_shift_moves_pixels_without_inventing_any():
    images = torch.rand(64, 3, 8, 8)
    moved = flip_and_shift(2)(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and not torch.equal(moved, images)
    for before, after in zip(images, moved, strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
