"""Candidates for one computation: checked, predicted, and timed in turns with each other and with a reference.

Of a candidate that is far slower than the best nothing is measured but that; of one that fails, why.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from gpucnn import device as devices
from gpucnn.bench import ceiling, counters, policies, reference_worker, references, timing
from gpucnn.bench.report import Report
from gpucnn.bench.results import fastest_reference
from gpucnn.ops import cards, conv_cost

FAR = 4.0  # times the best
TURN_SECONDS = 0.01  # a short call is repeated so long in a turn
SETTLE_SECONDS = 0.005  # after a reference's turn: its idle threads spin before they sleep


@dataclass(frozen=True)
class Limits:
    """How long to measure: turns of each candidate, and about the seconds that all of one's calls may take."""

    repeat: int = 9
    max_seconds: float = 5.0


@dataclass
class Candidate:
    """One way to compute.

    - labels: what its row is known by
    - call: computes, and returns the result
    - error: of a result, the largest error over the sum of magnitudes
    - limit: of that error
    - predict: about the seconds of a call, by less work than a call; None: nothing is known
    - values: what else the row holds
    - needed: timed however slow it is
    """

    labels: dict[str, Any]
    call: Callable[[], Any]
    error: Callable[[Any], float]
    limit: float
    predict: Callable[[], float] | None = None
    values: dict[str, Any] = field(default_factory=dict)
    needed: bool = False


@dataclass
class Entrant:
    """A candidate with a right answer: its row, its first call's seconds, and those of its turns."""

    candidate: Candidate
    row: dict[str, Any]
    first: float
    mean_square: float | None
    turns: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Problem:
    """What all candidates compute: for references, and for rates.

    - spec: as `reference_worker` takes it
    - flops: of the plain algorithm; None where memory bounds the operation
    - bytes: least traffic
    """

    spec: dict[str, Any]
    flops: float | None
    bytes: int


