"""Darcy flow: pressure and permeability on a square, with a second solver that shares nothing.

    -div(K grad p) = 1 on the unit square, p = 0 on its edge, ln K a smooth Gaussian field.

Records are (2, L, L): pressure, then ln K, at the centres of L x L cells. They are solved by finite
volumes with harmonic means at faces, the stencil of `models.laws.darcy`, so their residual is zero
to rounding. A model whose samples have a small residual under that same stencil could still be
wrong, so `resolve` takes its ln K and solves for the pressure anew by bilinear finite elements.
"""

from dataclasses import dataclass

import numpy as np

from scf.verification.reference_systems import Array

# Shapes: N records, L cells a side, C = L * L cells.

_AT_ONCE = 256


@dataclass(frozen=True)
class DarcyFlow:
    """The system; see the module's words.

    Attributes:
        size: Cells a side.
        spread: Standard deviation of ln K.
        smoothness: Correlation length of ln K in sides of the square.
    """

    size: int = 16
    spread: float = 0.7
    smoothness: float = 0.2
    name: str = "darcy"

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, self.size, self.size)

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """Draw ln K, solve for the pressure."""
        log_k = self._log_permeability(num, rng)
        parts = [log_k[start : start + _AT_ONCE] for start in range(0, num, _AT_ONCE)]
        pressure = np.concatenate([self.solve(part) for part in parts])
        return np.stack([pressure, log_k], axis=1)

    def solve(self, log_k: Array) -> Array:
        """Pressure (N, L, L) by finite volumes; K at a face is the harmonic mean of both cells."""
        num, cells, dx = len(log_k), self.size**2, 1 / self.size
        k = np.exp(log_k).reshape(num, cells)
        matrix = np.zeros((num, cells, cells))
        index = np.arange(cells).reshape(self.size, self.size)
        for axis in (0, 1):
            one = np.take(index, range(self.size - 1), axis=axis).ravel()
            two = np.take(index, range(1, self.size), axis=axis).ravel()
            face = 2 * k[:, one] * k[:, two] / (k[:, one] + k[:, two]) / dx**2
            for a, b in ((one, two), (two, one)):
                matrix[:, a, a] += face
                matrix[:, a, b] -= face
            for side in (0, -1):  # the edge is half a cell away
                edge = np.take(index, side, axis=axis)
                matrix[:, edge, edge] += 2 * k[:, edge] / dx**2
        solved = np.linalg.solve(matrix, np.ones((num, cells, 1)))
        pressure: Array = solved.reshape(num, self.size, self.size).astype(np.float64)
        return pressure

    def resolve(self, log_k: Array) -> Array:
        """Pressure at cell centres by bilinear finite elements: other unknowns, other matrix.

        One element a cell, K constant in it, p = 0 at the outer nodes; the pressure at a centre is
        the mean of the cell's four nodes.
        """
        size, num = self.size, len(log_k)
        k = np.exp(log_k).reshape(num, -1)
        # Stiffness of a square bilinear element (its size cancels in two dimensions).
        element = np.array([[4, -1, -2, -1], [-1, 4, -1, -2], [-2, -1, 4, -1], [-1, -2, -1, 4]]) / 6
        node = np.arange((size + 1) ** 2).reshape(size + 1, size + 1)
        corner = [node[:-1, :-1], node[:-1, 1:], node[1:, 1:], node[1:, :-1]]
        corners = np.stack([part.ravel() for part in corner], axis=1)
        matrix = np.zeros((num, len(node.ravel()), len(node.ravel())))
        load = np.zeros(len(node.ravel()))
        for i in range(4):
            np.add.at(load, corners[:, i], 0.25 / size**2)
            for j in range(4):
                for row in range(num):
                    np.add.at(matrix[row], (corners[:, i], corners[:, j]), element[i, j] * k[row])
        inner = node[1:-1, 1:-1].ravel()
        solved = np.zeros((num, len(load)))
        block = matrix[:, inner[:, None], inner[None, :]]
        right = np.broadcast_to(load[inner, None], (num, len(inner), 1))
        solved[:, inner] = np.linalg.solve(block, right)[..., 0]
        pressure: Array = solved[:, corners].mean(axis=2)
        return pressure.reshape(num, size, size)

    def _log_permeability(self, num: int, rng: np.random.Generator) -> Array:
        """A Gaussian field of squared-exponential correlation, by its covariance's root."""
        place = (np.arange(self.size) + 0.5) / self.size
        apart = (place[:, None] - place[None, :]) ** 2
        line = np.exp(-apart / (2 * self.smoothness**2)) + 1e-6 * np.eye(self.size)
        root = np.linalg.cholesky(line)
        white = rng.standard_normal((num, self.size, self.size))
        field: Array = self.spread * np.einsum("ia,nab,jb->nij", root, white, root, optimize=True)
        return field
