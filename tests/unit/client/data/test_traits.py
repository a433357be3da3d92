from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.hospital_data import open_data
from client.data.pixels import Header, Picture
from client.data.readers.dicom import quiet, read_dicom
from client.data.traits import age_in_years, traits_of
from common.evaluation.statistics import AGES, GREYS, NOT_KNOWN, SEXES, SIDES, TRAITS, VIEWS
from tests.support.hospital_folder import CONTRACT, dicom, healthy

GREY = np.full((600, 700), 120, np.uint8)


def _named(traits: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> list[str]:
    return [bins[chosen] for (_, bins), chosen in zip(TRAITS, traits.tolist(), strict=True)]


def test_a_header_that_says_everything_is_counted_by_all_of_it() -> None:
    with quiet():
        picture = read_dicom(dicom(GREY, PatientSex="F", PatientAge="067Y", ViewPosition="PA"), 1)
    assert _named(traits_of(picture)) == ["frontal", "female", "65 and more", "512 to 1023", "0 to 50", "0 to 50"]


def test_a_header_that_says_nothing_is_not_known() -> None:
    named = _named(traits_of(Picture(GREY, Header())))
    assert named[:3] == [NOT_KNOWN] * 3
    assert NOT_KNOWN not in named[3:]


@pytest.mark.parametrize(
    ("age", "birth", "study", "years"),
    [
        ("018M", "", "", 1.5), ("001D", "", "", 1 / 365.25), ("", "19600615", "20260614", 65.0),
        ("", "19600615", "20260615", 66.0), ("45", "", "", None), ("", "", "20260101", None),
        ("", "20270101", "20260101", None), ("", "unknown", "20260101", None), ("045Y", "19000101", "20260101", 45.0),
    ],
)  # fmt: skip
def test_age_is_as_written_or_from_birth_and_study(age: str, birth: str, study: str, years: float | None) -> None:
    found = age_in_years(age, birth, study)
    assert found == (None if years is None else pytest.approx(years))


@pytest.mark.long
@given(st.text(max_size=6), st.text(max_size=9), st.text(max_size=9), st.text(max_size=3), st.text(max_size=8))
def test_nothing_that_a_header_holds_fails(age: str, birth: str, study: str, sex: str, view: str) -> None:
    header = Header(age=age, birth_date=birth, study_date=study, sex=sex, view=view)
    traits = traits_of(Picture(np.zeros((3, 5), np.uint8), header))
    assert all(chosen < len(bins) for chosen, (_, bins) in zip(traits.tolist(), TRAITS, strict=True))


def test_every_bin_can_be_reached() -> None:
    reached = {name: {0} for name, _ in TRAITS}
    pictures = [(8, 0, 10), (512, 60, 120), (1024, 110, 230), (2048, 0, 180), (8, 205, 255), (9, 0, 255)]
    for number, (side, low, high) in enumerate(pictures):
        pixels = np.full((side, side), low, np.uint8)
        pixels[:, side // 3 :] = high
        header = Header(
            sex=("F", "M", "O", "", "", "")[number], view=("frontal", "lateral", "", "", "", "")[number],
            age=("000Y", "010Y", "030Y", "050Y", "070Y", "")[number],
        )  # fmt: skip
        for (name, _), chosen in zip(TRAITS, traits_of(Picture(pixels, header)).tolist(), strict=True):
            reached[name].add(chosen)
    sizes = {"view": len(VIEWS), "sex": len(SEXES), "age in years": len(AGES), "short side in pixels": len(SIDES)}
    for name, size in sizes.items():
        assert reached[name] == set(range(size))
    assert all(reached[name] <= set(range(len(GREYS))) for name, bins in TRAITS if bins is GREYS)


def test_a_repr_hides_sex_and_age() -> None:
    assert "F" not in repr(Header(sex="F", age="067Y", birth_date="19500101")).replace("False", "")
    assert "067Y" not in repr(Header(age="067Y"))


def test_traits_come_back_from_the_cache(tmp_path: Path) -> None:
    hospital = healthy(tmp_path / "h")
    fresh, kept = (open_data(hospital.folder, CONTRACT, tmp_path / "cache").train for _ in range(2))
    assert fresh.traits is not None
    assert kept.traits is not None
    assert (fresh.traits == kept.traits).all()
    assert fresh.traits.shape == (len(fresh), len(TRAITS))
    assert (fresh.traits[:, 3] == 1).all()  # 32 pixels a side
