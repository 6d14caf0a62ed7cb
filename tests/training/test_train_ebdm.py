"""Training, from arrays to a checkpoint that scores; stopping and going on; what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scf.core.errors import MissingTool, UsageError
from scf.models.frame import ZeroVariance
from scf.storage.partitions import Folder
from scf.training.checkpoint import load_energy, newest
from scf.training.checkpoint_files import (
    CheckpointDamaged,
    checkpoint_digest,
    read_config,
    read_state,
    verify_digests,
)
from scf.training.notes import Interrupted, Notes, StopSignal
from scf.training.starting import ParentMismatch, what_fails_on
from scf.training.tensorboard import Board
from scf.training.train_config import TrainConfig
from scf.training.train_ebdm import Diverged, main, train
from support.gaussian_records import (
    POINT,
    ArraySource,
    exact_energy,
    gaussian_points,
    record_energy,
    solar_days,
    write_points,
)

SMALL = {
    "width": 24, "depth": 1, "site_width": 8, "batch_size": 64, "evaluate_every": 20,
    "warmup_steps": 10, "max_seconds": 60.0, "max_steps": 60, "calibration_particles": 128,
    "threads": 1, "device": "cpu",
}  # fmt: skip


def config(**changes) -> TrainConfig:
    return TrainConfig(**(SMALL | changes))


def points(num: int = 600, **options) -> ArraySource:
    return ArraySource({"x": gaussian_points(num)}, **options)


class Curve(Notes):
    """Remembers the loss of every step."""

    def __init__(self) -> None:
        super().__init__(talk=lambda _: None)
        self.losses: list[tuple[int, float]] = []

    def step(self, config, progress, losses) -> None:
        self.losses.append((progress.step, losses[0]))


class StopAfter(StopSignal):
    """SIGTERM, as it were, once so many steps are done."""

    def __init__(self, curve: Curve, steps: int) -> None:
        self._curve, self._steps = curve, steps

    @property
    def is_set(self) -> bool:
        return len(self._curve.losses) >= self._steps


def test_energies_of_gaussian_points_are_normalised(tmp_path: Path) -> None:
    """After a short run -ln N(x; mu, C + sigma^2) within a tenth of a nat, in the data's units."""
    train(
        ArraySource({"x": 10 * gaussian_points(3000)}), Folder.at(tmp_path), config(max_steps=300)
    )
    energy = load_energy(tmp_path)
    x = gaussian_points(500, seed=1)
    for sigma in (0.3, 1.0):
        truth = exact_energy(x, sigma) + 2 * np.log(10)
        found = energy.energy(10 * x, 10 * sigma, np.zeros((500, 0)))
        assert np.abs(found - truth).mean() < 0.1


