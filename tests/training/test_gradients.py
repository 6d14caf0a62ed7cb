"""The gradient of a minibatch: in parts, in bfloat16, compiled, and where memory is short."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from scf.core.errors import UsageError
from scf.models.energy_model import EnergyModel
from scf.models.losses import expected_noise
from scf.models.noise import NoiseRange
from scf.models.record import FieldLayout, RecordLayout
from scf.training.api import fit
from scf.training.compiled import CompiledLoss, plain_loss, wants_compiled
from scf.training.data import Drawn, ModelRows
from scf.training.distributed import ALONE
from scf.training.gradients import Gradients, OutOfMemory, is_want_of_memory
from scf.training.noising import Batch, noise_at, noisy
from scf.training.train_config import TrainConfig
from support.gaussian_records import record_energy
from support.processes import python_env

WIDE = RecordLayout.of([FieldLayout("x", "float64", (6,), "m")])
FIELD = RecordLayout.of([FieldLayout("x", "float64", (8, 8), "m")], boundary="periodic")
BODIES = [(WIDE, {"width": 32, "depth": 2}), (FIELD, {"body": "lattice", "width": 8, "levels": 1})]


def made(layout: RecordLayout, config: dict, num: int = 40) -> tuple[EnergyModel, Batch]:
    """A model with small random weights in its head, and a minibatch."""
    rows = np.random.default_rng(0).normal(size=(400, layout.size))
    energy = record_energy(layout, rows, **config)
    with torch.no_grad():
        energy.model.body.head.weight.normal_(std=0.3)
    z = torch.from_numpy(rows[:num]).float()
    drawn = Drawn(ModelRows(z, torch.zeros(num, 0)), torch.arange(num))
    batch = noisy(drawn, NoiseRange(), seed=0, step=1, num_places=num, is_paired=False)
    return energy.model.train(), batch


def gradients_of(model: EnergyModel, batch: Batch, **settings) -> tuple[list[torch.Tensor], float]:
    config = TrainConfig(device="cpu", **settings)
    told: list[str] = []
    gradients = Gradients(
        model, config, ALONE, is_paired=False, num_rows_max=len(batch), talk=told.append
    )
    means = gradients.of(batch)
    return [parameter.grad.clone() for parameter in model.parameters()], means.total


@pytest.mark.parametrize(("layout", "config"), BODIES, ids=["mlp", "lattice"])
@pytest.mark.parametrize("microbatch", [1, 7, 20])
def test_parts_add_up_to_the_whole(layout, config, microbatch: int) -> None:
    """However a minibatch is divided, its loss and gradient are the same to rounding."""
    model, batch = made(layout, config)
    whole, loss = gradients_of(model, batch)
    parts, loss_of_parts = gradients_of(model, batch, microbatch=microbatch)
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layout", "config"), BODIES, ids=["mlp", "lattice"])
def test_the_gradient_is_that_of_the_mean_loss(layout, config) -> None:
    """Plain backward of the mean loss gives the same."""
    model, batch = made(layout, config)
    found, total = gradients_of(model, batch, dual_weight=0.3)
    losses = plain_loss(model, batch, False)
    loss = losses.denoising_B.mean() + 0.3 * losses.dual_B.mean()
    model.zero_grad()
    loss.backward()
    assert total == pytest.approx(float(loss.detach()), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layout", "config"), BODIES, ids=["mlp", "lattice"])
def test_bfloat16_is_for_layers_alone(layout, config) -> None:
    """Energies, scores and gradients stay float32; the score's error is a few per cent at most."""
    model, batch = made(layout, config)
    z = batch.clean_BD + batch.sigma_B[:, None] * batch.noise_BD
    exact = model.derivatives(z, batch.sigma_B, batch.c_BK)
    model.body_dtype = torch.bfloat16
    rough = model.derivatives(z, batch.sigma_B, batch.c_BK)
    model.body_dtype = None
    assert {part.dtype for part in rough} == {torch.float32}
    base = model.base.energy(z, batch.sigma_B, batch.c_BK)
    of_network = exact.gradient_BD - base[1]
    error = (rough.gradient_BD - exact.gradient_BD).norm() / of_network.norm()
    assert 0 < error < 0.03  # above 0: bfloat16 is at work
    # Sums in float32: an energy of 100 nats keeps its second digit after the point.
    assert (rough.energy_B - exact.energy_B).abs().max() < 0.02 * model.layout.size**0.5

    plain, loss = gradients_of(model, batch)
    half, loss_of_half = gradients_of(model, batch, precision="bf16")
    assert model.body_dtype is None
    assert loss_of_half == pytest.approx(loss, rel=0.02)
    gap = torch.cat([(a - b).flatten() for a, b in zip(plain, half, strict=True)]).norm()
    assert 0 < gap / torch.cat([a.flatten() for a in plain]).norm() < 0.05
    assert {gradient.dtype for gradient in half} == {torch.float32}


