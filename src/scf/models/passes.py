"""Networks in four passes written by hand, so that an energy's score is trained by one backward.

The loss of an energy F(x; W) depends on F and on its derivatives by the inputs. Given how the loss
changes with them (g for F, v for dF/dx), its gradient by the weights is that of

    D(W) = g F + dF/dx . v                                                                       (1)

Plain double backward finds it through a graph of the graph. Written out, each layer does four
things, and every number is computed once:

    forward  x -> y
    pull     a_y -> a_x      a = dF/d(.), from the output back: gives the score
    push     t_x -> t_y      t = d(.)/dx . v, a tangent
    back     b_y -> b_x      b = dD/d(.) along the values; the weights' gradient is a t + b x

A dense layer multiplies six times: forward, pull, push and back once, weights twice. A network
that gives the score itself multiplies three times, so 2.0 is the floor of the ratio of their steps.
`tests/models/test_passes.py` holds all of it to plain double backward in float64.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Shapes: B minibatch, S sites, N rows (B S of them), E noise embedding, I and W features.

WeightGradients = dict[Tensor, Tensor]


class Step(Protocol):
    """A part of a network. It keeps between passes what the later ones need."""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Every weight in it."""

    def forward(self, x: Tensor) -> Tensor:
        """The value. May be called alone."""

    def pull(self, a: Tensor) -> Tensor:
        """After `forward`: dF/dx from dF/dy."""

    def push(self, t: Tensor) -> Tensor:
        """After `pull`: the tangent of y from that of x."""

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        """After `push`: dD/dx from dD/dy; adds the weights' gradients to `found`."""


class Embedded:
    """The noise embedding, which enters at many places.

    Attributes:
        value_BE: It.
        gradient_BE: dF/d(embedding), summed up by `pull`.
        tangent_BE: Its tangent, set before `push`.
    """

    def __init__(self, value_BE: Tensor) -> None:
        self.value_BE = value_BE
        self.gradient_BE = torch.zeros_like(value_BE)
        self.tangent_BE = self.gradient_BE


class Side:
    """The embedding beside rows: one row of it a record, for all the record's sites."""

    def __init__(self, noise: Embedded, num_sites: int) -> None:
        self.noise, self.num_sites = noise, num_sites

    def over_sites(self, rows_NW: Tensor) -> Tensor:
        """Sum over the sites of each record, (B, W)."""
        if self.num_sites == 1:
            return rows_NW
        return rows_NW.view(len(self.noise.value_BE), self.num_sites, -1).sum(dim=1)

    def to_sites(self, rows_NW: Tensor, record_BW: Tensor) -> Tensor:
        """Add to the rows, in place, what is the same at all sites."""
        if self.num_sites == 1:
            return rows_NW.add_(record_BW)
        rows_NW.view(len(record_BW), self.num_sites, -1).add_(record_BW[:, None])
        return rows_NW


class FromNoise:
    """What a linear layer makes of the embedding: no `Step`, since it has no input of its own."""

    def __init__(self, layer: nn.Linear, noise: Embedded, bias: Tensor | None = None) -> None:
        self._weight: Tensor = layer.weight
        self._noise = noise
        self._bias: Tensor | None = bias if bias is not None else layer.bias
        self.weights = _present(self._weight, self._bias)

    def forward(self) -> Tensor:
        """(B, W)."""
        return nn.functional.linear(self._noise.value_BE, self._weight, self._bias)

    def pull(self, a_BW: Tensor) -> None:
        self._a_BW = a_BW
        self._noise.gradient_BE.addmm_(a_BW, self._weight)

    def push(self) -> Tensor:
        """(B, W)."""
        return self._noise.tangent_BE @ self._weight.T

    def back(self, b_BW: Tensor, found: WeightGradients) -> None:
        noise = self._noise
        gradient_WE = self._a_BW.T @ noise.tangent_BE
        found[self._weight] = gradient_WE.addmm_(b_BW.T, noise.value_BE)
        if self._bias is not None:
            found[self._bias] = b_BW.sum(dim=0)


