"""The examples of ``docs/extending.md`` are code that runs where the page puts it."""

import importlib
import re
import textwrap

import numpy as np
import torch

from client.data.readers import read_picture
from deploy.source_tree import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def names_of(module: str) -> dict[str, object]:
    """Return the names of a module, also of one that a function of its name hides in its package."""
    return vars(importlib.import_module(module))


def run(words: str, inside: dict[str, object] | None = None) -> dict[str, object]:
    """Run the example that contains these words in a module's own names, or in none; returns the names there are then.

    Its table and the class of figures are left out: the page shows their new entries alone.
    """
    blocks = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)]
    (found,) = [block for block in blocks if words in block]
    found = re.sub(r"^(?:[A-Z]+ = \{.*?^\}|class Figures.*?\n\n)", "", found, flags=re.MULTILINE | re.DOTALL)
    names = dict(inside or {})
    exec(compile(found, "docs/extending.md", "exec"), names)  # noqa: S102 - the project's own page
    return names


def test_the_example_of_a_model_classifies_images_of_any_size() -> None:
    build = run("def pooled_linear")["pooled_linear"]
    assert callable(build)
    for side in (28, 64):
        assert build(3, 1)(torch.zeros(2, 1, side, side)).shape == (2, 3)


def test_the_example_of_a_strategy_takes_a_step() -> None:
    names = run("class FedSign", names_of("common.run.strategies"))
    sign = names["FedSign"]
    assert callable(sign)
    stepped = sign(3, 0.5).step(np.zeros(3, np.float32), np.array([0.2, -7.0, 0.0], np.float32), 0)
    assert stepped.tolist() == [0.5, -0.5, 0.0]


def test_the_example_of_a_metric_is_the_mean_of_the_shares_found() -> None:
    balanced = run("def balanced_accuracy", names_of("common.evaluation.metrics"))["balanced_accuracy"]
    assert callable(balanced)
    assert balanced(np.array([[[8.0, 2.0], [1.0, 1.0]]])).tolist() == [(0.8 + 0.5) / 2]


def test_the_example_of_a_reader_reads_what_it_recognises() -> None:
    made = run("class PgmReader")["PgmReader"]
    assert callable(made)
    reader = made()
    encoded = b"P5 3 2 255\n" + bytes(range(6))
    assert reader.recognises(encoded)
    assert reader.read(encoded, 1).pixels.tolist() == [[0, 1, 2], [3, 4, 5]]
    copied = reader.clean(encoded, "p-1", None)
    assert (copied.ending, copied.original) == (".png", "p-1")
    assert read_picture(copied.content, 1).pixels.tolist() == [[0, 1, 2], [3, 4, 5]]
