import pydicom
import pytest

from client.data.views import view_of


def dataset(**fields: object) -> pydicom.Dataset:
    made = pydicom.Dataset()
    for keyword, value in fields.items():
        if keyword == "coded":
            item = pydicom.Dataset()
            item.CodeMeaning = value
            made.ViewCodeSequence = [item]
        else:
            setattr(made, keyword, value)
    return made


@pytest.mark.parametrize(
    ("fields", "view"),
    [
        ({}, ""),
        ({"ViewPosition": "PA"}, "frontal"),
        ({"ViewPosition": "AP"}, "frontal"),
        ({"ViewPosition": "AP PORTABLE"}, "frontal"),
        ({"ViewPosition": "LLD"}, "frontal"),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "RL"}, "lateral"),
        ({"ViewPosition": "LATERAL"}, "lateral"),
        ({"ViewPosition": "PA LAT"}, "lateral"),
        ({"ViewPosition": "RAO"}, "oblique"),
        ({"ViewPosition": "SUPINE"}, ""),
        ({"coded": "left lateral"}, "lateral"),
        ({"coded": "postero-anterior"}, "frontal"),
        ({"coded": "antero-posterior oblique"}, "oblique"),
        ({"PatientOrientation": ["A", "F"]}, "lateral"),
        ({"PatientOrientation": ["P", "F"]}, "lateral"),
        ({"PatientOrientation": ["L", "F"]}, ""),
        ({"PatientOrientation": ""}, ""),
        ({"SeriesDescription": "Thorax lat."}, "lateral"),
        ({"SeriesDescription": "CHEST LATERAL"}, "lateral"),
        ({"ProtocolName": "Thorax seitlich"}, "lateral"),
        ({"SeriesDescription": "Plateau"}, ""),
        ({"ViewPosition": "PA", "SeriesDescription": "Chest PA + LAT"}, "frontal"),
        ({"coded": "postero-anterior", "PatientOrientation": ["A", "F"]}, "frontal"),
    ],
    ids=str,
)
def test_a_view_is_read_from_the_four_places_that_name_it(fields: dict[str, object], view: str) -> None:
    assert view_of(dataset(**fields)) == view
