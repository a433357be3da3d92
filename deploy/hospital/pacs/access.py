"""How a hospital's PACS is reached: a file that its owner alone can read, because it may hold a password.

::

    dicomweb:                                  # one of the two
      url: https://pacs.example.org/dicom-web
      user: confide                            # or token: …, for a bearer token
      password: …
      tls:
        authority: hospital-ca.pem             # who signed the PACS's certificate; left out, the system's list counts
        certificate: confide.pem               # where the PACS asks for one, with its key
        key: confide.key
    dicom:
      host: pacs.example.org
      port: 11112
      called: PACS                             # the PACS's application entity title
      calling: CONFIDE                         # ours, which the PACS must know
      retrieve: get                            # or move, which needs the port below
      listen_port: 11113
      unencrypted: yes                         # in place of tls, where the PACS has none

A line without encryption must be asked for: ``unencrypted: yes``. A password is sent over such a line within this
    machine alone.
"""

import os
import ssl
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from common.errors import ConfigError
from common.hosts import LOOPBACK
from common.settings import Port
from common.yaml_text import NO_YAML, read_yaml

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LARGEST_BYTES = 2**16

Title = Annotated[str, Field(pattern=r"^[A-Za-z0-9_. -]{1,16}$")]
"""An application entity title (PS3.5, 6.2, AE)."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Part):
    """Certificates of an encrypted line; paths count from the folder of the access file."""

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key must be given together")
        return self

    def client_context(self) -> ssl.SSLContext:
        """Return a context that checks the PACS's certificate and name.

        Raises:
            ConfigError: a file of certificates or a key cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.authority)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._load(context)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"tls: its files must be PEM and readable: {_why(error)}") from None
        return context

    def server_context(self) -> ssl.SSLContext:
        """Return a context for the port that a C-MOVE delivers to, which checks the PACS's certificate.

        Raises:
            ConfigError: a file of certificates or a key cannot be used, or is not named.
        """
        if self.certificate is None or self.authority is None:
            raise ConfigError("tls: retrieve: move needs authority, certificate and key, for the PACS connects to us")
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.authority)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.verify_mode = ssl.CERT_REQUIRED
            self._load(context)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"tls: its files must be PEM and readable: {_why(error)}") from None
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        if self.certificate is not None and self.key is not None:
            _check_private(self.key, "tls.key")
            context.load_cert_chain(self.certificate, self.key)

    def below(self, folder: Path) -> "Tls":
        """Return the same with paths that count from ``folder``."""
        return Tls(**{name: path and folder / path for name, path in self})


class DicomWeb(_Part):
    """A PACS that speaks DICOMweb (PS3.18)."""

    url: str
    user: str = ""
    password: SecretStr = SecretStr("")
    token: SecretStr = SecretStr("")
    tls: Tls = Tls()
    unencrypted: bool = False

    @model_validator(mode="after")
    def _is_encrypted_or_says_so(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must begin with https:// (or http://) and a host")
        if parts.username is not None or parts.password is not None or parts.query:
            raise ValueError("url must hold neither a password nor a query; give user and password")
        if parts.scheme == "http" and not self.unencrypted:
            raise ValueError("url must be https, or say 'unencrypted: yes' beside it")
        has_secret = self.password.get_secret_value() or self.token.get_secret_value()
        if parts.scheme == "http" and has_secret and parts.hostname not in LOOPBACK:
            raise ValueError("a password or token must go over https")
        if self.token.get_secret_value() and self.user:
            raise ValueError("give user and password, or token, not both")
        return self


class Dicom(_Part):
    """A PACS that speaks DICOM's own protocol (PS3.7, PS3.8)."""

    host: str
    port: Port
    called: Title
    calling: Title
    retrieve: Literal["get", "move"] = "get"
    listen_host: str = "0.0.0.0"  # noqa: S104 - the PACS delivers to it after a C-MOVE, and only its title is let in
    listen_port: Port = 11113
    tls: Tls | None = None
    unencrypted: bool = False

    @model_validator(mode="after")
    def _is_encrypted_or_says_so(self) -> Self:
        if (self.tls is None) != self.unencrypted:
            raise ValueError("give the section tls, or 'unencrypted: yes' where the PACS has no TLS")
        return self


class Access(_Part):
    """How one PACS is reached."""

    dicomweb: DicomWeb | None = None
    dicom: Dicom | None = None

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.dicomweb is None) == (self.dicom is None):
            raise ValueError("the file must have one of the sections dicomweb and dicom")
        return self


def read_access(path: Path) -> Access:
    """Read an access file.

    Raises:
        ConfigError: others can read it, it is no YAML, or breaks a rule; the message never repeats a value.
    """
    _check_private(path, "--pacs")
    try:
        with path.open("rb") as file:
            tree: Any = read_yaml(file.read(_LARGEST_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"--pacs must name a readable file: {error.strerror}") from None
    except (RecursionError, *NO_YAML):
        raise ConfigError("--pacs must name a YAML file; docs/data-manager.md shows one") from None
    try:
        access = Access.model_validate(tree)
    except ValidationError as error:
        finding = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in finding["loc"]) or "the file"
        raise ConfigError(f"--pacs: {place}: {finding['msg'].removeprefix('Value error, ')}") from None
    return _with_paths(access, path.resolve().parent)


def _with_paths(access: Access, folder: Path) -> Access:
    if access.dicomweb is not None:
        moved = access.dicomweb.model_copy(update={"tls": access.dicomweb.tls.below(folder)})
        return access.model_copy(update={"dicomweb": moved})
    if access.dicom is not None and access.dicom.tls is not None:
        return access.model_copy(
            update={"dicom": access.dicom.model_copy(update={"tls": access.dicom.tls.below(folder)})}
        )
    return access


def _check_private(path: Path, name: str) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{name} must name a readable file: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{name} must name a file")
    if status.st_mode & _OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"{name} must be readable by its owner alone, got mode {mode:o}; run chmod 600 on it")
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{name} must belong to the user that runs this command, or to root")


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__
