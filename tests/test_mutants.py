"""The planted faults themselves: where they stand, and what is said of one that is not caught."""

from __future__ import annotations

import pytest

from gpucnn.launch import sources
from tests import mutants
from tests.mutants import MUTANTS, ROOT, Mutant


def test_names_are_different():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_is_replaced_stands_once(mutant):
    assert (sources.folder() / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    file, *options = mutant.test.split(" ", 2)
    assert (ROOT / "tests" / file).is_file()
    assert not options or (options[0] == "-k" and options[1])


def test_every_file_of_kernels_has_a_mutant():
    """Of those that only stamp entry points from a header, the header."""
    mutated = {mutant.file for mutant in MUTANTS}
    for path in sorted(sources.folder().glob("*.cu")):
        included = path.read_text().split('#include "')[1:]
        assert {path.name, *(text.split('"')[0] for text in included)} & mutated, path.name


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("return v <= 0.0f ? 0.0f : v + 0.0f;", "not caught"),
        ("return v <= 0.0f ? 0.0f : w;", "it does not compile"),
        ("return v <= 0.0f ? 1.0f : v;", "caught by test_as_on_the_cpu[(3,)-relu]"),
    ],
)
def test_verdicts(new, said):
    old = "(float v) { return v <= 0.0f ? 0.0f : v; }"
    mutant = Mutant(
        "relu",
        "relu.cu",
        old,
        f"(float v) {{ {new} }}",
        "test_activation_kernels.py -k relu and as_on_the_cpu and not leaky",
    )
    found, text = mutants.run(mutant)
    assert found == said.startswith("caught")
    assert text.startswith(said)


def test_a_name_that_is_no_mutants(capsys):
    assert mutants.main(["relu_loses_nan", "relu_gains_nan"]) == 2
    assert "mutants: there is no relu_gains_nan; there are\n" in capsys.readouterr().err
