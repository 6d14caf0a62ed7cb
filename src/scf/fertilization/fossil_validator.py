"""Judge fossils: provenance, the verdict they carry, and the physics that their fields must obey.

Form and CID are enforced by parsing (`vault.fossil`): what gets here is a well-formed fossil whose
CID was recomputed. A check applies only where its fields are there in the units that it knows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import scf
from scf.fertilization.weather_checks import WEATHER_CHECKS, Check
from scf.vault.fields import Array, FieldSpec
from scf.vault.fossil import FAIL, PASS, Fossil

NAME = "scf.fossil_validator"


@dataclass(frozen=True)
class Verdict:
    """What the validator says about a fossil.

    Attributes:
        ok: Whether the fossil may enter the vault.
        kind: One word for statistics: `verdict`, `physics`; empty where it may.
        reason: Why not, as a sentence.
        checks: Every check that applied, with what it measured.
    """

    ok: bool
    kind: str
    reason: str
    checks: Mapping[str, Mapping[str, Any]]

    def verifier(self) -> dict[str, Any]:
        """The `verifier` of a fossil that we judge first."""
        return {
            "name": NAME,
            "version": scf.__version__,
            "verdict": PASS if self.ok else FAIL,
            "checks": {name: dict(details) for name, details in self.checks.items()},
        }


class _Arrays(Mapping[str, Array]):
    """The arrays of a fossil, made when a check looks at one: most records have no check."""

    def __init__(self, fossil: Fossil, specs: Mapping[str, FieldSpec]) -> None:
        self._fields, self._specs = fossil.block["fields"], specs

    def __getitem__(self, name: str) -> Array:
        return self._specs[name].array(self._fields[name]["data"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


class FossilValidator:
    """Applies checks to fossils.

    Args:
        checks: Physics checks by name; those for weather channels by default.
    """

    def __init__(self, checks: Mapping[str, Check] = WEATHER_CHECKS) -> None:
        self._checks = checks

    def validate(self, fossil: Fossil) -> Verdict:
        """Judge one fossil. A fossil whose own verifier said FAIL is refused without more ado."""
        if fossil.verdict != PASS:
            told = fossil.verifier.get("name")
            return Verdict(ok=False, kind="verdict", reason=f"verifier {told} said FAIL", checks={})
        return self.judge(fossil)

    def judge(self, fossil: Fossil) -> Verdict:
        """Judge the numbers alone, whatever the fossil's verifier says."""
        specs = {spec.name: spec for spec in fossil.specs}
        arrays = _Arrays(fossil, specs)
        outcomes: dict[str, dict[str, Any]] = {}
        reasons = []
        for name, check in self._checks.items():
            result = check(arrays, specs)
            if result is None:
                continue
            outcomes[name] = {"ok": result.ok, **result.details}
            if not result.ok:
                reasons.append(f"{name}: {result.reason}")
        return Verdict(
            ok=not reasons,
            kind="physics" if reasons else "",
            reason="; ".join(reasons),
            checks=outcomes,
        )
