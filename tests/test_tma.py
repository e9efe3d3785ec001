"""TMA: loads, im2col walks and stores beside an element-by-element reference; tensor maps and their limits."""

from __future__ import annotations

import numpy as np
import pytest

from gpucnn.bench import golden_tma
from gpucnn.launch import simulator
from tests import tma
from tests.check import assert_same_bits

CASES = golden_tma.cases()


def expected(case):
    return tma.loaded(case) if case.content is None else tma.stored(case)


@pytest.mark.parametrize("name", CASES)
def test_golden(name, device):
    assert_same_bits(golden_tma.run(CASES[name], device), expected(CASES[name]))
