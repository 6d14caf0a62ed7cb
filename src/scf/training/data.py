"""The training fossils as a model wants them: moments, a frame, a validation set, minibatches.

Everything goes through one reading of the fossils. If they fit the memory limit they stay, sorted
by CID, and a minibatch is a pure function of (seed, step). If not, they are streamed again epoch
after epoch. Either way a resumed run sees the same minibatches as an uninterrupted one.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scf.core.errors import UsageError
from scf.models.frame import (
    FOSSILS_MIN,
    Frame,
    LinearGaussian,
    Moments,
    Symmetry,
    TooFewFossils,
)
from scf.models.record import Floats, RecordLayout
from scf.training.distributed import ALONE, Peers
from scf.training.train_config import TrainConfig

# Shapes: N fossils, B minibatch, D modelled numbers, K given numbers.

# Given numbers kept in the checkpoint for sampling: enough to look like the data, few enough to
# carry.
_BANK_MAX = 1024


class FossilSource(Protocol):
    """Where training fossils come from. `fossils.BatcherSource` is the one in use."""

    @property
    def layout(self) -> RecordLayout:
        """Fields of a fossil. Raises LayoutMismatch where they differ."""

    @property
    def batch_size(self) -> int:
        """Fossils of a minibatch, over all shares; the last of an epoch may be smaller."""

    def epoch(self) -> Iterator[Mapping[str, Any]]:
        """Minibatches of one epoch: arrays by field name, `_cid` and `_family` lists.

        `_true_score`, if there is one, holds d ln p / dx of the modelled fields by name.
        """

    def get_state(self) -> dict[str, Any]:
        """Place in the stream, as JSON."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a place."""

    def share(self, rank: int, world_size: int) -> "FossilSource":
        """The same stream from the same place, every `world_size`-th row of each minibatch."""

    def describe(self) -> dict[str, Any]:
        """For `config.json`: what these fossils are."""


@runtime_checkable
class MixedSource(FossilSource, Protocol):
    """A source whose epochs have some fossils oftener than others."""

    def every_fossil(self) -> Iterator[Mapping[str, Any]]:
        """Minibatches with each fossil once; the place in the stream stays as it is."""


class _Rows:
    """Flat rows of fossils with what tells them apart."""

    def __init__(self, layout: RecordLayout) -> None:
        self._layout = layout
        self._x: list[Floats] = []
        self._c: list[Floats] = []
        self._s: list[Floats] = []
        self.cids: list[str] = []
        self.families: list[str] = []

    def add(
        self,
        x_BD: Floats,
        c_BK: Floats,
        cids: list[str],
        families: list[str],
        true_score_BD: Floats | None = None,
    ) -> None:
        self._x.append(x_BD)
        self._c.append(c_BK)
        if true_score_BD is not None:
            self._s.append(true_score_BD)
        self.cids += cids
        self.families += families

    def ordered(self, marks: list[str]) -> "tuple[Rows, list[str]]":
        """Rows and marks in the order of (mark, CID): one order, however the fossils were read."""
        order = sorted(range(len(marks)), key=lambda row: (marks[row], self.cids[row]))
        x_ND = np.concatenate([np.zeros((0, self._layout.size)), *self._x])[order]
        c_NK = np.concatenate([np.zeros((0, self._layout.given_size)), *self._c])[order]
        s_ND = np.concatenate(self._s)[order] if self._s else None
        return Rows(x_ND, c_NK, s_ND), [marks[row] for row in order]


class Rows(NamedTuple):
    """Records x (N, D), given numbers c (N, K) and, where it is known, the true score s (N, D)."""

    x_ND: Floats
    c_NK: Floats
    true_score_ND: Floats | None = None

    def part(self, rows: slice) -> "Rows":
        """Some of the rows."""
        s_ND = self.true_score_ND
        return Rows(self.x_ND[rows], self.c_NK[rows], None if s_ND is None else s_ND[rows])


class ModelRows(NamedTuple):
    """The same in the coordinates of a frame: float32 tensors."""

    z_ND: Tensor
    c_NK: Tensor
    true_score_ND: Tensor | None = None

    def at(self, index: Tensor) -> "ModelRows":
        """Some of the rows."""
        s_ND = self.true_score_ND
        return ModelRows(self.z_ND[index], self.c_NK[index], None if s_ND is None else s_ND[index])


class Drawn(NamedTuple):
    """Rows of a minibatch that are this process's, and their places in the whole of it, (B,)."""

    rows: ModelRows
    place_B: Tensor