@pytest.mark.parametrize(("layout", "config"), BODIES, ids=["mlp", "lattice"])
def test_the_compiled_path_has_the_same_gradients(layout, config) -> None:
    """torch.func.grad inside a compiled loss: losses and gradients of plain double backward."""
    model, batch = made(layout, config, num=12)
    told: list[str] = []
    loss_of = CompiledLoss(told.append, backend="aot_eager")
    found = {}
    for name, compute in (("plain", plain_loss), ("compiled", loss_of)):
        losses = compute(model, batch, False)
        model.zero_grad()
        (losses.denoising_B.mean() + 0.05 * losses.dual_B.mean()).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        found[name] = [losses.denoising_B.detach(), losses.dual_B.detach(), *gradients]
    assert loss_of.reason == ""
    assert len(told) == 1
    for one, other in zip(found["plain"], found["compiled"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_training_goes_on(monkeypatch) -> None:
    """The reason is told in plain words, once, and the plain loss is used."""
    monkeypatch.setenv("PATH", "/nowhere")
    model, batch = made(*BODIES[0])
    told: list[str] = []
    loss_of = CompiledLoss(told.append)
    for _ in range(2):
        torch.testing.assert_close(
            loss_of(model, batch, False).denoising_B, plain_loss(model, batch, False).denoising_B
        )
    assert told == [
        "the training step is not compiled: there is no C++ compiler here; going on without"
    ]


def test_compiled_by_itself_on_cuda_only() -> None:
    """A minute of compiling is not worth it for a short run on a CPU."""
    assert not wants_compiled("auto", torch.device("cpu"))
    assert wants_compiled("on", torch.device("cpu"))
    assert wants_compiled("auto", torch.device("cuda"))
    assert not wants_compiled("off", torch.device("cuda"))


LIMITED = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from training.test_gradients import WIDE, gradients_of, made
from scf.training.distributed import ALONE
from scf.training.gradients import Gradients, OutOfMemory
from scf.training.train_config import TrainConfig

model, batch = made(WIDE, {"width": 256, "depth": 4}, num=400)
batch = type(batch)(*(None if p is None else p.repeat(40, *[1] * (p.dim() - 1)) for p in batch))
gradients_of(model, batch.part(slice(0, 64)))  # what loads late is loaded
used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")))
room = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, ((used * 1024 + room), resource.RLIM_INFINITY))
gradients = Gradients(
    model, TrainConfig(device="cpu"), ALONE, is_paired=False, num_rows_max=len(batch), talk=print
)
try:
    found = gradients.of(batch)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again = gradients_of(model, batch, microbatch=500)[1]
    print("same" if abs(found.total - again) < 1e-4 * again else f"{found} is not {again}")
    print("microbatch", gradients.microbatch)
except OutOfMemory as error:
    print("OutOfMemory", error)
"""


def limited(room: int) -> str:
    """What a process says that computes a gradient with so many more bytes to be had."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(room)], capture_output=True, text=True, timeout=240,
        env=python_env(PYTHONPATH="tests", MALLOC_ARENA_MAX="1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are Linux's")
def test_short_memory_halves_the_part_and_says_so() -> None:
    """Under a real limit: smaller parts until they fit, and the gradient's loss is the same."""
    told = limited(600_000_000)
    assert "out of memory with 16000 fossils in one pass: going on with 8000" in told
    assert "same" in told
    assert int(told.split()[-1]) < 16000


def test_one_fossil_too_many_is_a_named_error() -> None:
    """Where parts cannot be made smaller, the error says what to do."""
    error = OutOfMemory(1, "you tried to allocate 5 bytes")
    assert "1 fossils in one pass" in str(error)
    assert "microbatch" in error.remedy
    assert is_want_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_want_of_memory(RuntimeError("shapes differ"))


def test_noise_of_a_row_does_not_depend_on_who_draws_it() -> None:
    """A function of seed, step and place: of the whole minibatch, of every third row, of one."""
    for num in (2, 192, 40_000):
        whole = noise_at(torch.arange(50), num, seed=3, step=7)
        for places in (torch.arange(1, 50, 3), torch.tensor([49]), torch.tensor([5, 0, 31])):
            torch.testing.assert_close(
                noise_at(places, num, seed=3, step=7), whole[places], rtol=0, atol=0
            )
        assert whole.mean().abs() < 0.2
        assert (whole.std() - 1).abs() < 0.1
        assert len(torch.unique(whole[:, 0])) == 50


@pytest.mark.parametrize("is_paired", [False, True])
def test_targets_are_shared_within_groups_of_records(is_paired: bool, monkeypatch) -> None:
    """Rows of 10 records in groups of 4: each aims at the mean over its own group's records."""
    monkeypatch.setattr("scf.training.noising._GROUP_MAX", 4)
    z = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    drawn = Drawn(ModelRows(z, torch.zeros(10, 0)), torch.arange(10))
    settings = {"seed": 0, "step": 1, "num_places": 10, "is_paired": is_paired}
    own = noisy(drawn, NoiseRange(), **settings)
    shared = noisy(drawn, NoiseRange(), is_shared=True, **settings)
    torch.testing.assert_close(shared.noise_BD, own.noise_BD)
    assert own.expected is None
    for row in range(len(own)):
        group = z[row % 10 // 4 * 4 : row % 10 // 4 * 4 + 4]
        wanted = expected_noise(
            own.clean_BD[row : row + 1],
            own.noise_BD[row : row + 1],
            own.sigma_B[row : row + 1],
            among_MD=group,
        )
        torch.testing.assert_close(shared.expected.noise_BD[row : row + 1], wanted.noise_BD)
        torch.testing.assert_close(shared.expected.square_B[row : row + 1], wanted.square_B)


def test_sharing_is_for_records_that_are_alike() -> None:
    """Given fields or a true score: each row its own target, and an error where it is asked for."""
    rng = np.random.default_rng(0)
    arrays = {"force": rng.normal(size=(100, 1)), "place": rng.normal(size=(100, 1))}
    asked = {"preset": "tiny", "max_steps": 1, "targets": "shared", "calibration_particles": 0}
    with pytest.raises(UsageError, match="given fields"):
        fit(arrays, given=["force"], **asked)
    with pytest.raises(UsageError, match="true score"):
        fit(arrays["place"], true_score=-arrays["place"], **asked)