class Dense:
    """y = x W^T + bias, and U e for a noise embedding e, where there is one.

    With `is_first` nothing is handed on beyond it by `back`: its inputs have no weights behind.
    """

    def __init__(
        self,
        layer: nn.Linear,
        noise: nn.Linear | None = None,
        side: Side | None = None,
        *,
        is_first: bool = False,
    ) -> None:
        self._weight: Tensor = layer.weight
        self._bias: Tensor | None = layer.bias
        self._side, self._is_first = side, is_first
        self._noise: FromNoise | None = None
        if noise is not None and side is not None:
            # The bias goes with the noise: once a record, not once a site.
            self._noise, self._bias = FromNoise(noise, side.noise, layer.bias), None
        of_noise = self._noise.weights if self._noise is not None else ()
        self.weights = (*_present(self._weight, self._bias), *of_noise)

    def forward(self, x: Tensor) -> Tensor:
        self._x = x
        return self._said(x, self._noise.forward() if self._noise is not None else None)

    def pull(self, a: Tensor) -> Tensor:
        self._a = a
        if self._noise is not None and self._side is not None:
            self._noise.pull(self._side.over_sites(a))
        return a @ self._weight

    def push(self, t: Tensor) -> Tensor:
        self._t = t
        if self._noise is not None:
            return self._said(t, self._noise.push())
        return t @ self._weight.T

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        found[self._weight] = (self._a.T @ self._t).addmm_(b.T, self._x)
        if self._noise is not None and self._side is not None:
            self._noise.back(self._side.over_sites(b), found)
        elif self._bias is not None:
            found[self._bias] = b.sum(dim=0)
        return b if self._is_first else b @ self._weight

    def _said(self, x: Tensor, from_noise_BW: Tensor | None) -> Tensor:
        if from_noise_BW is None or self._side is None:
            return nn.functional.linear(x, self._weight, self._bias)
        if self._side.num_sites == 1:
            return torch.addmm(from_noise_BW, x, self._weight.T)
        return self._side.to_sites(x @ self._weight.T, from_noise_BW)


class Silu:
    """y = x s, s = sigmoid(x);  dy = s + y - y s;  d2y = s + dy - 2 s dy. One exponential."""

    weights: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self._s = torch.sigmoid(x)
        y = x * self._s
        self._slope = (self._s + y).addcmul_(y, self._s, value=-1)
        return y

    def pull(self, a: Tensor) -> Tensor:
        self._a = a
        return a * self._slope

    def push(self, t: Tensor) -> Tensor:
        self._t = t
        return t * self._slope

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        bend = (self._s + self._slope).addcmul_(self._s, self._slope, value=-2)
        return bend.mul_(self._a).mul_(self._t).addcmul_(b, self._slope)


