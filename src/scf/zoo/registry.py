"""The zoo: promoted generations, the pointer to the champion, and how it moved.

A generation is there once its folder has its name; it is the champion once a line in `history.log`
says so, and not before. `champion.json` repeats the last line for programs that only want to know;
it is replaced atomically, and `Zoo.open` brings it up to date after a crash in between. Nothing is
ever deleted: a rollback is one more line, with its reason.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.canonical import parse_json
from scf.core.clock import Clock, SystemClock, utc_text
from scf.core.errors import InputError, NothingToDo, UsageError
from scf.signing.verify import PublicKey
from scf.storage import durable
from scf.storage.failpoint import failpoint
from scf.storage.partitions import Folder
from scf.zoo.entry import (
    Generation,
    GenerationDamaged,
    generation_name,
    generation_number,
    read_generation,
)
from scf.zoo.promotion import Candidate, verify_candidate, write_generation

HISTORY_NAME = "history.log"
POINTER_NAME = "champion.json"
POINTER_SCHEMA = "scf.champion/1"
PROMOTED = "promoted"
ROLLED_BACK = "rolled_back"


class UnknownGeneration(UsageError):
    """No generation of that name is in the zoo."""


@dataclass(frozen=True)
class Move:
    """One line of the history: the pointer moved.

    Attributes:
        at: When, RFC 3339 in UTC.
        action: `promoted` or `rolled_back`.
        generation: Where it points since.
        previous: Where it pointed before; None for the first.
        run_id: The run that made the generation.
        reason: Why, in words.
    """

    at: str
    action: str
    generation: str
    previous: str | None
    run_id: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The line."""
        return {
            "at": self.at,
            "action": self.action,
            "generation": self.generation,
            "previous": self.previous,
            "run": self.run_id,
            "reason": self.reason,
        }


