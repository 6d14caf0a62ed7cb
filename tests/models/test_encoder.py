import numpy as np
import torch

from scf.models.record import FieldLayout, RecordLayout
from support.gaussian_records import record_energy, solar_days


def test_closure_residual_is_read_off_its_formula() -> None:
    """The feature is (ghi - dni cos_zenith - dhi) over its spread under noise and tolerance."""
    days, units = solar_days(100)
    days["ghi"][0, 12] += 150.0
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (24,), units[n]) for n in days], ["cos_zenith"]
    )
    x, c = layout.pack(days)
    energy = record_energy(layout, x, c)
    encoder = energy.model.encoder
    (closure,) = encoder.residuals
    z, g = energy.to_model(x, c)
    sigma = torch.full((len(z),), 0.1)

    found = closure(z, sigma, g, encoder).numpy()

    up = np.clip(days["cos_zenith"], 0, None)
    residual = days["ghi"] - days["dni"] * up - days["dhi"]
    noise = 0.1 * energy.frame.scale_D[0] * np.sqrt(2 + up**2)
    expected = residual / np.sqrt(noise**2 + closure.constraint.tolerance**2)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert abs(found[0, 12]) > 2 > 1e-2 > np.abs(found[1:]).max()


def test_inputs_are_of_order_one_at_every_noise_level() -> None:
    """Whatever sigma is, no input exceeds its bound and the record's part stays informative."""
    days, units = solar_days(200)
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (24,), units[n]) for n in days], ["cos_zenith"]
    )
    x, c = layout.pack(days)
    energy = record_energy(layout, x, c)
    z, g = energy.to_model(x, c)
    for sigma in (0.01, 0.3, 30.0):
        noisy = z + sigma * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        inputs, sites = energy.model.encoder(
            noisy, torch.full((len(z),), sigma), g, energy.model.base
        )
        assert inputs.abs().max() <= 5
        assert sites.abs().max() <= 5
        assert sites.shape == (200, 24, energy.model.encoder.num_site_features)
