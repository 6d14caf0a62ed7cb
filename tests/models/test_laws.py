"""Each law is kept by solutions made another way, and broken by fields that are none."""

import math

import pytest
import torch

from scf.core.errors import UsageError
from scf.models import laws
from scf.models.physics import PhysicsConstraint, constraints_for, forget, register
from scf.models.stencils import derivative

# Shapes: fields [B, T, X].
NUM, DT = 64, 1e-3
DX = 2 * math.pi / NUM
X = torch.arange(NUM, dtype=torch.float64) * DX
TIME = torch.arange(9, dtype=torch.float64) * DT


def integrated(rate, start: torch.Tensor) -> torch.Tensor:
    """Runge-Kutta 4 with a Fourier right-hand side: nothing of the stencils is in it."""
    states = [start]
    for _ in range(8):
        u = states[-1]
        k1 = rate(u)
        k2 = rate(u + DT / 2 * k1)
        k3 = rate(u + DT / 2 * k2)
        states.append(u + DT / 6 * (k1 + 2 * k2 + 2 * k3 + rate(u + DT * k3)))
    return torch.stack(states)[None]


def spectral(u: torch.Tensor, order: int) -> torch.Tensor:
    k = torch.fft.fftfreq(NUM, 1 / NUM, dtype=torch.float64)
    return torch.fft.ifft((1j * k) ** order * torch.fft.fft(u)).real


START = 0.6 * torch.sin(X) + 0.3 * torch.cos(2 * X) + 0.2
KWARGS = {"dt": DT, "dx": DX, "tolerance": 0.01}


@pytest.mark.parametrize(
    ("law", "rate", "scale"),
    [
        (laws.heat("u", diffusivity=0.5, **KWARGS), lambda u: 0.5 * spectral(u, 2), 0.8),
        (
            laws.burgers("u", viscosity=0.1, **KWARGS),
            lambda u: 0.1 * spectral(u, 2) - spectral(u * u / 2, 1),
            0.6,
        ),
        (
            laws.allen_cahn("u", width=0.3, **KWARGS),
            lambda u: 0.09 * spectral(u, 2) + u - u**3,
            0.5,
        ),
    ],
)
def test_evolution_laws_know_their_solutions(law, rate, scale: float) -> None:
    """The residual of a solution is small against du/dt; that of a field at rest is du/dt."""
    u = integrated(rate, START)
    assert float(law.residual({"u": u}).abs().mean()) < 0.01 * scale
    at_rest = START.expand(1, 9, NUM)
    assert float(law.residual({"u": at_rest}).abs().mean()) > 0.15 * scale


def test_gray_scott_knows_its_solutions() -> None:
    law = laws.gray_scott("u", "v", diffusivities=(0.02, 0.01), feed=0.04, kill=0.06, **KWARGS)

    def rate(both: torch.Tensor) -> torch.Tensor:
        u, v = both
        du = 0.02 * spectral(u, 2) - u * v * v + 0.04 * (1 - u)
        dv = 0.01 * spectral(v, 2) + u * v * v - 0.1 * v
        return torch.stack([du, dv])

    solved = integrated(rate, torch.stack([START + 0.4, 0.5 - 0.3 * torch.sin(X)]))
    fields = {"u": solved[:, :, 0], "v": solved[:, :, 1]}
    assert float(law.residual(fields).abs().mean()) < 1e-3
    assert float(law.residual({**fields, "v": fields["v"].flip(1)}).abs().mean()) > 0.02


def test_darcy_is_zero_for_the_exact_pressure() -> None:
    """K = 2 everywhere, -(K p')' = 1 along x, made two-dimensional by nothing along y: p = sum."""
    n = 16
    dx = 1 / n
    x = (torch.arange(n, dtype=torch.float64) + 0.5) * dx
    # -lap p = 1/2 with p = 0 on the edge has no short closed form; so check the operator's sum: the
    # flow through the edge equals the source, for the pressure that the operator itself gives.
    law = laws.darcy("p", "log_k", source=1.0, dx=dx, tolerance=0.01)
    log_k = torch.full((1, n, n), math.log(2.0), dtype=torch.float64)
    unit = torch.eye(n * n, dtype=torch.float64).view(-1, n, n)
    nothing = law.residual({"p": torch.zeros_like(unit), "log_k": log_k.expand(n * n, n, n)})
    matrix = law.residual({"p": unit, "log_k": log_k.expand(n * n, n, n)}) - nothing
    p = torch.linalg.solve(matrix.reshape(n * n, -1).T, -nothing[0].reshape(-1)).view(1, n, n)
    # Series solution of -lap p = 1/2 on the unit square at its centre: 0.0736713 / 2.
    middle = p[0, n // 2 - 1 : n // 2 + 1, n // 2 - 1 : n // 2 + 1].mean()
    assert float(middle) == pytest.approx(0.0736713 / 2, rel=0.01)
    assert float(law.residual({"p": p, "log_k": log_k}).abs().max()) < 1e-9
    assert x[0] < x[-1]


def test_conservation_divergence_and_decay() -> None:
    u = integrated(lambda v: 0.5 * spectral(v, 2), START)
    kept = laws.conserved("u", tolerance=1e-6, unit="1")
    assert float(kept.residual({"u": u}).abs().max()) < 1e-12
    assert float(kept.residual({"u": u * (1 + TIME[:, None])}).abs().mean()) > 1e-5

    falls = laws.energy_decays("u", lambda v: v.square().mean(dim=-1), tolerance=1e-6, unit="1")
    assert float(falls.residual({"u": u}).max()) == 0
    assert float(falls.residual({"u": u.flip(1)}).max()) > 1e-6

    stream = torch.randn(2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = {"a": derivative(stream, 1), "b": -derivative(stream, 0)}
    free = laws.divergence_free(["a", "b"], dx=1.0, tolerance=1e-6)
    assert float(free.residual(flow).abs().max()) < 1e-12
    assert float(free.residual({**flow, "b": flow["a"]}).abs().mean()) > 0.1


def test_a_bounded_field_says_how_far_it_is_outside() -> None:
    law = laws.bounded_field("u", lower=0.0, upper=1.0, tolerance=0.1, unit="1")
    found = law.residual({"u": torch.tensor([[-0.5, 0.5, 1.25]])})
    assert found.tolist() == [[0.5, 0.0, 0.25]]
    assert law.bound is not None


def test_a_law_of_one_s_own_in_ten_lines() -> None:
    """As the module's docstring has it: registered, known to records that have its fields."""

    def residual(fields):
        u = fields["u"]
        flux = derivative(u**2 / 2, axis=1, spacing=DX)
        return laws.midpoint_step(u, -flux, dt=DT)

    advection = PhysicsConstraint(
        name="advection", unit="m/s2", needs=("u",), residual=residual, tolerance=0.05
    )
    register(advection)
    try:
        assert advection in constraints_for(["u", "other"])
        u = integrated(lambda v: -spectral(v * v / 2, 1), START)
        assert float(advection.residual({"u": u}).abs().mean()) < 0.01
    finally:
        forget("advection")
    assert advection not in constraints_for(["u"])


def test_a_built_in_name_is_taken() -> None:
    with pytest.raises(UsageError, match="closure"):
        register(PhysicsConstraint(name="closure", unit="", needs=("u",), residual=lambda f: f["u"],
                                   tolerance=1.0))  # fmt: skip
