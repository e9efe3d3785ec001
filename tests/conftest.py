"""Fixtures for all tests; hypothesis tries the same cases on every run and never gives up because of time."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import settings

import gpucnn
from gpucnn.launch import sources

settings.register_profile("gpucnn", derandomize=True, deadline=None, print_blob=True, database=None)
settings.load_profile("gpucnn")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="sim", help="where tests of kernels run them: sim (default), cuda or cuda:1")
    parser.addoption("--kernels", type=Path, help="a folder of kernel sources to test instead of the library's own")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["GPUCNN_TUNING"] = "0"  # of processes that tests start; what somebody has tuned must not change tests
    gpucnn.tuning(False)
    if config.getoption("--kernels"):
        sources.use_folder(config.getoption("--kernels"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device that tests of kernels use."""
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same state of gpucnn's own randomness."""
    gpucnn.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random test data, the same on every run."""
    return np.random.default_rng(20240229)


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """PyTorch, the oracle. Where it is not installed the test is skipped, or fails if GPUCNN_REQUIRE_TORCH=1."""
    if importlib.util.find_spec("torch") is None:
        if os.environ.get("GPUCNN_REQUIRE_TORCH") == "1":
            pytest.fail("GPUCNN_REQUIRE_TORCH=1 but torch is not installed in this environment")
        pytest.skip("torch is not installed; it is only an oracle")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it is imported
        import torch
    torch.set_num_threads(1)  # its idle workers would spin beside ours
    return torch


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line with the number of damaged files that the readers met."""
    reports = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    cases = [properties["fuzz cases"] for properties in reports if "fuzz cases" in properties]
    if cases:
        terminalreporter.write_line(f"{sum(cases):,} damaged files read or refused by {len(cases)} readers")
