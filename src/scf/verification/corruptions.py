"""Ways to spoil held-out records, for asking whether the energy notices.

Each keeps every number of the record in its usual range and breaks only how numbers go together, so
that a detector of outliers, one number at a time, would see nothing. Harder ones are in for
honesty: they say where the energy's sight ends.
"""

from collections.abc import Callable, Mapping

import numpy as np

from scf.models.record import Floats, RecordLayout

# Shapes: N records, D modelled numbers.

Corruption = Callable[[Floats, np.random.Generator], Floats]

_RADIATION = ("ghi", "dni", "dhi")


def corruptions_for(layout: RecordLayout) -> Mapping[str, Corruption]:
    """The corruptions that make sense for records of this layout, by name."""
    places = layout.slices()
    chosen: dict[str, Corruption] = {}
    if set(_RADIATION) <= set(places):
        for name in _RADIATION:
            chosen[f"{name}_shuffled"] = _shuffled([places[name]])
        chosen["one_radiation_channel_shuffled"] = _shuffled([places[n] for n in _RADIATION])
        chosen["ghi_scaled_1.1"] = _scaled(places["ghi"], 1.1)
    else:
        for field in layout.modelled:
            if field.size > 1:
                chosen[f"{field.name}_shuffled"] = _shuffled([places[field.name]])
        if len(places) > 1:
            for name, place in places.items():
                chosen[f"{name}_exchanged"] = _exchanged([place])
    if {"temp_air", "temp_dew"} <= set(places):
        chosen["dew_point_above_air"] = _raised_above(places["temp_dew"], places["temp_air"])
    if layout.site_shape is not None and layout.site_shape[0] > 1:
        halves = [
            slice(place.start + (place.stop - place.start) // 2, place.stop)
            for place in places.values()
        ]
        chosen["halves_spliced"] = _exchanged(halves)
    return chosen


def auroc(real_N: Floats, corrupted_N: Floats) -> float:
    """Chance that a corrupted record has a higher energy than a real one; ties count half."""
    order = np.sort(real_N)
    below = np.searchsorted(order, corrupted_N, side="left")
    at_or_below = np.searchsorted(order, corrupted_N, side="right")
    return float((below + at_or_below).sum() / (2 * len(real_N) * len(corrupted_N)))


def _shuffled(choices: list[slice]) -> Corruption:
    """The numbers of one field (drawn from `choices`), in another order within the record."""

    def corrupt(x_ND: Floats, rng: np.random.Generator) -> Floats:
        spoiled = x_ND.copy()
        for row in spoiled:
            place = choices[rng.integers(len(choices))]
            row[place] = rng.permutation(row[place])
        return spoiled

    return corrupt


def _exchanged(places: list[slice]) -> Corruption:
    """These numbers taken from another record."""

    def corrupt(x_ND: Floats, rng: np.random.Generator) -> Floats:
        spoiled = x_ND.copy()
        # A cyclic shift of a random order: no record gets its own numbers back.
        order = rng.permutation(len(x_ND))
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)
        for place in places:
            spoiled[:, place] = x_ND[other][:, place]
        return spoiled

    return corrupt


def _scaled(place: slice, factor: float) -> Corruption:
    def corrupt(x_ND: Floats, _rng: np.random.Generator) -> Floats:
        spoiled = x_ND.copy()
        spoiled[:, place] *= factor
        return spoiled

    return corrupt


def _raised_above(place: slice, other: slice) -> Corruption:
    """A dew point one degree above the air's temperature, all day: supersaturated by 7 %."""

    def corrupt(x_ND: Floats, _rng: np.random.Generator) -> Floats:
        spoiled = x_ND.copy()
        spoiled[:, place] = np.maximum(x_ND[:, place], x_ND[:, other] + 1.0)
        return spoiled

    return corrupt
