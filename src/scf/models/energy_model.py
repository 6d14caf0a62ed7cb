"""The energy-based diffusion model: E(z, sigma | c) in nats, with score = -dE/dz exactly.

p(z, sigma | c) is the density of the data smoothed by Gaussian noise of standard deviation sigma.
With w = Q^T (z - B c) and v_i = lambda_i + sigma^2 (docs/science.md eq. 3):

    E = sum_i [ w_i^2 / (2 v_i) + ln(2 pi v_i) / 2 ]  -  a(sigma) G(z, ln sigma, c)

The first part is the Gaussian with the data's own mean and covariance, smoothed exactly; it is the
whole truth where sigma is large. The network G says how the data differ from it, and
a(sigma) = 1/sqrt(1 + sigma^2) lets the difference fade there. EDM's preconditioning (arXiv
2206.00364) would be a = 1/sigma. It grows at small sigma, where the energy of a smooth density
stays bounded: with it energies were worse (docs/LOG.md 2026-11-23: mean error 0.31 against 0.19
nats on a ring of eight Gaussians at sigma 0.2 of the scale, equal time).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scf.core.errors import UsageError
from scf.models.bounds import Bounds
from scf.models.clusters import Clusters
from scf.models.encoder import PhysicsEncoder
from scf.models.evidence import Evidence
from scf.models.frame import FULL_COVARIANCE_SIZE_MAX, Frame, LinearGaussian, waves_of
from scf.models.gaussian_base import GaussianBase
from scf.models.images import Images
from scf.models.inputs import DerivedInputs, FlatInputs, Inputs, Made
from scf.models.lattice import LatticeNet
from scf.models.networks import ResidualMLP, gain_for
from scf.models.noise import NoiseEmbedding, NoiseRange
from scf.models.passes import Embedded, adjoint
from scf.models.physics import PhysicsConstraint, constraints_for
from scf.models.powers import SitePowers
from scf.models.record import OPEN, Floats, RecordLayout

# Shapes: B minibatch, D modelled numbers, K given numbers, S sites, J site features, L noise
# levels.

OFFSET_LEVELS = 65

# With fewer sites the network for the whole record sees all there is to see; with more, reading
# them one by one costs a CPU seconds a step.
SITES_MIN, SITES_MAX = 4, 512


MLP, LATTICE = "mlp", "lattice"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Size and form of the network.

    Attributes:
        width: Units of a layer. Time grows with its square.
        depth: Residual blocks (of a lattice: on each level, on the way down and up).
        site_width: Units of the network that reads one site at a time; 0 leaves it out.
        body: `mlp` reads the whole record at once; `lattice` sums a local energy over the sites of
            the fields' grid (`models/lattice.py`).
        levels: Of the lattice: 1 works on the grid itself, each more on one half as fine.
        modes: Of the lattice: waves that its blocks filter along each axis (`models/spectral.py`).
        translation_symmetric: The lattice is not told where a site lies.
        sign_symmetric: The lattice gives the same for x and -x.
        has_bounds: Known bounds of fields are a term of the energy and inputs of the network
            (`models/bounds.py`).
        averaged: Symmetries that are had by averaging over images, with commas
            (`models/images.py`); "" for none.
        evidence: Names of constraints whose residual is a term of the energy
            (`models/evidence.py`), with commas; "" for none.
        clusters: Gaussians of the mixture that an mlp departs from (`models/clusters.py`); 0: one.
        powers: The lattice also sums powers of the fields (`models/powers.py`), and is told the
            Gaussian's own score.
    """

    width: int = 128
    depth: int = 2
    site_width: int = 32
    body: str = MLP
    levels: int = 1
    modes: int = 0
    translation_symmetric: bool = False
    sign_symmetric: bool = False
    has_bounds: bool = False
    evidence: str = ""
    averaged: str = ""
    clusters: int = 0
    powers: bool = False


