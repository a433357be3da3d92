"""A file with a password is read only where nobody else can, and only over a line that deserves it."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from deploy.hospital.pacs.access import read_access

WEB = "dicomweb:\n  url: https://pacs.example.org/dicom-web\n  user: confide\n  password: secret-5c1\n"
DICOM = "dicom:\n  host: pacs.example.org\n  port: 11112\n  called: PACS\n  calling: CONFIDE\n  unencrypted: yes\n"


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "pacs.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_both_kinds_are_read(tmp_path: Path) -> None:
    web = read_access(written(tmp_path, WEB)).dicomweb
    assert web is not None
    assert web.password.get_secret_value() == "secret-5c1"
    dicom = read_access(written(tmp_path, DICOM)).dicom
    assert dicom is not None
    assert (dicom.port, dicom.called, dicom.calling, dicom.retrieve) == (11112, "PACS", "CONFIDE", "get")


def test_certificates_lie_beside_the_file(tmp_path: Path) -> None:
    web = read_access(written(tmp_path, f"{WEB}  tls: {{authority: ca.pem}}\n")).dicomweb
    assert web is not None
    assert web.tls.authority == tmp_path / "ca.pem"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"got mode {mode:o}; run chmod 600"):
        read_access(written(tmp_path, WEB, mode))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the file: "),
        ("[", "YAML"),
        (WEB + DICOM, "one of the sections"),
        (WEB.replace("https", "http"), "url must be https"),
        (WEB.replace("https", "http") + "  unencrypted: yes\n", "must go over https"),
        (WEB.replace("https://", "https://me:secret-5c1" + "@"), "neither a password nor a query"),
        (WEB.replace("https", "ftp"), "must begin with https"),
        (WEB + "  token: secret-5c1\n", "not both"),
        (WEB + "  passwort: secret-5c1\n", "passwort"),
        (WEB + "  tls: {certificate: a.pem}\n", "certificate and key must be given together"),
        (DICOM.replace("  unencrypted: yes\n", ""), "unencrypted: yes"),
        (DICOM + "  tls: {authority: a.pem}\n", "section tls, or"),
        (DICOM.replace("CONFIDE", "A_TITLE_TOO_LONG_BY_FAR"), "calling"),
        (DICOM.replace("11112", "0"), "port"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_without_its_secret(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_access(written(tmp_path, text))
    assert "secret-5c1" not in str(caught.value)


def test_a_password_is_in_no_representation(tmp_path: Path) -> None:
    assert "secret-5c1" not in repr(read_access(written(tmp_path, WEB)))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    for name in ("a.pem", "a.key"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o644)
    web = read_access(written(tmp_path, f"{WEB}  tls: {{certificate: a.pem, key: a.key}}\n")).dicomweb
    assert web is not None
    with pytest.raises(ConfigError, match=r"tls\.key must be readable by its owner alone"):
        web.tls.client_context()


def test_a_move_over_tls_needs_a_certificate_of_ours(tmp_path: Path) -> None:
    text = DICOM.replace("unencrypted: yes", "retrieve: move\n  tls: {}")
    dicom = read_access(written(tmp_path, text)).dicom
    assert dicom is not None
    assert dicom.tls is not None
    with pytest.raises(ConfigError, match="needs authority, certificate and key"):
        dicom.tls.server_context()