def test_two_humps_are_learned(tmp_path: Path) -> None:
    """What no Gaussian can say: the valley between two clusters is less likely than both."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 1)) * 0.3 + rng.choice([-2.0, 2.0], size=(2000, 1))
    train(ArraySource({"x": x}), Folder.at(tmp_path), config(max_steps=500, learning_rate=5e-3))
    e = load_energy(tmp_path).energy(np.array([[-2.0], [0.0], [2.0]]), 0.2, np.zeros((3, 0)))
    assert e[1] > e[0] + 2
    assert e[1] > e[2] + 2


@pytest.mark.parametrize("memory", [2_000_000_000, 2000], ids=["loaded", "streamed"])
def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path, memory: int) -> None:
    """Same losses, bit for bit, and the same weights, whenever the run was cut."""
    settings = config(max_steps=40, memory_max_bytes=memory)
    whole, first, second = Curve(), Curve(), Curve()
    train(points(), Folder.at(tmp_path / "whole"), settings, notes=whole)

    out = Folder.at(tmp_path / "cut")
    progress = train(points(), out, settings, notes=first, stop=StopAfter(first, 17))
    assert (progress.status, progress.step) == ("stopped", 17)
    train(points(), out, settings, notes=second, resume=True)

    assert first.losses + second.losses == whole.losses
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_longer_limit_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    """Limits are not part of the path: 20 steps and then 20 more are the first 40."""
    whole, parts = Curve(), Curve()
    train(points(), Folder.at(tmp_path / "whole"), config(max_steps=40), notes=whole)
    for limit in (20, 40):
        train(
            points(),
            Folder.at(tmp_path / "parts"),
            config(max_steps=limit),
            notes=parts,
            resume=True,
        )
    assert parts.losses == whole.losses


def test_a_checkpoint_on_the_way_can_be_resumed(tmp_path: Path) -> None:
    """Killed after a checkpoint: `resume/` holds one, and the curve goes on from it."""
    settings = config(max_steps=30, checkpoint_every_s=1e-6)
    whole, second = Curve(), Curve()
    train(points(), Folder.at(tmp_path / "whole"), settings, notes=whole)

    class Killed(Exception):
        pass

    class Dies(Curve):
        def step(self, config, progress, losses) -> None:
            if progress.step == 13:
                raise Killed

    out = Folder.at(tmp_path / "killed")
    with pytest.raises(Killed):
        train(points(), out, settings, notes=Dies())
    assert newest(out.path) == out.path / "resume" / "step-000000012"
    train(points(), out, settings, notes=second, resume=True)
    assert second.losses == whole.losses[12:]
    assert not (out.path / "resume").exists()


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    """Resuming what is complete writes nothing new: the job can be repeated."""
    out = Folder.at(tmp_path)
    train(points(), out, config())
    digest = checkpoint_digest(tmp_path)
    progress = train(points(), out, config(), resume=True)
    assert (progress.step, checkpoint_digest(tmp_path)) == (60, digest)


def test_an_old_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    """Without --resume a folder that holds a checkpoint is refused."""
    train(points(), Folder.at(tmp_path), config(max_steps=5))
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        train(points(), Folder.at(tmp_path), config(max_steps=5))


def test_divergence_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A loss that is not finite stops the run by name; what stood before stays whole."""
    out = Folder.at(tmp_path)
    train(points(), out, config(max_steps=10))
    digest = checkpoint_digest(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["training"]["learning_rate"] = 1e30
    from scf.training.checkpoint_files import digests_of

    (tmp_path / "config.json").write_text(json.dumps(stored))
    files = {n: (tmp_path / n).read_bytes() for n in verify_names(tmp_path)}
    (tmp_path / "digests.json").write_text(json.dumps(digests_of(files)))
    digest = checkpoint_digest(tmp_path)

    with pytest.raises(Diverged, match="diverged at step"):
        train(points(), out, config(max_steps=100), resume=True)

    assert checkpoint_digest(tmp_path) == digest
    verify_digests(tmp_path)


def verify_names(path: Path) -> list[str]:
    return list(json.loads((path / "digests.json").read_text()))


def test_physics_and_given_fields_go_through(tmp_path: Path) -> None:
    """Solar days with closure: trained given cos_zenith, stored with their constraints."""
    days, units = solar_days(150)
    source = ArraySource(days, units=units, given=("cos_zenith",))
    train(source, Folder.at(tmp_path), config(max_steps=20))
    stored = read_config(tmp_path)
    assert "closure" in stored["constraints"]
    assert stored["unit_scales"].keys() == {"W/m2"}
    energy = load_energy(tmp_path)
    x, c = energy.layout.pack(days)
    assert np.isfinite(energy.energy(x, 10.0, c)).all()


def test_a_child_goes_on_from_its_parent(tmp_path: Path) -> None:
    """With a parent the frame is the parent's and the weights begin where they stood."""
    train(points(), Folder.at(tmp_path / "parent"), config())
    child_points = ArraySource({"x": gaussian_points(600, seed=7)})
    settings = config(max_steps=1, learning_rate=1e-9, parent=str(tmp_path / "parent"))
    train(child_points, Folder.at(tmp_path / "child"), settings)
    parent, child = (load_energy(tmp_path / name) for name in ("parent", "child"))
    np.testing.assert_array_equal(parent.frame.scale_D, child.frame.scale_D)
    x, c = gaussian_points(50, seed=3), np.zeros((50, 0))
    gap = parent.score(x, 0.5, c) - child.score(x, 0.5, c)
    assert np.abs(gap).max() < 1e-3
    assert read_config(tmp_path / "child")["parent"] == checkpoint_digest(tmp_path / "parent")


def test_a_child_that_does_no_better_keeps_its_parent_s_weights(tmp_path: Path) -> None:
    """Steps that ruin the weights: what is kept is what the child began with."""
    train(points(), Folder.at(tmp_path / "parent"), config(max_steps=200))
    wild = config(parent=str(tmp_path / "parent"), learning_rate=0.5, max_steps=20)
    progress = train(points(), Folder.at(tmp_path / "child"), wild)
    assert progress.best_step == 0
    assert [step for step, _ in progress.validation] == [0, 20]
    parent, child = (load_energy(tmp_path / name) for name in ("parent", "child"))
    for one, other in zip(parent.model.parameters(), child.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_parent_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Other fields, or another network: named, before any step."""
    train(points(), Folder.at(tmp_path / "parent"), config(max_steps=1))
    other = ArraySource({"y": gaussian_points(100)})
    with pytest.raises(ParentMismatch, match="fields"):
        train(other, Folder.at(tmp_path / "a"), config(parent=str(tmp_path / "parent")))
    with pytest.raises(ParentMismatch, match="network"):
        train(
            points(), Folder.at(tmp_path / "b"), config(width=32, parent=str(tmp_path / "parent"))
        )


def test_a_field_that_never_moves_is_named(tmp_path: Path) -> None:
    """Zero variance stops the run before the first step."""
    arrays = {"x": gaussian_points(100), "flat": np.full((100, 3), 4.0)}
    with pytest.raises(ZeroVariance, match="flat"):
        train(ArraySource(arrays), Folder.at(tmp_path), config())


def test_a_truncated_checkpoint_is_damaged(tmp_path: Path) -> None:
    """Half a safetensors file is refused by name."""
    train(points(), Folder.at(tmp_path), config(max_steps=2))
    path = tmp_path / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointDamaged, match=r"ema.safetensors"):
        load_energy(tmp_path)


def test_a_run_without_progress_ends_by_itself(tmp_path: Path, monkeypatch) -> None:
    """Once the validation loss has long stopped falling, the budget is not spent."""
    monkeypatch.setattr("scf.training.train_ebdm._PATIENCE_STEPS_MIN", 10)
    progress = train(points(), Folder.at(tmp_path), config(max_steps=5000, patience=2.0))
    assert progress.stop_reason == "patience"
    assert progress.step < 5000


def test_sigterm_writes_a_checkpoint_and_ends_well(tmp_path: Path) -> None:
    """The program, told to stop: exit code 0, state `stopped`, notes to the end, resumable."""
    write_points(tmp_path / "points.ndjson", gaussian_points(300))
    out, notes = tmp_path / "out", tmp_path / "notes.ndjson"
    command = [
        sys.executable, "-m", "scf.training.train_ebdm", "--fossils", str(tmp_path / "points.ndjson"),
        "--out", str(out), "--preset", "tiny", "--max-seconds", "100", "--progress", str(notes),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    for _ in range(3000):
        if notes.exists() and len(notes.read_text().splitlines()) >= 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    # Ten seconds are promised, half a second is usual; here it may be busy.
    _, told = process.communicate(timeout=300)

    assert process.returncode == 0, told
    assert read_state(out)["status"] == "stopped"
    verify_digests(out)
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    assert lines[-1]["event"] == "finished"
    assert {"step", "loss", "steps_per_s", "eta_s"} <= set(lines[0])

    again = subprocess.run(
        [*command, "--resume", "--max-steps", str(read_state(out)["step"] + 5)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert read_state(out)["status"] == "completed"


def test_a_signal_ends_what_can_be_done_without(tmp_path: Path, monkeypatch) -> None:
    """Told to stop while the normaliser is measured: the weights are written, resume does the rest."""
    stop = StopSignal()

    def told_in_the_middle(*_args, **_options) -> None:
        stop._remember(signal.SIGTERM, None)
        raise AssertionError("the signal did not end this")

    monkeypatch.setattr("scf.training.train_ebdm.calibrate", told_in_the_middle)
    progress = train(points(), Folder.at(tmp_path), config(max_steps=5), stop=stop)
    assert (progress.status, progress.step) == ("stopped", 5)
    verify_digests(tmp_path)
    monkeypatch.undo()
    progress = train(points(), Folder.at(tmp_path), config(max_steps=5), resume=True)
    assert (progress.status, progress.step) == ("completed", 5)


def test_a_signal_while_reading_leaves_all_as_it_was(tmp_path: Path) -> None:
    """No step was taken, so there is nothing to write; the reading ends at once."""
    stop = StopSignal()

    class Slow(ArraySource):
        def epoch(self):
            yield next(super().epoch())
            stop._remember(signal.SIGTERM, None)
            raise AssertionError("the signal did not end this")

    with pytest.raises(Interrupted):
        train(Slow({"x": gaussian_points(600)}), Folder.at(tmp_path), config(), stop=stop)
    assert not list(tmp_path.iterdir())


def test_notes_tell_where_a_run_stands(tmp_path: Path) -> None:
    """Loss, rate, time left, and from the first look on energy gap and score error; for people too."""
    told: list[str] = []
    notes = Notes(tmp_path / "notes.ndjson", every_step=True, talk=told.append)
    notes.board = Board(tmp_path / "curves")
    train(points(), Folder.at(tmp_path / "out"), config(max_steps=45), notes=notes)
    lines = [json.loads(line) for line in (tmp_path / "notes.ndjson").read_text().splitlines()]
    assert [line["step"] for line in lines[:-1]] == list(range(1, 46))
    assert {"loss", "denoising", "dual", "steps_per_s", "learning_rate", "eta_s"} <= set(lines[0])
    assert lines[0]["score_error"] is None
    assert 0.5 < lines[44]["score_error"] < 1.5  # the points are Gaussian: nothing to gain
    assert abs(lines[44]["energy_gap_nats"]) < 1
    assert told[0].startswith("step      1  loss ")
    assert any(path.stat().st_size > 1000 for path in (tmp_path / "curves").iterdir())


def test_tensorboard_may_be_absent(tmp_path: Path, monkeypatch) -> None:
    """Asked for and not installed: a named error with the extra to install."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingTool, match="tensorboard") as caught:
        Board(tmp_path)
    assert "scf[tensorboard]" in caught.value.remedy


def test_a_device_that_lacks_something_is_noticed() -> None:
    """One step is tried; the reason is told. (The meta device has no numbers.)"""
    energy = record_energy(POINT, gaussian_points(100))
    assert what_fails_on(torch.device("cpu"), energy) == ""
    assert what_fails_on(torch.device("meta"), energy) != ""


def test_bad_input_ends_with_a_named_error(tmp_path: Path) -> None:
    """A missing file: exit code 1, the reason on stderr and in the notes."""
    notes = tmp_path / "notes.ndjson"
    ended = subprocess.run(
        [
            sys.executable, "-m", "scf.training.train_ebdm", "--fossils", str(tmp_path / "nowhere"),
            "--out", str(tmp_path / "out"), "--progress", str(notes),
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "no such file" in ended.stderr
    assert "`scf fossil validate`" in ended.stderr
    note = json.loads(notes.read_text())
    assert (note["event"], note["kind"]) == ("error", "bad_data")


def test_what_is_left_out_is_told(tmp_path: Path, capsys) -> None:
    """Lines that are no fossils: how many of which kind, and where the first stands."""
    path = tmp_path / "points.ndjson"
    write_points(path, gaussian_points(100))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{half a li", *lines[3:]]) + "\n")
    given = ["--fossils", str(path), "--out", str(tmp_path / "out"), "--preset", "tiny"]
    assert main([*given, "--max-steps", "2", "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert f"left out: 1 json; first {path}, line 4: not JSON" in told


def test_resumed_with_other_fossils_is_refused(tmp_path: Path) -> None:
    """The fields are not those that the run was begun with; the checkpoint stays."""
    train(points(), Folder.at(tmp_path), config(max_steps=2))
    digest = checkpoint_digest(tmp_path)
    other = ArraySource({"y": gaussian_points(100)})
    with pytest.raises(ParentMismatch, match="the checkpoint to resume: its fields"):
        train(other, Folder.at(tmp_path), config(max_steps=4), resume=True)
    assert checkpoint_digest(tmp_path) == digest


def test_a_network_that_no_memory_holds_is_an_error_with_a_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """400 terabytes of weights: exit code 1, a sentence and a remedy, no traceback."""
    write_points(tmp_path / "points.ndjson", gaussian_points(40))
    (tmp_path / "c.json").write_text(json.dumps({**SMALL, "width": 10**7}))

    code = main(
        ["--fossils", str(tmp_path / "points.ndjson"), "--out", str(tmp_path / "out"),
         "--config", str(tmp_path / "c.json")]
    )  # fmt: skip

    said = capfd.readouterr().err
    assert code == 1
    assert "out of memory outside of a training step" in said
    assert "smaller width" in said
    assert newest(tmp_path / "out") is None