class BodyDoesNotFit(UsageError):
    """The network that was asked for cannot read such records."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, remedy="Choose another body or symmetry in the settings.")


class Derivatives(NamedTuple):
    """E (B,), dE/dz (B, D) and dE/d(ln sigma) (B,)."""

    energy_B: Tensor
    gradient_BD: Tensor
    noise_slope_B: Tensor


def _below(base: Derivatives, correction: Derivatives) -> Derivatives:
    return Derivatives(
        *(of_base - of_net for of_base, of_net in zip(base, correction, strict=True))
    )


def _derived(
    network: nn.Module, x: Tensor, noise_BE: Tensor, create_graph: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `passes.adjoint`, by autograd: for what is too small to be written out."""
    with torch.enable_grad():
        x, noise_BE = x.detach().requires_grad_(), noise_BE.detach().requires_grad_()
        value_B: Tensor = network(x, noise_BE)
        gradient, by_noise_BE = torch.autograd.grad(
            value_B.sum(), (x, noise_BE), create_graph=create_graph
        )
    return value_B if create_graph else value_B.detach(), gradient, by_noise_BE


class EnergyModel(nn.Module):
    """E(z, sigma | c) on the model's coordinates (`frame.Frame`), sigma in the data's scale.

    Attributes:
        body_dtype: Type of the networks' layers while training, `torch.bfloat16` say; heads, sums
            and the Gaussian stay float32. None, as for all that is measured: float32 throughout.
    """

    offset_grid_L: Tensor
    offset_L: Tensor

    def __init__(
        self,
        layout: RecordLayout,
        config: NetworkConfig,
        noise: NoiseRange,
        constraints: Sequence[PhysicsConstraint] | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.config = config
        self.body_dtype: torch.dtype | None = None
        self.has_explicit_adjoint = True
        # Set by calibration.calibrate once the weights stand; zero while they are trained.
        ends = math.log(noise.sigma_min), math.log(noise.sigma_max)
        self.register_buffer(
            "offset_grid_L", torch.linspace(*ends, OFFSET_LEVELS), persistent=False
        )
        self.register_buffer("offset_L", torch.zeros(OFFSET_LEVELS))
        if constraints is None:
            constraints = constraints_for([f.name for f in (*layout.modelled, *layout.given)])
        is_full = layout.size + layout.given_size <= FULL_COVARIANCE_SIZE_MAX
        self.base = GaussianBase(
            layout.size,
            layout.given_size,
            is_full=is_full,
            waves=waves_of(layout) if config.translation_symmetric and not is_full else None,
        )
        self.bounds = Bounds(layout, tuple(constraints)) if config.has_bounds else None
        num_bounds = len(self.bounds.place_U) if self.bounds is not None else 0
        num_sites = math.prod(layout.site_shape or (0,))
        has_site_body = SITES_MIN <= num_sites <= SITES_MAX and bool(config.site_width)
        self.encoder = PhysicsEncoder(
            layout,
            constraints,
            num_bounds=num_bounds,
            has_site_network=has_site_body or config.body == LATTICE,
        )
        self.images = Images(layout, config.averaged.split(",")) if config.averaged else None
        if self.images is not None and layout.given:
            raise BodyDoesNotFit("symmetries by averaging need records without given fields")
        named = set(filter(None, config.evidence.split(",")))
        counted = tuple(c for c in constraints if c.name in named)
        self.evidence = Evidence(layout, counted) if counted else None
        self.clusters = Clusters(config.clusters, layout.size) if config.clusters else None
        if self.clusters is not None and (layout.given or self.images or config.body == LATTICE):
            raise BodyDoesNotFit(
                "clusters need an mlp, records without given fields, and no symmetry"
            )
        self.embedding = NoiseEmbedding()
        self.body: ResidualMLP | LatticeNet
        self.site_body: ResidualMLP | None = None
        self.powers: SitePowers | None = None
        if config.body == LATTICE:
            self.body = self._lattice(layout, config)
            if config.powers:
                self.powers = self._powers(layout, config)
            return
        self.body = ResidualMLP(
            self.encoder.num_inputs,
            self.embedding.size,
            width=config.width,
            depth=config.depth,
            gain=gain_for(self.encoder.num_inputs),
        )
        if has_site_body:
            self.site_body = ResidualMLP(
                self.encoder.num_site_features,
                self.embedding.size,
                width=config.site_width,
                depth=1,
            )

    def _lattice(self, layout: RecordLayout, config: NetworkConfig) -> LatticeNet:
        if layout.site_shape is None or len(layout.site_shape) > 3:
            raise BodyDoesNotFit("a lattice needs fields that share a grid of one to three axes")
        if config.modes and OPEN in layout.boundaries:
            raise BodyDoesNotFit(
                "a spectral layer needs periodic boundaries or walls, not open ones"
            )
        is_bare = config.translation_symmetric and not layout.given and not self.encoder.residuals
        if config.sign_symmetric and not is_bare:
            raise BodyDoesNotFit(
                "sign symmetry needs translation symmetry, no given fields and no linear constraint"
            )
        return LatticeNet(
            layout.site_shape,
            self.encoder.num_lattice_features(has_place=not config.translation_symmetric),
            self.embedding.size + self.encoder.num_off_grid,
            boundaries=layout.boundaries,
            width=config.width,
            depth=config.depth,
            levels=config.levels,
            is_even=config.sign_symmetric,
            modes=config.modes,
        )

    def _powers(self, layout: RecordLayout, config: NetworkConfig) -> SitePowers:
        assert layout.site_shape is not None
        return SitePowers(
            layout.site_shape,
            self.encoder.num_lattice_features(has_place=not config.translation_symmetric),
            self.embedding.size + self.encoder.num_off_grid,
            boundaries=layout.boundaries,
            is_even=config.sign_symmetric,
        )

    def load_frame(
        self,
        frame: Frame,
        base: LinearGaussian,
        extremes: tuple[Floats, Floats] | None = None,
    ) -> None:
        """Take over what was fitted to the training data before the first step.

        `extremes` are the least and greatest value of each modelled number, in its own unit.
        """
        self.encoder.load(frame)
        self.base.load(base)
        if self.bounds is not None:
            self.bounds.load(frame, self.encoder.marginal_variance(self.base), extremes)

    def correction(self, z_BD: Tensor, log_sigma_B: Tensor, c_BK: Tensor) -> Tensor:
        """How far E lies below the Gaussian's, in nats, (B,): a(sigma) G - offset(sigma).

        And how far the mixture does, where the model departs from one.

        Where symmetries are had by averaging, the mean over all images of the record.
        """
        if self.images is None:
            correction_B = self._correction(z_BD, log_sigma_B, c_BK)
            if self.clusters is None:
                return correction_B
            # The single Gaussian's energy is what callers add.
            sigma_B = log_sigma_B.exp()
            one_B = self.base.energy(z_BD, sigma_B, c_BK)[0]
            return correction_B + one_B - self.clusters.energy(z_BD, sigma_B)[0]
        num = self.images.num
        value_N = self._correction(
            self.images.of(z_BD), log_sigma_B.repeat(num), c_BK.repeat(num, 1)
        )
        return self.images.mean(value_N)

    def _correction(self, z_BD: Tensor, log_sigma_B: Tensor, c_BK: Tensor) -> Tensor:
        noise_BE = self._embedded(log_sigma_B, c_BK)
        known_B, read = self._inputs(c_BK, z_BD, log_sigma_B)
        value_B = torch.zeros_like(log_sigma_B)
        for network, inputs in zip(self._networks, read, strict=True):
            if inputs.dim() == 3 and isinstance(network, ResidualMLP):
                # The noise is the record's, not the site's: computed once, added to all sites.
                value_B = value_B + self._read(network, inputs, noise_BE[:, None]).sum(1)
            else:
                value_B = value_B + self._read(network, inputs, noise_BE)
        fading_B = (1 + log_sigma_B.exp().square()).rsqrt()
        correction_B = value_B * fading_B - self._offset(log_sigma_B)[0]
        return correction_B if known_B is None else correction_B + known_B

    @property
    def _networks(self) -> list[ResidualMLP | LatticeNet | SitePowers]:
        """In the order in which `_inputs` says what they read."""
        others = (self.site_body, self.powers)
        return [self.body, *(network for network in others if network is not None)]

    def _inputs(self, c_BK: Tensor, z_BD: Tensor, log_sigma_B: Tensor) -> Made:
        """Nats that are known (B,), and what each network reads: (B, I) or (B, S, J)."""
        sigma_B = log_sigma_B.exp()
        known_B, near_BU = self._known(z_BD, log_sigma_B, c_BK)
        if isinstance(self.body, LatticeNet):
            has_place = not self.config.translation_symmetric
            has_pull = self.powers is not None
            sites_BSJ = self.encoder.lattice_sites(
                z_BD, sigma_B, c_BK, self.base, near_BU, has_place=has_place, has_pull=has_pull
            )
            return known_B, [sites_BSJ] * len(self._networks)
        inputs_BI, found_BSJ = self.encoder(z_BD, sigma_B, c_BK, self.base, near_BU)
        return known_B, [inputs_BI] if found_BSJ is None else [inputs_BI, found_BSJ]

    def _embedded(self, log_sigma_B: Tensor, c_BK: Tensor) -> Tensor:
        """The noise level, and for a lattice what is given beside its grid, (B, E)."""
        noise_BE: Tensor = self.embedding(log_sigma_B)
        if isinstance(self.body, LatticeNet):
            noise_BE = torch.cat([noise_BE, self.encoder.off_grid(c_BK)], dim=1)
        return noise_BE

    def _read(self, body: nn.Module, inputs: Tensor, noise: Tensor) -> Tensor:
        """What a network says, float32, its layers in `body_dtype` where that is set."""
        if self.body_dtype is None:
            said: Tensor = body(inputs, noise)
        else:
            with torch.autocast(inputs.device.type, dtype=self.body_dtype):
                said = body(inputs, noise)
        return said

    def _known(
        self, z_BD: Tensor, log_sigma_B: Tensor, c_BK: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Nats from known bounds and residuals (B,), and distances from the bounds (B, U)."""
        if self.bounds is None and self.evidence is None:
            return None, None
        mean_BD, kept_BD = self.base.denoise(z_BD, log_sigma_B.exp(), c_BK)
        known_B, near_BU = torch.zeros_like(log_sigma_B), None
        if self.bounds is not None:
            prior_BD = c_BK @ self.base.slope_DK.T
            marginal_D = self.encoder.marginal_variance(self.base)
            known_B, near_BU = self.bounds(mean_BD, kept_BD, prior_BD, marginal_D, self.base)
        if self.evidence is not None:
            known_B = known_B + self.evidence(mean_BD, log_sigma_B, c_BK, self.encoder)
        return known_B, near_BU

    def _offset(self, log_sigma_B: Tensor) -> tuple[Tensor, Tensor]:
        """Nats added to the energy at each noise level, linear between levels, and their slope."""
        grid_L = self.offset_grid_L
        step = grid_L[1] - grid_L[0]
        place_B = (log_sigma_B - grid_L[0]) / step
        inside_B = place_B.clamp(0, len(grid_L) - 1)
        lower_B = inside_B.detach().floor().long().clamp(max=len(grid_L) - 2)
        low_B, high_B = self.offset_L[lower_B], self.offset_L[lower_B + 1]
        slope_B = (high_B - low_B) * (inside_B == place_B).to(low_B) / step
        return low_B + (inside_B - lower_B) * (high_B - low_B), slope_B

    def energy(self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor) -> Tensor:
        """E in nats per record, (B,), normalised as well as the dual term was learned."""
        energy_B, _, _ = self.base.energy(z_BD, sigma_B, c_BK)
        return energy_B - self.correction(z_BD, sigma_B.log(), c_BK)

    def derivatives(
        self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor, *, create_graph: bool = False
    ) -> Derivatives:
        """E with both its first derivatives; with `create_graph` they can be trained."""
        with torch.no_grad():
            base = Derivatives(*self.base.energy(z_BD, sigma_B, c_BK))
        if torch.compiler.is_compiling():
            # autograd.grad cannot be compiled where its result is derived again; this can.
            def summed(z_BD: Tensor, log_sigma_B: Tensor) -> tuple[Tensor, Tensor]:
                value_B = self.correction(z_BD, log_sigma_B, c_BK)
                return value_B.sum(), value_B

            derived = torch.func.grad(summed, argnums=(0, 1), has_aux=True)
            (gradient_BD, noise_slope_B), correction_B = derived(z_BD, sigma_B.log())
            return _below(base, Derivatives(correction_B, gradient_BD, noise_slope_B))
        if self.has_explicit_adjoint and self.images is None and self.body_dtype is None:
            if self.clusters is not None:
                with torch.no_grad():
                    base = Derivatives(*self.clusters.energy(z_BD, sigma_B))
            return _below(base, self._explicit(z_BD, sigma_B.log(), c_BK, create_graph))
        with torch.enable_grad():
            z_BD = z_BD.detach().requires_grad_()
            log_sigma_B = sigma_B.log().detach().requires_grad_()
            correction_B = self.correction(z_BD, log_sigma_B, c_BK)
            gradient_BD, noise_slope_B = torch.autograd.grad(
                correction_B.sum(), (z_BD, log_sigma_B), create_graph=create_graph
            )
        return _below(base, Derivatives(correction_B, gradient_BD, noise_slope_B))

    def _explicit(
        self, z_BD: Tensor, log_sigma_B: Tensor, c_BK: Tensor, create_graph: bool
    ) -> Derivatives:
        """The correction with its derivatives: the networks' by hand, their inputs' by autograd.

        The graph leads to the weights alone, and once: `models/passes.py`.
        """
        noise_BE = self._embedded(log_sigma_B, c_BK)
        embedding_slope_BE = self.embedding.slope(log_sigma_B)
        inputs: Inputs
        if self.encoder.is_flat and self.evidence is None:
            inputs = FlatInputs(self.base, z_BD, log_sigma_B, c_BK)
        else:
            inputs = DerivedInputs(partial(self._inputs, c_BK), z_BD, log_sigma_B)
        offset_B, offset_slope_B = self._offset(log_sigma_B)
        fading_B = (1 + (2 * log_sigma_B).exp()).rsqrt()
        with torch.set_grad_enabled(create_graph):
            value_B, slope_B = torch.zeros_like(fading_B), torch.zeros_like(fading_B)
            gradients = []
            for network, x in zip(self._networks, inputs.read, strict=True):
                num_sites = x.shape[1] if x.dim() == 3 else 1
                if isinstance(network, SitePowers):
                    found_B, gradient, by_noise_BE = _derived(network, x, noise_BE, create_graph)
                else:
                    passes = network.passes(Embedded(noise_BE), num_sites)
                    found_B, gradient, by_noise_BE = adjoint(passes, x)
                value_B = value_B + found_B
                by_noise_BE = by_noise_BE[:, : self.embedding.size]
                slope_B = slope_B + (by_noise_BE * embedding_slope_BE).sum(dim=1)
                gradients.append(gradient)
            gradient_BD, through_inputs_B = inputs.pulled(gradients, fading_B)
            # d fading / d(ln sigma) = -sigma^2 fading^3 = fading (fading^2 - 1).
            slope_B = (slope_B + value_B * (fading_B.square() - 1)) * fading_B
            correction_B = value_B * fading_B - offset_B
            if inputs.known_B is not None:
                correction_B = correction_B + inputs.known_B
            slope_B = through_inputs_B + slope_B - offset_slope_B
        return Derivatives(correction_B, gradient_BD, slope_B)

    def score(self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor) -> Tensor:
        """-dE/dz, (B, D)."""
        return -self.derivatives(z_BD, sigma_B, c_BK).gradient_BD

    def denoise(self, z_BD: Tensor, sigma_B: Tensor, c_BK: Tensor) -> Tensor:
        """E[z0 | z]: Tweedie, z + sigma^2 score."""
        return z_BD + sigma_B[:, None].square() * self.score(z_BD, sigma_B, c_BK)
