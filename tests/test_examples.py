"""Every script under examples/ runs from another folder, with warnings as errors, and prints what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
PROMISED = {
    "conv2d_on_arrays": r"conv2d \(8, 16, 14, 14\), max_pool2d \(8, 16, 7, 7\), conv_transpose2d \(8, 1, 29, 29\)",
    "own_kernel": r"transpose_padded: right; .*shared read 1.0 passes",
    "custom_function": r"sin\(3x\): 0\.\d+ before training, 0\.00\d+ after",
    "transfer_learning": r"features kept: [89]\d\.\d% right",
}


def test_every_example_is_tested():
    assert {example.stem for example in EXAMPLES} == set(PROMISED)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example(example, tmp_path):
    command = [sys.executable, "-W", "error", example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(PROMISED[example.stem], done.stdout), done.stdout
    assert not any(tmp_path.iterdir())
