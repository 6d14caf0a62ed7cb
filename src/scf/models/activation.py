"""Functions of one number for networks that are derived twice, second derivatives written out.

An energy's training step needs the derivative of the derivative. Torch takes that of SiLU by a
chain of a dozen elementwise kernels; written out it is six. On (128, 64, 16) numbers the
activation's share of a step falls from 0.9 to 0.4 ms (one thread). Values are torch's.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

BOUND = 5.0
_ROOT_HALF = math.sqrt(0.5)
_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)


class _SiluGradient(Function):
    """g silu'(x), as a function of both."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        slope: Tensor = torch.ops.aten.silu_backward(g, x)
        return slope

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        s = torch.sigmoid(x)
        # silu'' = s (1 - s) (2 + x (1 - 2 s)); sigmoid_backward(a, s) is a s (1 - s).
        bend = torch.addcmul(x, x, s, value=-2).add_(2).mul_(g).mul_(outer)
        aten = torch.ops.aten
        return aten.silu_backward(outer, x), aten.sigmoid_backward(bend, s)


class _Silu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = _SiluGradient.apply(g, x)  # type: ignore[no-untyped-call]
        return slope


def silu(x: Tensor) -> Tensor:
    """Give x sigmoid(x), with first and second derivatives (no third)."""
    if torch.compiler.is_compiling():  # the compiler fuses torch's own chain
        return torch.nn.functional.silu(x)
    value: Tensor = _Silu.apply(x)  # type: ignore[no-untyped-call]
    return value


class _BoundedGradient(Function):
    """g b'(x), b' = (1 + x^2/25)^(-3/2)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, root: Tensor) -> Tensor:
        cube = root * root * root
        ctx.save_for_backward(g, x, root, cube)
        return g * cube

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:
        g, x, root, cube = ctx.saved_tensors
        bend = (x * cube).mul_(root).mul_(root).mul_(g).mul_(outer).mul_(-3 / BOUND**2)
        return outer * cube, bend, None


class _Bounded(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = torch.addcmul(torch.ones((), dtype=x.dtype, device=x.device), x, x,
                             value=1 / BOUND**2).rsqrt_()  # fmt: skip
        ctx.save_for_backward(x, root)
        return x * root

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, root = ctx.saved_tensors
        slope: Tensor = _BoundedGradient.apply(g, x, root)  # type: ignore[no-untyped-call]
        return slope


def bounded(x: Tensor) -> Tensor:
    """Inputs kept within +-5, smoothly: x / sqrt(1 + x^2/25).

    So the network's part of the energy is bounded, and far from all data the Gaussian rules.
    Without it a network's linear growth can win over the quadratic for a long way: energies of
    -41,000 nats were seen at 6 scales from the data, where nothing should look normal.
    """
    if torch.compiler.is_compiling():
        return x * torch.rsqrt(1 + x.square() / BOUND**2)
    value: Tensor = _Bounded.apply(x)  # type: ignore[no-untyped-call]
    return value


class _Mills(Function):
    """r(x) = N(x) / Phi(x), the inverse Mills ratio, with r' = -r (x + r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # erfcx is infinite far to the right, where r is zero to all digits.
        r: Tensor = _ROOT_2_OVER_PI / torch.special.erfcx(x * -_ROOT_HALF)
        ctx.save_for_backward(x, r)
        return r

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, r = ctx.saved_tensors
        # Far to the left x + r is -1/x, a difference of large numbers.
        slope: Tensor = -g * r * torch.where(x < -30.0, -1 / x, x + r)
        return slope


class _LogPhi(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value: Tensor = torch.special.log_ndtr(x)
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = _Mills.apply(x)  # type: ignore[no-untyped-call]
        return g * slope


def log_phi(x: Tensor) -> Tensor:
    """Give ln Phi(x), Phi the normal distribution's: first and second derivatives are finite.

    Torch's own second derivative of it is NaN from x = 13 on (float32).
    """
    value: Tensor = _LogPhi.apply(x)  # type: ignore[no-untyped-call]
    return value


def widely_bounded(x: Tensor) -> Tensor:
    """Give x / (1 + (x/6)^4)^(1/4): x to 1.5 per cent up to three, and never six."""
    square = x * x * (1 / 36.0)
    return x * torch.addcmul(torch.ones_like(x), square, square).pow(-0.25)