class Zoo:
    """The folder `model_zoo`, opened."""

    def __init__(self, folder: Folder, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock

    @classmethod
    def open(cls, folder: Folder, *, clock: Clock | None = None) -> "Zoo":
        """Open the zoo in `folder`, bringing the pointer up to date if a crash left it behind."""
        zoo = cls(folder, clock or SystemClock())
        zoo._refresh_pointer()
        return zoo

    @property
    def folder(self) -> Folder:
        """`model_zoo`."""
        return self._folder

    def generations(self) -> list[Generation]:
        """All generations, oldest first.

        Raises:
            GenerationDamaged: An entry cannot be read.
        """
        return [read_generation(self._folder.path / name) for name in self._names()]

    def generation(self, name: str) -> Generation:
        """The generation of that name.

        Raises:
            UnknownGeneration: The message lists those there are.
        """
        names = self._names()
        if name not in names:
            raise UnknownGeneration(
                f"no generation {name!r} in {self._folder.path}",
                remedy=f"There are: {', '.join(names)}." if names else "The zoo is still empty.",
            )
        return read_generation(self._folder.path / name)

    def champion(self) -> Generation | None:
        """The generation that stands; None in an empty zoo.

        Raises:
            GenerationDamaged: The history names a generation that is not there.
        """
        history = self.history()
        return read_generation(self._folder.path / history[-1].generation) if history else None

    def history(self) -> list[Move]:
        """Every move of the pointer, oldest first. Lines that a crash tore are passed over."""
        try:
            lines = (self._folder.path / HISTORY_NAME).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [move for line in lines if (move := _parse_move(line)) is not None]

    def promote(
        self,
        *,
        run_id: str,
        checkpoint: Path,
        report_folder: Path,
        plan: Mapping[str, Any],
        proof: Path,
        keys: Iterable[PublicKey],
    ) -> Generation:
        """Make a generation of a run, and the champion of the generation. Once for each run.

        Called again for the same run (after a crash, say), it finishes what is unfinished and
        returns the same generation. A pointer that was moved on since is left alone.

        Args:
            run_id: The run.
            checkpoint: Its checkpoint folder.
            report_folder: Holds `report.json` and the plots it names.
            plan: The plan's JSON (schema scf.plan/1).
            proof: The proof record of the run (`proofs.attest`).
            keys: Whose statements count: the foundry's.

        Raises:
            VerificationFailed: Checkpoint, record, report and plan do not fit together, or the gate
                did not let the run pass. Nothing was changed.
            BudgetExceeded: The disk is full; nothing was changed.
        """
        generation = next((g for g in self.generations() if g.run_id == run_id), None)
        if generation is None:
            candidate = Candidate(run_id, checkpoint, report_folder, plan, proof)
            generation = self._add(candidate, keys)
            with durable.os_errors(self._folder.path):
                failpoint("zoo.generation_written")
        moves = [move for move in self.history() if move.generation == generation.name]
        if not any(move.action == PROMOTED for move in moves):
            self._move(generation, PROMOTED, "passed the gate")
        self._refresh_pointer()
        return generation

    def rollback(self, name: str, reason: str) -> Generation:
        """Let an earlier generation stand again. Its files are verified first.

        Raises:
            UsageError: No reason given, or no such generation.
            NothingToDo: It is the champion already.
            GenerationDamaged: A file of it is missing or changed; the pointer stays.
        """
        if not reason.strip():
            raise UsageError(
                "a rollback needs a reason", remedy="Say why, for whoever reads the history."
            )
        generation = self.generation(name)
        history = self.history()
        if history and history[-1].generation == name:
            raise NothingToDo(f"{name} is the champion already")
        generation.verify()
        self._move(generation, ROLLED_BACK, reason.strip())
        self._refresh_pointer()
        return generation

    def _names(self) -> list[str]:
        """The generations' folders, by number."""
        names = {p.name: generation_number(p.name) for p in self._folder.path.iterdir()}
        return sorted((n for n, number in names.items() if number), key=lambda n: names[n] or 0)

    def _add(self, candidate: Candidate, keys: Iterable[PublicKey]) -> Generation:
        verified = verify_candidate(candidate, keys)
        durable.sweep(self._folder.path)
        # A number is never used twice, not even one whose folder was taken away.
        used = [*self._names(), *(move.generation for move in self.history())]
        number = max((generation_number(name) or 0 for name in used), default=0) + 1
        name = generation_name(number)
        staged = self._folder.new_staging(name)
        try:
            promoted_at = utc_text(self._clock.now())
            write_generation(staged, number, verified, promoted_at=promoted_at)
            return read_generation(self._folder.publish_folder(staged, name))
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise

    def _move(self, generation: Generation, action: str, reason: str) -> None:
        history = self.history()
        move = Move(
            at=utc_text(self._clock.now()),
            action=action,
            generation=generation.name,
            previous=history[-1].generation if history else None,
            run_id=generation.run_id,
            reason=reason,
        )
        line = json.dumps(move.to_json(), sort_keys=True, ensure_ascii=False)
        self._folder.append_line(HISTORY_NAME, line.encode())

    def _refresh_pointer(self) -> None:
        """Let `champion.json` say what the last line of the history says."""
        history = self.history()
        if not history:
            return
        last = history[-1]
        pointer = {
            "schema": POINTER_SCHEMA,
            "generation": last.generation,
            "run": last.run_id,
            "since": last.at,
        }
        if _read_pointer(self._folder.path / POINTER_NAME) != pointer:
            self._folder.write_json(POINTER_NAME, pointer)


def _parse_move(line: bytes) -> Move | None:
    try:
        value = parse_json(line)
        move = Move(
            at=value["at"],
            action=value["action"],
            generation=value["generation"],
            previous=value["previous"],
            run_id=value["run"],
            reason=value["reason"],
        )
    except (InputError, KeyError, TypeError):
        return None
    return move if generation_number(str(move.generation)) else None


def _read_pointer(path: Path) -> Any:
    try:
        return durable.read_json(path)
    except InputError:
        return None


__all__ = ["Generation", "GenerationDamaged", "Move", "UnknownGeneration", "Zoo"]
