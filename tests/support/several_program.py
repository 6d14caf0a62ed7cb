"""What each process of a test under torchrun does: a few short runs, one after another.

    several_program.py FOLDER CASES.json

Each case is {name, settings, resume, dies_at}. Points come from FOLDER/points.ndjson, checkpoint and notes go
to FOLDER/<name>. At the end each says something else, which all must notice. One start serves many cases: most of a short run is importing torch.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

from scf.storage.partitions import Folder
from scf.training.distributed import ALONE, Peers, PeersDiffer, end_process
from scf.training.fossils import open_source
from scf.training.notes import Notes
from scf.training.train_config import TrainConfig
from scf.training.train_ebdm import train


class PowerCut(Exception):
    """Ends a run that is to leave no final checkpoint."""


def run_case(folder: Path, case: dict, peers: Peers = ALONE) -> None:
    """Train once, as `train_ebdm.main` does, with a note for every step."""
    config = TrainConfig(**case["settings"])
    source = open_source(
        [folder / "points.ndjson"], plan=None, vault=None, batch_size=config.batch_size,
        seed=config.seed, memory_bytes=config.memory_max_bytes,
    )  # fmt: skip
    notes = Notes(folder / f"{case['name']}.ndjson" if peers.is_first else None, every_step=True)
    notes.talk = lambda _: None
    if dies_at := case.get("dies_at"):
        # Between two steps, as if all machines lost their power at once: checkpoints stay as they lie.
        took = notes.step

        def until(config, progress, losses):
            took(config, progress, losses)
            if progress.step == dies_at:
                raise PowerCut

        notes.step = until
    out = Folder.at(folder / case["name"]) if peers.is_first else None
    with contextlib.closing(source), contextlib.suppress(PowerCut):
        train(source, out, config, resume=case.get("resume", False), notes=notes, peers=peers)


if __name__ == "__main__":
    together = Peers.join(os.environ, limit_s=60.0)
    for case in json.loads(Path(sys.argv[2]).read_text()):
        run_case(Path(sys.argv[1]), case, together)
    with contextlib.suppress(PeersDiffer):
        together.check_same("fossils", [str(together.rank).encode()])
        raise AssertionError("nobody noticed that the processes see different fossils")
    together.leave()
    end_process(0)