@dataclass(frozen=True)
class TrainingData:
    """What one reading of the fossils gives.

    Attributes:
        layout: Fields of a fossil.
        moments: Sums over the fossils trained on (streamed: over all, in one reading).
        validation: Rows x (N, D), c (N, K) that choose among the weights; may be empty.
        bank_MK: Given numbers for sampling.
        num_fossils: Fossils trained on.
        rows: All rows trained on, where they fit the memory limit.
        threshold: Fossils whose mark is below it are validation fossils.
        digest: Of the layout and of the fossils read: the same wherever the same were read.
    """

    layout: RecordLayout
    moments: Moments
    validation: Rows
    bank_MK: Floats
    num_fossils: int
    rows: Rows | None
    threshold: str
    digest: str

    def counts(self) -> dict[str, int]:
        """For `config.json`: fossils trained on, and fossils that only choose."""
        return {"fossils": self.num_fossils, "validation": len(self.validation.x_ND)}

    def fit(self, symmetry: Symmetry | None = None) -> tuple[Frame, LinearGaussian]:
        """The frame and the Gaussian, under symmetries. Raises ZeroVariance, TooFewFossils."""
        self.moments.symmetry = symmetry or Symmetry()
        frame = Frame.of(self.moments)
        return frame, LinearGaussian.fit(self.moments, frame)

    def minibatches(
        self,
        source: FossilSource,
        frame: Frame,
        config: TrainConfig,
        peers: Peers = ALONE,
        *,
        is_paired: bool = False,
    ) -> "LoadedMinibatches | StreamedMinibatches":
        """Endless minibatches in the coordinates of `frame`: this process's share of each.

        With `is_paired` half of the places stay empty: each row is used for two.
        """
        if self.rows is not None:
            size = min(config.batch_size, len(self.rows.x_ND))
            return LoadedMinibatches(
                model_rows(frame, self.rows),
                size,
                peers.share((size + 1) // 2 if is_paired else size),
                num_places=(size + 1) // 2 if is_paired else size,
                seed=config.seed,
            )
        return StreamedMinibatches(
            source if peers.is_alone else source.share(peers.rank, peers.world_size),
            self.layout,
            frame,
            self.threshold,
            peers.share(source.batch_size),
            num_places=(source.batch_size + 1) // 2 if is_paired else source.batch_size,
        )


def load_data(source: FossilSource, config: TrainConfig) -> TrainingData:
    """Read all fossils once.

    Those of a mixed source are streamed in any case, since the mixture is the source's; moments,
    frame and validation set are of each fossil once.

    Raises:
        TooFewFossils, LayoutMismatch, NonFiniteField: What is wrong with them.
        UsageError: True scores come with more records than the memory limit allows.
    """
    layout = source.layout
    room = max(1, config.memory_max_bytes // (8 * (layout.size + layout.given_size)))
    kept = _Rows(layout)
    share = f"{int(config.validation_fraction * 2**32):08x}"
    moments, count, fits = Moments(layout), 0, True
    digest = hashlib.sha256(repr(layout.to_json()).encode())
    is_mixed = isinstance(source, MixedSource)
    each = source.every_fossil() if isinstance(source, MixedSource) else source.epoch()
    for minibatch in each:
        x_BD, c_BK = layout.pack(minibatch)
        cids, families = list(minibatch["_cid"]), list(minibatch["_family"])
        count += len(x_BD)
        digest.update("\n".join(cids).encode())
        fits = fits and count <= room
        # Too many to keep: from here on only those that may be validation fossils.
        take = [row for row, name in enumerate(families) if fits or _mark(name) < share]
        # The true score of the clean density, where the source knows it: fields like the record's.
        true_score = minibatch.get("_true_score")
        if true_score is not None and not fits:
            raise UsageError(
                f"true scores need all records in memory; {count} are above the limit",
                remedy="Raise memory_max_bytes, or give fewer records.",
            )
        kept.add(
            x_BD[take],
            c_BK[take],
            [cids[r] for r in take],
            [families[r] for r in take],
            layout.pack_modelled(true_score)[take] if true_score is not None else None,
        )
        if not fits:
            moments.add(x_BD, c_BK)
    if count < FOSSILS_MIN:
        raise TooFewFossils(count)
    wanted = min(config.validation_max, int(config.validation_fraction * count))
    rows, marks = kept.ordered([_mark(name) for name in kept.families])
    if not fits:
        wanted = min(wanted, sum(mark < share for mark in marks))
    num = _whole_families(marks, wanted)
    if num == 0 and fits:
        # Families are too large to set one aside: choose single fossils.
        rows, marks = kept.ordered([_mark(cid) for cid in kept.cids])
        num = wanted
    validation, trained = rows.part(slice(num)), rows.part(slice(num, None))
    threshold = (marks[num] if num < len(marks) else share) if num else ""
    if fits:
        moments = Moments(layout)
        moments.add(trained.x_ND, trained.c_NK)
    return TrainingData(
        layout=layout,
        moments=moments,
        validation=validation,
        bank_MK=trained.c_NK[:_BANK_MAX],
        num_fossils=count - num,
        rows=trained if fits and not is_mixed else None,
        threshold=threshold,
        digest=digest.hexdigest(),
    )


class LoadedMinibatches:
    """Minibatches from memory: that of step t is a pure function of (seed, t).

    Args:
        rows: All of them.
        size: Rows of a global minibatch.
        place_B: Places in it that are this process's.
        num_places: How many places are used, over all processes.
        seed: Of the order.
    """

    def __init__(
        self, rows: ModelRows, size: int, place_B: Tensor, *, num_places: int, seed: int
    ) -> None:
        self._rows = rows
        self._size = size
        self._place_B = place_B
        self.num_places = num_places
        self._per_epoch = len(rows.z_ND) // size
        self._seed = seed
        self._epoch = -1
        self._order_N = torch.zeros(0, dtype=torch.int64)

    def draw(self, step: int) -> Drawn:
        """The minibatch of step `step`, from 1. An epoch's rest below a minibatch is left out."""
        epoch, turn = divmod(step - 1, self._per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
            self._order_N = torch.randperm(len(self._rows.z_ND), generator=generator)
            self._epoch = epoch
        index = self._order_N[turn * self._size : (turn + 1) * self._size]
        return Drawn(self._rows.at(index[self._place_B]), self._place_B)

    def get_state(self) -> dict[str, Any]:
        """Nothing beside the step."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


class StreamedMinibatches:
    """Minibatches read again and again from the source, validation fossils left out.

    Args:
        source: This process's share of them.
        layout: Fields of a fossil.
        frame: The model's coordinates.
        threshold: Fossils whose mark is below it are validation fossils.
        place_B: Places of a full global minibatch that are this process's.
        num_places: Only places below this are used, over all processes.
    """

    def __init__(
        self,
        source: FossilSource,
        layout: RecordLayout,
        frame: Frame,
        threshold: str,
        place_B: Tensor,
        *,
        num_places: int,
    ) -> None:
        self._source = source
        self._layout = layout
        self._frame = frame
        self._threshold = threshold
        self._place_B = place_B
        self.num_places = num_places
        self._stream: Iterator[Mapping[str, Any]] = iter(())

    def draw(self, step: int) -> Drawn:
        """The next minibatch; of its share nothing may be left."""
        while (minibatch := next(self._stream, None)) is None:
            self._stream = self._source.epoch()
        x_BD, c_BK = self._layout.pack(minibatch)
        keep = [
            row
            for row, name in enumerate(minibatch["_family"])
            if int(self._place_B[row]) < self.num_places and _mark(name) >= self._threshold
        ]
        rows = model_rows(self._frame, Rows(x_BD[keep], c_BK[keep]))
        return Drawn(rows, self._place_B[keep])

    def get_state(self) -> dict[str, Any]:
        """The source's place."""
        return self._source.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the source to a place."""
        self._source.set_state(state)
        self._stream = self._source.epoch()


def model_rows(frame: Frame, rows: Rows) -> ModelRows:
    """Rows in the model's coordinates: the offsets are taken away in float64 before."""
    z_ND = torch.from_numpy(frame.to_model(rows.x_ND)).float()
    c_NK = torch.from_numpy(frame.given_to_model(rows.c_NK)).float()
    if rows.true_score_ND is None:
        return ModelRows(z_ND, c_NK)
    # d ln p / dz = scale * d ln p / dx.
    return ModelRows(z_ND, c_NK, torch.from_numpy(rows.true_score_ND * frame.scale_D).float())


def seed_of(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose and one number, independent of all others: 63 bits."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{number}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _mark(name: str) -> str:
    """Where a family (or CID) stands in the order in which validation fossils are taken."""
    return hashlib.sha256(f"validation:{name}".encode()).hexdigest()[:8]


def _whole_families(marks: list[str], wanted: int) -> int:
    """The most rows, at most `wanted`, that end between two marks."""
    while 0 < wanted < len(marks) and marks[wanted - 1] == marks[wanted]:
        wanted -= 1
    return wanted
