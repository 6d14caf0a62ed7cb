"""Images of a record under symmetries of its grid, for averaging an energy over them.

A symmetry that is not built into a network can be had by averaging: the mean of a function over all
images of its argument under a group is the same for each of them, exactly. It costs as many
evaluations as the group has members, so it is asked for by name:

* `sign`: x and -x (2; a lattice has it built in for nothing);
* `rotation`: quarter turns and reflections of the grid; a grid with different sides has half turns
  and reflections (2 along one axis, up to 8 on a square, up to 48 in a cube).

Fields are taken as scalars: components of a vector would turn along, and are refused by nobody but
their user.
"""

import itertools
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn

from scf.models.record import RecordLayout

# Shapes: B minibatch, D modelled numbers, G images.


def place_images(layout: RecordLayout) -> list[np.ndarray]:
    """Where each number of an image comes from, (D,), one array for each turn or reflection."""
    shape = layout.site_shape
    if shape is None:
        return [np.arange(layout.size)]
    sites = np.arange(int(np.prod(shape))).reshape(shape)
    found: dict[bytes, np.ndarray] = {}
    for order in itertools.permutations(range(len(shape))):
        turned = sites.transpose(order)
        if turned.shape != shape:
            continue
        for flips in itertools.product((1, -1), repeat=len(shape)):
            image = turned[tuple(slice(None, None, step) for step in flips)].ravel()
            found[image.tobytes()] = image
    num = sites.size
    return [
        np.concatenate([field * num + image for field in range(len(layout.modelled))])
        for image in found.values()
    ]


class Images(nn.Module):
    """All images of records under the named symmetries.

    Attributes:
        num: G.
    """

    place_GD: Tensor
    sign_G: Tensor

    def __init__(self, layout: RecordLayout, names: Collection[str]) -> None:
        super().__init__()
        places = place_images(layout) if "rotation" in names else [np.arange(layout.size)]
        signs = (1.0, -1.0) if "sign" in names else (1.0,)
        both = [(place, sign) for place in places for sign in signs]
        self.num = len(both)
        self.register_buffer(
            "place_GD", torch.from_numpy(np.stack([place for place, _ in both])), persistent=False
        )
        self.register_buffer("sign_G", torch.tensor([sign for _, sign in both]), persistent=False)

    def of(self, z_BD: Tensor) -> Tensor:
        """Images of all records, image after image: (G B, D)."""
        z_BGD = z_BD[:, self.place_GD] * self.sign_G[:, None].to(z_BD)
        return z_BGD.transpose(0, 1).reshape(self.num * len(z_BD), -1)

    def mean(self, value_N: Tensor) -> Tensor:
        """Mean over the images of each record: (G B,) -> (B,)."""
        return value_N.view(self.num, -1).mean(dim=0)
