"""What a lattice's network adds to `passes.py`: neighbours, an even first layer, coarser grids.

All but the even layer are linear, so their tangent is their value, and `back` their `pull`.
"""

from collections.abc import Callable

from torch import Tensor, nn

from scf.models.passes import FromNoise, Side, Silu, Step, WeightGradients

# Shapes: B minibatch, S sites, T neighbours, N rows (B S), J features that come in, W width.


class Convolve:
    """y = W [features of all neighbours] + bias, plus U e of a noise embedding.

    Args:
        layer: W (W, T J) and the bias.
        gather: (B, S, J) -> (B, S, T J): the neighbours' features side by side.
        scatter: Its transpose, (B, S, T J) -> (B, S, J).
        is_mirror: Whether site r is neighbour t of s wherever s is neighbour T - 1 - t of r: all
            but walls. Then the transpose is a convolution as well, with the weights turned round.
        noise: U, with the layer's bias; None leaves it out.
        side: The noise embedding, for a `noise` that there is, and the number of sites.
        is_first: Nothing is handed on beyond it by `back`.
    """

    def __init__(
        self,
        layer: nn.Linear,
        gather: Callable[[Tensor], Tensor],
        scatter: Callable[[Tensor], Tensor],
        side: Side,
        *,
        is_mirror: bool,
        noise: nn.Linear | None = None,
        is_first: bool = False,
    ) -> None:
        self._weight: Tensor = layer.weight
        self._gather, self._scatter, self._side = gather, scatter, side
        self._noise = FromNoise(noise, side.noise, layer.bias) if noise is not None else None
        self._is_mirror, self._is_first = is_mirror, is_first
        self._num = 0
        self.weights = (self._weight, *(self._noise.weights if self._noise is not None else ()))

    def forward(self, x: Tensor) -> Tensor:
        self._num = x.shape[1]
        self._x = self._neighbours(x)
        y = self._x @ self._weight.T
        return y if self._noise is None else self._side.to_sites(y, self._noise.forward())

    def pull(self, a: Tensor) -> Tensor:
        self._a = a
        if self._noise is not None:
            self._noise.pull(self._side.over_sites(a))
        return self._transposed(a)

    def push(self, t: Tensor) -> Tensor:
        self._t = self._neighbours(t)
        y = self._t @ self._weight.T
        return y if self._noise is None else self._side.to_sites(y, self._noise.push())

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        found[self._weight] = (self._a.T @ self._t).addmm_(b.T, self._x)
        if self._noise is not None:
            self._noise.back(self._side.over_sites(b), found)
        return b if self._is_first else self._transposed(b)

    def _neighbours(self, rows: Tensor) -> Tensor:
        found = self._gather(rows.view(-1, self._side.num_sites, rows.shape[1]))
        return found.view(len(rows), -1)

    def _transposed(self, a: Tensor) -> Tensor:
        width, num = a.shape[1], self._num
        # Two ways round: neighbours of the W outputs, or of the J inputs. The fewer are moved.
        if self._is_mirror and width <= 2 * num:
            turned_WTJ = self._weight.view(width, -1, num).flip(1)
            return self._neighbours(a) @ turned_WTJ.transpose(0, 1).reshape(-1, num)
        side_by_side = (a @ self._weight).view(-1, self._side.num_sites, self._weight.shape[1])
        return self._scatter(side_by_side).view(len(a), num)


class Even:
    """y = silu(u + c) + silu(c - u), c from the noise embedding: the same for u and -u."""

    def __init__(self, noise: nn.Linear, side: Side) -> None:
        self._noise, self._side = FromNoise(noise, side.noise), side
        self._plus, self._minus = Silu(), Silu()
        self.weights = self._noise.weights

    def forward(self, x: Tensor) -> Tensor:
        c = self._noise.forward()
        return self._plus.forward(self._side.to_sites(x.clone(), c)).add_(
            self._minus.forward(self._side.to_sites(-x, c))
        )

    def pull(self, a: Tensor) -> Tensor:
        plus, minus = self._plus.pull(a), self._minus.pull(a)
        self._noise.pull(self._side.over_sites(plus + minus))
        return plus.sub_(minus)

    def push(self, t: Tensor) -> Tensor:
        c = self._noise.push()
        return self._plus.push(self._side.to_sites(t.clone(), c)).add_(
            self._minus.push(self._side.to_sites(-t, c))
        )

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        plus, minus = self._plus.back(b, found), self._minus.back(b, found)
        self._noise.back(self._side.over_sites(plus + minus), found)
        return plus.sub_(minus)


class Coarser:
    """y = up(h + wide(inner(narrow(h)))), h = down(x): one level of a U-Net and all below it.

    Args:
        down: Steps on this grid, on the way down.
        inner: Everything on coarser grids.
        up: Steps on this grid, on the way up.
        narrow: Mean over each coarse site's sites, on rows (N, W) -> (N / 2^axes, W).
        wide: Each site gets its coarse site's features.
        num_children: Sites of a coarse site.
    """

    def __init__(
        self,
        down: Step,
        inner: Step,
        up: Step,
        narrow: Callable[[Tensor], Tensor],
        wide: Callable[[Tensor], Tensor],
        num_children: int,
    ) -> None:
        self._down, self._inner, self._up = down, inner, up
        self._narrow, self._wide, self._num_children = narrow, wide, num_children
        self.weights = (*down.weights, *inner.weights, *up.weights)

    def forward(self, x: Tensor) -> Tensor:
        h = self._down.forward(x)
        return self._up.forward(self._wide(self._inner.forward(self._narrow(h))).add_(h))

    def pull(self, a: Tensor) -> Tensor:
        a = self._up.pull(a)
        return self._down.pull(self._by_narrow(self._inner.pull(self._by_wide(a))).add_(a))

    def push(self, t: Tensor) -> Tensor:
        h = self._down.push(t)
        return self._up.push(self._wide(self._inner.push(self._narrow(h))).add_(h))

    def back(self, b: Tensor, found: WeightGradients) -> Tensor:
        b = self._up.back(b, found)
        inner = self._by_narrow(self._inner.back(self._by_wide(b), found))
        return self._down.back(inner.add_(b), found)

    def _by_wide(self, a: Tensor) -> Tensor:
        """The transpose of `wide`: a sum over children."""
        return self._narrow(a).mul_(self._num_children)

    def _by_narrow(self, a: Tensor) -> Tensor:
        return self._wide(a).div_(self._num_children)
