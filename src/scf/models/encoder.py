"""From a noisy record to what the network reads, with what physics knows put in.

Three groups of inputs, each of order one at every noise level:

1. The record along the eigenvectors of its covariance, each direction faded out where noise covers
   it.
2. The given numbers (coordinates such as cos_zenith, boundary values) and linear physics residuals,
   such as closure ghi - dni cos_zenith - dhi, in units of what noise and tolerance make of them.
3. Site by site, where all fields share a grid (24 hours): each channel at that site, the given
   channels and residuals there, and where the site lies. One small network, the same for all sites,
   reads these, so that a relation between channels is learned from all hours at once.

Units enter through the frame: each channel arrives in the scale of its unit group, and a residual
is computed in original units before it is made dimensionless.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from scf.models.activation import bounded, widely_bounded
from scf.models.frame import Frame
from scf.models.gaussian_base import GaussianBase
from scf.models.physics import PhysicsConstraint
from scf.models.record import PERIODIC, WALL, FieldLayout, RecordLayout

# Shapes: B minibatch, D modelled numbers, K given numbers, S sites, J features of a site,
# I inputs of the network, R residuals.


class PhysicsEncoder(nn.Module):
    """Noisy record, noise level and given numbers -> inputs of the networks.

    Attributes:
        num_inputs: I of the flat inputs.
        num_site_features: J, or 0 where the fields share no grid.
    """

    def __init__(
        self,
        layout: RecordLayout,
        constraints: Sequence[PhysicsConstraint],
        *,
        num_bounds: int = 0,
        has_site_network: bool = True,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.num_bounds = num_bounds
        self._has_site_network = has_site_network
        self.constraints = tuple(constraints)
        self.site_shape = layout.site_shape
        self.residuals = [
            _LinearResidual(layout, constraint)
            for constraint in constraints
            if _is_sitewise_linear(layout, constraint)
        ]
        self.shift_D: Tensor
        self.scale_D: Tensor
        self.given_shift_K: Tensor
        self.given_scale_K: Tensor
        self.register_buffer("shift_D", torch.zeros(layout.size))
        self.register_buffer("scale_D", torch.ones(layout.size))
        self.register_buffer("given_shift_K", torch.zeros(layout.given_size))
        self.register_buffer("given_scale_K", torch.ones(layout.given_size))
        self.num_sites = math.prod(self.site_shape) if self.site_shape else 0
        self.num_inputs = layout.size + layout.given_size + self.num_sites * len(self.residuals)
        # Distances from bounds go where they belong: to the sites, if a network reads these.
        at_sites = bool(self.num_sites) and has_site_network
        self.num_bound_channels = num_bounds // self.num_sites if at_sites else 0
        self.num_inputs += 0 if at_sites else num_bounds
        self.num_site_features = 0
        if self.site_shape:
            self.register_buffer(
                "coordinates_SX", _site_coordinates(self.site_shape), persistent=False
            )
            self.num_site_features = (
                len(layout.modelled)
                + len(layout.given)
                + len(self.residuals)
                + self.num_bound_channels
                + self.coordinates_SX.shape[1]
            )

        edges = _edges(layout)
        self.num_edges = len(edges)
        self.register_buffer("edge_ES", edges, persistent=False)
        places = layout.slices(given=True)
        off = [np.arange(layout.given_size)[places[f.name]] for f in layout.given
               if f.shape != self.site_shape]  # fmt: skip
        self.register_buffer(
            "_off_grid_K",
            torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *off])),
            persistent=False,
        )
        self.num_off_grid = len(self._off_grid_K)

    coordinates_SX: Tensor
    edge_ES: Tensor
    _off_grid_K: Tensor

    def load(self, frame: Frame) -> None:
        """Take over the frame, in which residuals are turned back to original units."""
        self.shift_D.copy_(torch.from_numpy(frame.shift_D))
        self.scale_D.copy_(torch.from_numpy(frame.scale_D))
        self.given_shift_K.copy_(torch.from_numpy(frame.given_shift_K))
        self.given_scale_K.copy_(torch.from_numpy(frame.given_scale_K))

    def fields_of(self, z_BD: Tensor, c_BK: Tensor) -> dict[str, Tensor]:
        """Modelled and given fields by name, [B, *shape], in their own units."""
        x_BD = self.shift_D + self.scale_D * z_BD
        given_BK = self.given_shift_K + self.given_scale_K * c_BK
        fields = {}
        for flat, parts, given in (
            (x_BD, self.layout.modelled, False),
            (given_BK, self.layout.given, True),
        ):
            for field, place in zip(parts, self.layout.slices(given=given).values(), strict=True):
                fields[field.name] = flat[:, place].reshape(-1, *field.shape)
        return fields

    def forward(
        self,
        z_BD: Tensor,
        sigma_B: Tensor,
        c_BK: Tensor,
        base: GaussianBase,
        near_BU: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Flat inputs (B, I) and, where there is a grid, site features (B, S, J).

        `near_BU` says how far bounded numbers are from their bounds (`models/bounds.py`).
        """
        w_BD = base.rotate(z_BD, c_BK)
        total_BD = base.total_variance(sigma_B)
        # Whitened, then faded by sqrt(variance / total): a direction whose variance is far below
        # sigma^2 carries noise alone.
        fading_BD = base.variance_D.sqrt() / total_BD
        residuals_BRS = [residual(z_BD, sigma_B, c_BK, self) for residual in self.residuals]
        flat = [w_BD * fading_BD, c_BK, *residuals_BRS]
        if near_BU is not None and not self.num_bound_channels:
            flat.append(near_BU)
        inputs_BI = bounded(torch.cat(flat, dim=1))
        if not self.site_shape or not self._has_site_network:
            return inputs_BI, None
        channels = self._channels(z_BD, sigma_B, c_BK, base)
        channels += [part[:, None] for part in residuals_BRS]
        channels += self._near_at_sites(near_BU)
        channels += self._given_at_sites(c_BK)
        where_BSX = self.coordinates_SX.expand(len(z_BD), -1, -1)
        sites_BSJ = torch.cat([bounded(torch.cat(channels, dim=1)).mT, where_BSX], dim=2)
        return inputs_BI, sites_BSJ

    @property
    def is_flat(self) -> bool:
        """Whether `forward` gives the record along its eigenvectors, given numbers, and no more."""
        has_more = self.residuals or self.num_bounds or (self.site_shape and self._has_site_network)
        return not has_more

    def lattice_sites(
        self,
        z_BD: Tensor,
        sigma_B: Tensor,
        c_BK: Tensor,
        base: GaussianBase,
        near_BU: Tensor | None = None,
        *,
        has_place: bool,
        has_pull: bool = False,
    ) -> Tensor:
        """Site features (B, S, J) for a network that looks at neighbours.

        Each field twice: as it is, and as the Gaussian base would denoise it, which brings in all
        the sites that go along with this one. With `has_place` it is also told where a site lies.

        With `has_pull` the second becomes the base's own score where noise is small. Denoised and
        noisy field are nearly the same there. The score is what the base adds of its own, which a
        local energy must take away where the base's kernel is not local.
        """
        fields = self._channels(z_BD, sigma_B, c_BK, base)
        w_BD, total_BD = base.rotate(z_BD, c_BK), base.total_variance(sigma_B)
        kept_BD = base.variance_D / total_BD
        gain_BD = kept_BD * (kept_BD * base.variance_D).mean(dim=1, keepdim=True).rsqrt()
        if has_pull:
            pull_BD = 1 / total_BD
            pull_BD = pull_BD * pull_BD.mean(dim=1, keepdim=True).rsqrt()
            share_B1 = 1 / (1 + sigma_B[:, None].square())
            gain_BD = share_B1 * pull_BD + (1 - share_B1) * gain_BD
        fields.append(base.turn_back(w_BD * gain_BD).view(len(z_BD), -1, self.num_sites))
        channels = [] if has_pull else fields
        channels += [r(z_BD, sigma_B, c_BK, self)[:, None] for r in self.residuals]
        channels += self._near_at_sites(near_BU)
        channels += self._given_at_sites(c_BK)
        channels += [self.edge_ES.expand(len(z_BD), -1, -1)] if self.num_edges else []
        sites_BSJ = bounded(torch.cat(channels, dim=1)).mT if channels else None
        if has_pull:
            fields_BSJ = widely_bounded(torch.cat(fields, dim=1)).mT
            rest = [sites_BSJ] if sites_BSJ is not None else []
            sites_BSJ = torch.cat([fields_BSJ, *rest], dim=2)
        assert sites_BSJ is not None
        if has_place:
            where_BSX = self.coordinates_SX.expand(len(z_BD), -1, -1)
            sites_BSJ = torch.cat([sites_BSJ, where_BSX], dim=2)
        return sites_BSJ

    def num_lattice_features(self, *, has_place: bool) -> int:
        """J of `lattice_sites`."""
        place = self.coordinates_SX.shape[1] if has_place else 0
        fields = 2 * len(self.layout.modelled) + len(self.layout.given)
        return fields + len(self.residuals) + self.num_bound_channels + self.num_edges + place

    def off_grid(self, c_BK: Tensor) -> Tensor:
        """Given numbers that belong to the whole record, not to its sites."""
        return c_BK[:, self._off_grid_K]

    def _channels(
        self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor, base: GaussianBase
    ) -> list[Tensor]:
        """Each field in units of its own spread under noise, (B, C, S)."""
        marginal_BD = self.marginal_variance(base) + sigma_B[:, None].square()
        standard_BD = (z_BD - c_BK @ base.slope_DK.T) * marginal_BD.rsqrt()
        return [standard_BD.view(len(z_BD), -1, self.num_sites)]

    def _near_at_sites(self, near_BU: Tensor | None) -> list[Tensor]:
        if near_BU is None or not self.num_bound_channels:
            return []
        return [near_BU.view(len(near_BU), -1, self.num_sites)]

    def _given_at_sites(self, c_BK: Tensor) -> list[Tensor]:
        places = self.layout.slices(given=True).values()
        return [
            self._at_sites(c_BK[:, place], field)
            for field, place in zip(self.layout.given, places, strict=True)
        ]

    def marginal_variance(self, base: GaussianBase) -> Tensor:
        """Variance of each number of z given c, (D,)."""
        return base.spread_of(base.variance_D[None])[0]

    def _at_sites(self, values_BN: Tensor, field: FieldLayout) -> Tensor:
        """A given field as a channel over sites, (B, 1, S); its mean where it has another shape."""
        if field.shape == self.site_shape:
            return values_BN[:, None]
        mean_B1 = values_BN.mean(dim=1, keepdim=True)
        return mean_B1[:, None].expand(-1, 1, len(self.coordinates_SX))