class Chain:
    """One step after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        self.weights = tuple(weight for step in steps for weight in step.weights)

    def forward(self, x: Tensor) -> Tensor:
        for step in self._steps:
            x = step.forward(x)
        return x

    def pull(self, a: Tensor) -> Tensor:
        for step in reversed(self._steps):
            a = step.pull(a)
        return a

    def push(self, t: Tensor) -> Tensor:
        for step in self._steps:
            t = step.push(t)
        return t

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        for step in reversed(self._steps):
            b = step.back(b, found)
        return b


class Residual:
    """y = x + inner(x). What `inner` gives is its own to change: it begins and ends otherwise."""

    def __init__(self, inner: Step) -> None:
        self._inner = inner
        self.weights = inner.weights

    def forward(self, x: Tensor) -> Tensor:
        return self._inner.forward(x).add_(x)

    def pull(self, a: Tensor) -> Tensor:
        return self._inner.pull(a).add_(a)

    def push(self, t: Tensor) -> Tensor:
        return self._inner.push(t).add_(t)

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        return self._inner.back(b, found).add_(b)


class Sum:
    """y = first(x) + second(x)."""

    def __init__(self, first: Step, second: Step) -> None:
        self._first, self._second = first, second
        self.weights = (*first.weights, *second.weights)

    def forward(self, x: Tensor) -> Tensor:
        return self._first.forward(x).add_(self._second.forward(x))

    def pull(self, a: Tensor) -> Tensor:
        return self._first.pull(a).add_(self._second.pull(a))

    def push(self, t: Tensor) -> Tensor:
        return self._first.push(t).add_(self._second.push(t))

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        return self._first.back(b, found).add_(self._second.back(b, found))


class Passes:
    """A network whose last layer gives one number a row; F is their sum over a record's rows.

    Args:
        trunk: Everything before the last activation.
        side: The noise embedding.
        head: The last layer.
        scale: Of F.
    """

    def __init__(self, trunk: Step, side: Side, head: nn.Linear, *, scale: float = 1.0) -> None:
        self._trunk, self._side, self._head, self._scale = trunk, side, head, scale
        self._last = Silu()
        self.weights = (*trunk.weights, head.weight, head.bias)

    def forward(self, x_NI: Tensor) -> Tensor:
        """F, (B,)."""
        self._y_NW = self._last.forward(self._trunk.forward(x_NI))
        rows_N = self._y_NW @ self._head.weight[0] + self._head.bias
        return self._side.over_sites(rows_N[:, None])[:, 0] * self._scale

    def pull(self) -> tuple[Tensor, Tensor]:
        """dF/dx (N, I) and dF/d(embedding) (B, E)."""
        a_W = self._head.weight[0] * self._scale
        a_NI = self._trunk.pull(self._last.pull(a_W.expand_as(self._y_NW)))
        return a_NI, self._side.noise.gradient_BE

    def gradients(self, g_B: Tensor, v_NI: Tensor, v_BE: Tensor) -> WeightGradients:
        """Gradient of D by each weight, with g (B,) and v (N, I), (B, E) of eq. (1)."""
        found: WeightGradients = {}
        self._side.noise.tangent_BE = v_BE
        t_NW = self._last.push(self._trunk.push(v_NI))
        g_N = (g_B * self._scale).repeat_interleave(self._side.num_sites)
        weight = self._head.weight
        found[weight] = (t_NW.sum(dim=0) * self._scale).addmv_(self._y_NW.T, g_N)[None]
        found[self._head.bias] = g_N.sum()[None]
        self._trunk.back(self._last.back(g_N[:, None] * weight, found), found)
        return found


class _Adjoint(Function):
    """F, dF/dx and dF/d(embedding) as functions of the weights."""

    @staticmethod
    def forward(
        ctx: Any, passes: Passes, rows_NI: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.kept = passes, weights
        return passes.forward(rows_NI), *passes.pull()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_B: Tensor, v_NI: Tensor, v_BE: Tensor) -> tuple[Any, ...]:
        passes, weights = ctx.kept
        ctx.kept = None, ()  # what the passes hold is let go with the graph
        if passes is None:
            raise RuntimeError("backward through explicit passes a second time")
        found = passes.gradients(g_B, v_NI, v_BE)
        return (None, None, *(found[weight] for weight in weights))


def adjoint(passes: Passes, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F (B,), dF/dx (as x) and dF/d(embedding) (B, E) of a network, trainable by one backward.

    Args:
        passes: Of the network, made for this one use.
        x: Inputs (B, I) or (B, S, I), taken as constants.
    """
    rows_NI = x.detach().reshape(-1, x.shape[-1])
    value_B, a_NI, a_BE = _Adjoint.apply(passes, rows_NI, *passes.weights)  # type: ignore[no-untyped-call]
    return value_B, a_NI.view_as(x), a_BE


def _present(*weights: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(weight for weight in weights if weight is not None)