class Arena:
    """A device, with what every contest on it needs.

    - report: where rows go
    - worker: the process of a reference on the CPU, or None
    """

    def __init__(self, report: Report, limits: Limits, worker: references.Worker | None = None) -> None:
        self.report, self.limits, self.worker = report, limits, worker
        self.device, self.clock = report.device, timing.clock_of(report.device)
        self.flush_bytes = timing.flush_bytes(self.device)
        self._ceilings: dict[str, dict[str, float]] = {}

    @cached_property
    def flush(self) -> Callable[[], Any] | None:
        return timing.flusher(self.device)

    def ceiling(self, dtype: str) -> dict[str, float]:
        """The device's, measured when it is first asked for; nothing for the simulator."""
        if self.device == "sim":
            return {}
        if dtype not in self._ceilings:
            self._ceilings[dtype] = ceiling.measure(self.device, np.dtype(dtype), self.report.seconds(ceiling.SECONDS))
            self.report.content["settings"]["ceiling"] = self._ceilings
        return self._ceilings[dtype]

    def run(self, problem: Problem, candidates: list[Candidate]) -> None:
        """Rows of all candidates; on the CPU they alternate, on a GPU one comes after the other."""
        if self.device == "sim":
            self._count(problem, candidates)
        elif self.device == "cpu":
            self._alternate(problem, candidates)
        else:
            self._one_by_one(problem, candidates)

    # ---- the simulator ----

    def _count(self, problem: Problem, candidates: list[Candidate]) -> None:
        """Counters of one call each; "auto" takes those of the algorithm that it stands for."""
        found: dict[str, dict[str, Any]] = {}
        for candidate in candidates:
            row = self.report.begin(**candidate.labels)
            if row is not None:
                with self.report.guard(row):
                    values = found.get(candidate.values.get("chosen", "")) or self._counted(problem, candidate)
                    self._finish(row, candidate, values)
                    found[candidate.labels["algorithm"]] = values

    @staticmethod
    def _counted(problem: Problem, candidate: Candidate) -> dict[str, Any]:
        result, counted = counters.count(candidate.call, problem.bytes)
        return {**Arena._checked(candidate, result), "counters": counted}

    # ---- a GPU ----

    def _one_by_one(self, problem: Problem, candidates: list[Candidate]) -> None:
        beside: dict[str, float | None] | None = None
        entrants: list[Entrant] = []
        # Each row is begun when its turn comes: a fault of the GPU must cost that row alone.
        for candidate, row, predicted in chain.from_iterable(self._predicted([each]) for each in candidates):
            with self.report.guard(row):
                best = min((entrant.first for entrant in entrants), default=None)
                entrant = self._admit(candidate, row, predicted, best)
                if entrant is None:
                    continue
                entrants.append(entrant)
                if beside is None:
                    beside = self._gpu_references(problem)
                seconds = self.report.seconds(min(0.2, self.limits.max_seconds))
                found = timing.measure(candidate.call, self.clock, seconds, self.flush, self.limits.repeat)
                self._finish_timed(problem, entrant, found, beside)

    def _gpu_references(self, problem: Problem) -> dict[str, float | None]:
        if self.report.torch is None:
            return {}
        return references.on_gpu(problem.spec, self.device, self.clock, self.flush, self.report.seconds(0.2))

    # ---- the CPU ----

    def _alternate(self, problem: Problem, candidates: list[Candidate]) -> None:
        entrants: list[Entrant] = []
        for candidate, row, predicted in self._predicted(candidates):
            with self.report.guard(row):
                best = min((entrant.first for entrant in entrants), default=None)
                entrant = self._admit(candidate, row, predicted, best)
                entrants += [entrant] if entrant else []
        beside, failure = self._prepare_reference(problem, entrants)
        for turn in range(max(map(self._turns, entrants), default=0)):
            for entrant in list(entrants):
                if turn < self._turns(entrant):
                    with self.report.guard(entrant.row):
                        self._take_turn(entrant)
                        continue
                    entrants.remove(entrant)
            if beside is not None and self.worker is not None:
                try:
                    beside.append(statistics.median(self.worker.turn(TURN_SECONDS)))
                except references.ReferenceFailed as error:
                    beside, failure = None, str(error)
                time.sleep(SETTLE_SECONDS)
        milliseconds = self._reference_row(beside, failure)
        for entrant in entrants:
            self._finish_timed(problem, entrant, timing.summarize(entrant.turns), milliseconds)

    def _take_turn(self, entrant: Entrant) -> None:
        assert self.flush is not None
        calls = reference_worker.take_turn(entrant.candidate.call, TURN_SECONDS, self.flush)
        entrant.turns.append(statistics.median(calls))

    def _turns(self, entrant: Entrant) -> int:
        """As many as fit into the limit; one at least."""
        return max(1, min(self.limits.repeat, int(self.limits.max_seconds / max(entrant.first, TURN_SECONDS))))

    def _prepare_reference(self, problem: Problem, entrants: list[Entrant]) -> tuple[list[float] | None, str | None]:
        """An empty list for the reference's turns, or None and, if it failed, why."""
        if self.worker is None or not entrants:
            return None, None
        try:
            self.worker.prepare({**problem.spec, "flush_bytes": self.flush_bytes}, entrants[0].mean_square)
        except references.ReferenceFailed as error:
            return None, str(error)
        return [], None

    def _reference_row(self, turns: list[float] | None, failure: str | None) -> dict[str, float | None]:
        if self.worker is None:
            return {}
        if failure is not None:
            missing = self.report.content["settings"].setdefault("references_missing", {})
            missing[failure] = missing.get(failure, 0) + 1
        return {self.worker.library: statistics.median(turns) * 1e3 if turns else None}

    # ---- both ----

    def _predicted(self, candidates: list[Candidate]) -> list[tuple[Candidate, dict[str, Any], float | None]]:
        """Candidates that have no row yet, with a new one and what is predicted of a call, fastest first.

        The order of the rows is that of the candidates. Where nothing is predicted the candidate keeps its place in
        front: it is tried.
        """
        found: list[tuple[Candidate, dict[str, Any], float | None]] = []
        for candidate in candidates:
            row = self.report.begin(**candidate.labels)
            if row is not None:
                with self.report.guard(row):
                    found.append((candidate, row, candidate.predict() if candidate.predict else None))
        return sorted(found, key=lambda each: each[2] or 0.0)

    def _admit(
        self, candidate: Candidate, row: dict[str, Any], predicted: float | None, best: float | None
    ) -> Entrant | None:
        """Call once to warm up and to check; None where that is a failure, or too slow, with the row finished."""
        if predicted is not None and not candidate.needed and self._too_slow(predicted, best):
            self._leave_out(row, candidate, predicted, best, "predicted")
            return None
        if self.device != "cpu":
            candidate.call()  # compiles, perhaps
        self.clock.synchronize()
        start = time.perf_counter()
        result = candidate.call()
        self.clock.synchronize()
        first = time.perf_counter() - start
        checked = self._checked(candidate, result)
        if not checked.get("ok", True):
            self._finish(row, candidate, checked)
            return None
        if not candidate.needed and self._too_slow(first, best):
            self._leave_out(row, candidate, first, best, "measured in one call", **checked)
            return None
        row |= checked
        return Entrant(candidate, row, first, references.mean_square(result) if self.worker else None)

    def _too_slow(self, seconds: float, best: float | None) -> bool:
        whole = seconds * (self.limits.repeat + 1)
        return best is not None and seconds > FAR * best and whole > self.limits.max_seconds

    def _leave_out(
        self, row: dict[str, Any], candidate: Candidate, seconds: float, best: float | None, how: str, **values: Any
    ) -> None:
        times = f", {seconds / best:.0f} times the best so far" if best else ""
        reason = f"{how}: {seconds:.3g} s a call{times}; --max-seconds {self.limits.max_seconds:g}"
        self._finish(row, candidate, {**values, "reason": reason})

    @staticmethod
    def _checked(candidate: Candidate, result: Any) -> dict[str, Any]:
        """The largest error, and a failure where it is above the limit or no number."""
        error = candidate.error(result)
        if error <= candidate.limit:
            return {"max_error": error}
        reason = f"wrong: error {error:.3g} of the sum of magnitudes, limit {candidate.limit:.3g}"
        return {"max_error": error, "ok": False, "reason": reason}

    def _finish(self, row: dict[str, Any], candidate: Candidate, values: dict[str, Any]) -> None:
        self.report.finish(row, **candidate.values, **values)

    def _finish_timed(
        self, problem: Problem, entrant: Entrant, found: timing.Timing, beside: dict[str, float | None]
    ) -> None:
        times = found.milliseconds()
        fastest = fastest_reference(beside, entrant.row["precision"])
        ratio = fastest / times["milliseconds"] if fastest else None
        values = {**times, **self._rates(problem, found.median, entrant.row)}
        self._finish(entrant.row, entrant.candidate, {**values, "references": beside, "ratio": ratio})

    def _rates(self, problem: Problem, seconds: float, row: dict[str, Any]) -> dict[str, Any]:
        """Effective TFLOP/s, or GB/s where memory bounds the operation, and the share of the device's.

        On tensor cores it is the share of their nominal rate, as far as the card is known.
        """
        policy = policies.named(row["precision"])
        if policy.on_tensor_cores and problem.flops is not None:
            rate = 1e-12 * problem.flops / seconds
            nominal = self._nominal(policy)
            return {"tflops": rate, "percent_of_peak": 100 * rate / nominal if nominal else None}
        most = self.ceiling(row["dtype"])
        if problem.flops is not None:
            rate = 1e-12 * problem.flops / seconds
            return {"tflops": rate, "percent_of_peak": 100 * rate / most["tflops"]}
        rate = 1e-9 * problem.bytes / seconds
        return {"gb_per_s": rate, "percent_of_peak": 100 * rate / most["gb_per_s"]}

    def _nominal(self, policy: policies.Policy) -> float:
        """TFLOP/s of the GPU's tensor cores by the makers' table; 0 where there is no GPU."""
        if not self.device.startswith("cuda"):
            return 0.0
        return 1e-3 * conv_cost.unit(policy.arithmetic, cards.card_of(*devices.gpu(self.device))).rate