class _LinearResidual:
    """A residual that is linear at each site: r = a0(c) + sum_f a_f(c) x_f, made dimensionless.

    The coefficients are read off by probing the function with zeros and ones, so that a constraint
    is written once, as its formula.
    """

    def __init__(self, layout: RecordLayout, constraint: PhysicsConstraint) -> None:
        self.layout = layout
        self.constraint = constraint
        self.read = [field for field in layout.modelled if field.name in constraint.needs]

    def __call__(
        self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor, encoder: "PhysicsEncoder"
    ) -> Tensor:
        """Residual (B, S) over its own standard deviation under noise and tolerance."""
        places = self.layout.slices()
        with torch.no_grad():
            given = self._given_fields(c_BK, encoder)
            nothing = {field.name: z_BD.new_zeros(len(z_BD), *field.shape) for field in self.read}
            offset_BS = self._residual(nothing, given)
            slope = {
                field.name: self._residual(
                    {**nothing, field.name: torch.ones_like(nothing[field.name])}, given
                )
                - offset_BS
                for field in self.read
            }
            noise_BS = torch.zeros_like(offset_BS)
            for field in self.read:
                place = places[field.name]
                offset_BS = offset_BS + slope[field.name] * encoder.shift_D[place]
                slope[field.name] = slope[field.name] * encoder.scale_D[place]
                noise_BS = noise_BS + slope[field.name].square()
        spread_BS = noise_BS * sigma_B[:, None].square() + self.constraint.tolerance**2
        residual_BS = offset_BS
        for field in self.read:
            residual_BS = residual_BS + slope[field.name] * z_BD[:, places[field.name]]
        return residual_BS * spread_BS.rsqrt()

    def _given_fields(self, c_BK: Tensor, encoder: "PhysicsEncoder") -> dict[str, Tensor]:
        original_BK = encoder.given_shift_K + encoder.given_scale_K * c_BK
        places = self.layout.slices(given=True)
        return {
            field.name: original_BK[:, places[field.name]].reshape(-1, *field.shape)
            for field in self.layout.given
        }

    def _residual(self, modelled: dict[str, Tensor], given: dict[str, Tensor]) -> Tensor:
        return self.constraint.residual({**modelled, **given}).flatten(1)


