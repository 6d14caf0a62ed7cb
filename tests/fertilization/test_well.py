"""The Well: files written and read back by the project's own library."""

from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import InputError, UsageError
from scf.fertilization.readers.base import Draft
from scf.fertilization.readers.describe import describe
from scf.fertilization.readers.options import UnknownField
from scf.fertilization.readers.registry import READERS, reader_for
from scf.fertilization.readers.well import WellReader
from scf.vault.quarantine import Rejection
from support.readings import origin_of, read

h5py = pytest.importorskip("h5py", reason="extra [hdf5]")

B, T, X, Y = 3, 5, 8, 6


def write_well(path: Path, *, chunks: bool = False, t2_flat: bool = False) -> dict[str, np.ndarray]:
    """A file by the published layout with every kind of field, and the numbers in it."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {
        "pressure": numbers(B, T, X, Y),
        "lid": numbers(B, T, X),
        "speed_of_sound": numbers(B, X, Y),
        "mask": numbers(X, Y),
        "velocity": numbers(B, T, X, Y, 2),
        "strain": numbers(B, T, X, Y, *((4,) if t2_flat else (2, 2))),
        "Re": numbers(B),
        "dt": numbers(),
        "drive": numbers(B, T),
        "time": np.linspace(0, 1, T, dtype=np.float32),
        "x": np.linspace(0, 1, X, dtype=np.float32),
        "y": np.geomspace(1, 8, Y).astype(np.float32),
    }
    with h5py.File(path, "w") as file:
        file.attrs.update(
            dataset_name="toy",
            grid_type="cartesian",
            n_spatial_dims=2,
            n_trajectories=B,
            simulation_parameters=["nu"],
            nu=0.5,
        )
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = ["x", "y"]
        for name in ("time", "x", "y"):
            dimensions[name] = arrays[name]
            dimensions[name].attrs.update(sample_varying=False, time_varying=False)
        wall = file.create_group("boundary_conditions/x_boundary")
        wall.attrs.update(
            associated_dims=["x"],
            associated_fields=[],
            bc_type="WALL",
            sample_varying=False,
            time_varying=False,
        )
        wall["mask"] = np.eye(1, X, dtype=bool)[0]
        groups = {
            "t0_fields": {
                "pressure": (True, True, [True, True]),
                "lid": (True, True, [True, False]),
                "speed_of_sound": (True, False, [True, True]),
                "mask": (False, False, [True, True]),
            },
            "t1_fields": {"velocity": (True, True, [True, True])},
            "t2_fields": {"strain": (True, True, [True, True])},
            "scalars": {
                "Re": (True, False, []),
                "dt": (False, False, []),
                "drive": (True, True, []),
            },
        }
        for group_name, members in groups.items():
            group = file.create_group(group_name)
            group.attrs["field_names"] = list(members)
            for name, (by_sample, by_time, varies) in members.items():
                options = {"chunks": (1, 2, *arrays[name].shape[2:]), "compression": "gzip"}
                is_large = chunks and by_sample and by_time and varies
                item = group.create_dataset(
                    name, data=arrays[name], **(options if is_large else {})
                )
                item.attrs.update(sample_varying=by_sample, time_varying=by_time)
                if varies:
                    item.attrs["dim_varying"] = varies
    return arrays


@pytest.mark.parametrize("chunks", [False, True])
def test_a_time_step_is_a_fossil_and_a_trajectory_is_a_family(tmp_path: Path, chunks: bool) -> None:
    arrays = write_well(tmp_path / "a.hdf5", chunks=chunks)

    records = read(tmp_path / "a.hdf5")

    assert reader_for(tmp_path / "a.hdf5") is READERS["well"]
    assert [r.index for r in records] == list(range(B * T))
    assert {r.family for r in records} == {f"a.hdf5/trajectory-{b}" for b in range(B)}
    for at, draft in enumerate(records):
        b, t = divmod(at, T)
        np.testing.assert_array_equal(draft.arrays["pressure"], arrays["pressure"][b, t])
        np.testing.assert_array_equal(draft.arrays["velocity"], arrays["velocity"][b, t])
        np.testing.assert_array_equal(draft.arrays["strain"], arrays["strain"][b, t])
        np.testing.assert_array_equal(draft.arrays["speed_of_sound"], arrays["speed_of_sound"][b])
        np.testing.assert_array_equal(draft.arrays["mask"], arrays["mask"])
        assert draft.params["Re"] == arrays["Re"][b].item()
        assert draft.params["drive"] == arrays["drive"][b, t].item()
        assert (draft.params["trajectory"], draft.params["step"]) == (b, t)
        assert draft.params["time"] == arrays["time"][t].item()


def test_what_is_known_beforehand_is_given(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.h5")

    draft = read(tmp_path / "a.h5")[0]

    assert draft.params["condition_fields"] == ["speed_of_sound", "mask"]
    assert draft.source == "The Well toy"
    assert draft.params["nu"] == 0.5
    assert draft.params["dt"] == arrays["dt"].item()
    assert draft.params["boundary.x_boundary"] == "wall x"
    assert draft.params["grid_type"] == "cartesian"
    assert draft.params["grid_x"] == [0.0, 1.0, X]
    assert "grid_x_values" not in draft.params
    assert draft.params["grid_y_values"] == arrays["y"].tolist()


def test_an_axis_without_variation_has_length_one(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.h5")

    draft = read(tmp_path / "a.h5")[T + 1]

    assert draft.arrays["lid"].shape == (X, 1)
    np.testing.assert_array_equal(draft.arrays["lid"][:, 0], arrays["lid"][1, 1])


def test_a_tensor_stored_flat_is_the_same_tensor(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.h5", t2_flat=True)

    draft = read(tmp_path / "a.h5")[0]

    np.testing.assert_array_equal(draft.arrays["strain"].reshape(X, Y, 4), arrays["strain"][0, 0])
    assert draft.arrays["strain"].shape == (X, Y, 2, 2)


def test_windows_strides_and_fields_are_options(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.h5", chunks=True)
    reader = WellReader(window_steps=3, stride=2, fields=("velocity",))

    records = read(tmp_path / "a.h5", reader)

    assert len(records) == 2 * B
    assert set(records[3].arrays) == {"velocity"}
    np.testing.assert_array_equal(records[3].arrays["velocity"], arrays["velocity"][1, 2:5])
    assert records[3].params["step"] == [2, 3, 4]
    assert "condition_fields" not in records[3].params


def test_a_trajectory_shorter_than_the_window_is_refused_not_forgotten(tmp_path: Path) -> None:
    write_well(tmp_path / "a.h5")

    records = read(tmp_path / "a.h5", WellReader(window_steps=6))

    assert [(r.kind, r.index) for r in records] == [("window", 0), ("window", 1), ("window", 2)]


def test_a_wrong_option_is_refused(tmp_path: Path) -> None:
    write_well(tmp_path / "a.h5")

    with pytest.raises(UnknownField, match="the file has pressure, lid"):
        read(tmp_path / "a.h5", WellReader(fields=("pressur",)))
    with pytest.raises(UsageError):
        WellReader(window_steps=0)


def test_the_file_is_described_before_it_is_read(tmp_path: Path) -> None:
    write_well(tmp_path / "a.h5")

    told = describe(WellReader(window_steps=2), tmp_path / "a.h5")

    assert told is not None
    assert (told.num_records, told.num_families) == (B * 2, B)
    by_name = {item.name: item for item in told.fields}
    assert by_name["velocity"].shape == (2, X, Y, 2)
    assert by_name["mask"].is_given
    assert told.to_json()["fields"][0]["dtype"] == "float32"


def test_the_values_are_those_that_the_projects_own_library_gives(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the_well needs torch")
    data = pytest.importorskip("the_well.data", reason="the_well is not installed")
    dummy = pytest.importorskip("the_well.utils.dummy_data")
    dummy.write_dummy_data(str(tmp_path / "dummy.hdf5"))

    records = read(tmp_path / "dummy.hdf5")

    theirs = data.WellDataset(path=str(tmp_path), n_steps_input=1, n_steps_output=1)
    steps = 10
    assert len(records) == 2 * steps
    for at in (0, 3, len(theirs) - 1):
        sample = theirs[at]
        b, t = divmod(at, steps - 1)
        ours = records[b * steps + t]
        np.testing.assert_array_equal(ours.arrays["field"], sample["input_fields"][0].numpy())
        constant = sample["constant_fields"][..., 0].numpy()
        np.testing.assert_array_equal(ours.arrays["constant_field"], constant)
        assert [ours.params["a"], ours.params["b"]] == sample["constant_scalars"].tolist()


def test_our_own_test_file_is_one_that_their_library_opens(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the_well needs torch")
    data = pytest.importorskip("the_well.data", reason="the_well is not installed")
    write_well(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:  # their padding of axes does not take `lid`
        del file["t0_fields/lid"]
        file["t0_fields"].attrs["field_names"] = ["pressure", "speed_of_sound", "mask"]

    sample = data.WellDataset(path=str(tmp_path))[T]  # the second step of trajectory 1

    ours = read(tmp_path / "a.hdf5")[T + 1]
    flat = [ours.arrays[name].reshape(X, Y, -1) for name in ("pressure", "velocity", "strain")]
    theirs = sample["input_fields"][0].numpy()
    np.testing.assert_array_equal(np.concatenate(flat, axis=-1), theirs)


def test_a_file_without_moving_fields_has_one_fossil_a_trajectory(tmp_path: Path) -> None:
    arrays = write_well(tmp_path / "a.h5")

    records = read(tmp_path / "a.h5", WellReader(fields=("speed_of_sound",)))

    assert len(records) == B
    np.testing.assert_array_equal(records[2].arrays["speed_of_sound"], arrays["speed_of_sound"][2])
    assert "condition_fields" not in records[2].params


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda f: f["t0_fields/pressure"].attrs.__delitem__("time_varying"), "time_varying"),
        (lambda f: f["t0_fields"].attrs.__setitem__("field_names", ["p"]), "no member 'p'"),
        (lambda f: f.attrs.__setitem__("n_trajectories", 4), "leading axes"),
        (lambda f: f["t0_fields/lid"].attrs.__setitem__("dim_varying", [True, True]), "no field"),
        (lambda f: f.attrs.__setitem__("n_trajectories", 0), "0 trajectories"),
    ],
)
def test_a_file_that_breaks_its_layout_is_refused(tmp_path: Path, break_it, reason: str) -> None:
    write_well(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        break_it(file)

    with pytest.raises(InputError, match=reason):
        read(tmp_path / "a.h5")


def test_a_damaged_chunk_costs_its_own_records_only(tmp_path: Path) -> None:
    """Chunks hold 2 steps of one field; the others are read in spite of it."""
    arrays = write_well(tmp_path / "a.h5", chunks=True)
    with h5py.File(tmp_path / "a.h5") as file:
        info = file["t0_fields/pressure"].id.get_chunk_info_by_coord((1, 2, 0, 0))
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[info.byte_offset : info.byte_offset + info.size] = b"\x00" * info.size
    (tmp_path / "a.h5").write_bytes(data)

    records = read(tmp_path / "a.h5")

    refused = {r.index: r.kind for r in records if isinstance(r, Rejection)}
    assert refused == {T + 2: "damaged", T + 3: "damaged"}
    assert [r.index for r in records] == list(range(B * T))
    np.testing.assert_array_equal(records[T + 4].arrays["pressure"], arrays["pressure"][1, 4])


@pytest.mark.parametrize("kept", [100, 2000, -1])
def test_a_truncated_file_is_an_error(tmp_path: Path, kept: int) -> None:
    write_well(tmp_path / "a.h5")
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[:kept])

    with pytest.raises(InputError):
        read(tmp_path / "a.h5")


def test_a_record_past_the_limit_is_refused_and_one_past_the_limit_on_lines_is_not(
    tmp_path: Path,
) -> None:
    write_well(tmp_path / "a.h5")

    with pytest.raises(InputError, match="at most 1 kB are taken"):
        list(WellReader().read(origin_of(tmp_path / "a.h5", record_max_bytes=1000)))
    assert list(WellReader().read(origin_of(tmp_path / "a.h5", line_max_bytes=1000)))


def test_nothing_outside_the_file_is_followed(tmp_path: Path) -> None:
    write_well(tmp_path / "a.h5")
    write_well(tmp_path / "other.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["t0_fields/pressure"]
        file["t0_fields/pressure"] = h5py.ExternalLink("other.h5", "/t0_fields/pressure")

    with pytest.raises(InputError, match="another file"):
        read(tmp_path / "a.h5")

    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["t0_fields/pressure"]
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/t0_fields")
        file["t0_fields/pressure"] = h5py.SoftLink("/elsewhere/pressure")

    with pytest.raises(InputError, match="another file"):
        read(tmp_path / "a.h5")


def test_nan_is_left_to_the_validator(tmp_path: Path) -> None:
    """It refuses the one record that has it, and says which number."""
    write_well(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["t0_fields/pressure"][0, 0, 0, 0] = np.nan

    assert all(isinstance(record, Draft) for record in read(tmp_path / "a.h5"))