def _is_sitewise_linear(layout: RecordLayout, constraint: PhysicsConstraint) -> bool:
    """Whether a constraint can be a feature: linear, over fields of one grid, some modelled."""
    names = {field.name for field in (*layout.modelled, *layout.given)}
    if not constraint.is_linear or not constraint.applies_to(names) or layout.site_shape is None:
        return False
    needed = [
        field for field in (*layout.modelled, *layout.given) if field.name in constraint.needs
    ]
    return all(field.shape == layout.site_shape for field in needed) and any(
        field.name in constraint.needs for field in layout.modelled
    )


def _edges(layout: RecordLayout) -> Tensor:
    """How near each site is to an edge, (E, S): a row for each axis that is not periodic.

    exp(-distance in sites), positive at a wall and negative at an open edge. No rows where nothing
    is known of the boundary.
    """
    shape = layout.site_shape
    rows = []
    if shape is not None and layout.boundary:
        axes = [torch.arange(length) for length in shape]
        grid = torch.meshgrid(*axes, indexing="ij")
        for place, length, word in zip(grid, shape, layout.boundaries, strict=True):
            if word != PERIODIC:
                near = torch.minimum(place, length - 1 - place).reshape(-1)
                rows.append((1.0 if word == WALL else -1.0) * torch.exp(-near.float()))
    sites = math.prod(shape) if shape is not None else 0
    return torch.stack(rows) if rows else torch.zeros(0, sites)


def _site_coordinates(shape: tuple[int, ...]) -> Tensor:
    """Where each site lies, (S, X): for each axis its place in [-1, 1] and one sine and cosine."""
    axes = [(torch.arange(length) + 0.5) / length for length in shape]
    columns = []
    for place in torch.meshgrid(*axes, indexing="ij"):
        flat_S = place.reshape(-1)
        phase_S = 2 * math.pi * flat_S
        columns += [2 * flat_S - 1, phase_S.sin(), phase_S.cos()]
    return torch.stack(columns, dim=1)
