"""Where the ledger of a hospital's data lies. A ledger belongs to the data, and outlives a membership.

**Which images a ledger counts** stands beside it, in ``images.bin``: for each image that it has ever been opened for,
hashes of its file and of its prepared pixels. They stay on this machine.

**Rules**, when a run opens the data of a hospital:

1. A hospital without a ledger goes on with the one of this machine that knows one of its images, wherever that lies,
   and keeps only its place. Without one, it begins a ledger.
2. Images that two ledgers of this machine know are refused: nobody can say which of the two an image has spent.
3. Data that has changed goes on with its ledger if they have an image in common: a new image counts as if it had spent
   what the others have, and one that is gone is still known. Data without any image in common is refused, for the
   operator to decide (``confide hospital ledger accept``).
4. The ledger must hold the newest line that the hospital's own audit chain knows; in a new state folder, which has no
   chain yet, the line that the consortium remembers.

A machine's list of ledgers is ``ledgers.json`` in :func:`registry_folder`. Where it is damaged, the rules cannot be
kept, so nothing is opened until it is put right.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.ledger import chain
from client.ledger.chain import Anchor, Hexadecimal
from client.ledger.held import newest_anchor
from client.ledger.ledger import LEDGER_FOLDER, Ledger, booked
from client.ledger.remembered import remembered, remembered_anchor
from common.audit.chain import AUDIT_FILE
from common.errors import LedgerError
from common.files import hold, locked, write_private
from common.privacy.budget import Booking

PLACE_FILE = "ledger-place.json"
"""In a hospital's state folder: where its ledger lies, if elsewhere."""
IMAGES_FILE = "images.bin"
STATES_FILE = "data-states.json"
"""Beside a ledger: the fingerprints of the data that it counts, as that grew or was corrected."""
REGISTRY_FILE = "ledgers.json"
REGISTRY_VARIABLE = "XDG_STATE_HOME"

DIGEST_BYTES = 16
VERSION: Final = 1
_HEAD = b"confide images 1\n"
_LOCK = "images.lock"
_DIGEST = f"V{DIGEST_BYTES}"

_Digests = npt.NDArray[np.void]


class _Place(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = VERSION
    folder: Annotated[str, Field(max_length=4096)]


class _States(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = VERSION
    fingerprints: tuple[Hexadecimal, ...]


class _Registry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = VERSION
    ledgers: tuple[Annotated[str, Field(max_length=4096)], ...] = ()


def registry_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return where this user's machine keeps its list of ledgers; None for a user without a home."""
    state = environment.get(REGISTRY_VARIABLE) or (
        str(Path(environment["HOME"]) / ".local" / "state") if environment.get("HOME") else ""
    )
    return Path(state) / "confide" if state else None


def ledger_folder(state: Path) -> Path:
    """Return the folder of a hospital's ledger, which may be missing: in its state folder, or where that says.

    Raises:
        LedgerError: the file that says so cannot be read.
    """
    try:
        return Path(_Place.model_validate_json((state / PLACE_FILE).read_bytes()).folder)
    except FileNotFoundError:
        return state / LEDGER_FOLDER
    except (OSError, ValidationError):
        raise LedgerError(f"{PLACE_FILE} must say where this hospital's ledger lies; it cannot be read") from None


def go_on_with(state: Path, given: Path) -> Path:
    """Let a hospital without a ledger go on with one that lies elsewhere.

    Args:
        state: the hospital's state folder.
        given: the ledger's folder, or a state folder that holds it.

    Raises:
        LedgerError: there is no ledger, or the hospital has one of its own.
    """
    folder = next((place for place in (given / LEDGER_FOLDER, given) if chain.exists(place)), None)
    if folder is None:
        raise LedgerError(f"--ledger must be the folder of a ledger, or a state folder that holds one, got {given}")
    own = ledger_folder(state)
    if own.resolve() == folder.resolve():
        return folder
    if chain.exists(own):
        raise LedgerError("this hospital has a ledger; it goes on with that one, and cannot take another")
    write_private(state / PLACE_FILE, _Place(folder=str(folder.resolve())).model_dump_json().encode())
    return folder


def held_line(state: Path) -> Anchor | None:
    """Return the line that a hospital's ledger must hold: by its own chain, or else by the consortium's memory.

    Raises:
        AuditError: the chain cannot be read.
        LedgerError: what the consortium remembers cannot be read.
    """
    return newest_anchor(state / AUDIT_FILE) or remembered_anchor(state)


def booked_by(state: Path, registry: Path | None) -> tuple[Booking, ...]:
    """Return what a hospital's ledger holds, without its data: what is known of a run's cost before its data is open.

    Where the ledger is not here yet, as in a new state folder, it is the one of this machine that holds the line which
    the consortium remembers. A new state folder without such a line has booked nothing that can be known by then.

    Raises:
        LedgerError: the ledger was tampered with, the line that it must hold is nowhere on this machine, or the
            machine's list of ledgers cannot be read.
        AuditError: the hospital's chain cannot be read.
    """
    folder, held = ledger_folder(state), held_line(state)
    if held is not None and not chain.exists(folder):
        for other in _registered(registry):
            with suppress(LedgerError):
                return booked(other, held)
    return booked(folder, held)


def open_ledger(state: Path, fingerprint: bytes, images: bytes, registry: Path | None) -> Ledger:
    """Open the ledger of a hospital's data, or begin one; see the module for the rules.

    Args:
        state: the hospital's state folder.
        fingerprint: of the data as it is now, 32 bytes.
        images: :data:`DIGEST_BYTES` for each hash of an image.
        registry: the machine's list of ledgers; None for data that is not a hospital's own, as in a demo.

    Raises:
        LedgerError: a rule is broken, or the ledger was edited, truncated, rolled back or removed.
        AuditError: the hospital's chain cannot be read.
    """
    here = _digests(images)
    others = [folder for folder in _registered(registry) if _knows(folder, here)]
    if not chain.exists(ledger_folder(state)) and len(others) == 1:
        go_on_with(state, others[0])
    folder = ledger_folder(state)
    if any(other.resolve() != folder.resolve() for other in others):
        raise LedgerError(
            "the images must be counted by one ledger, and another on this machine knows some of them; join with a new "
            "--state and --ledger, or take these images away"
        )
    if (state / PLACE_FILE).exists() and not chain.exists(folder):
        raise LedgerError("this hospital's ledger must lie where it was; put it back, or correct " + PLACE_FILE)
    _require_remembered(state, folder)
    known = _accepted(folder, fingerprint, here)
    ledger = Ledger.open(folder, fingerprint, held_line(state), known)
    _remember(folder, fingerprint, here)
    if registry is not None:
        _register(registry, folder)
    return ledger


def _require_remembered(state: Path, folder: Path) -> None:
    """Say where a ledger that the consortium remembers is missing, before one is begun."""
    told = remembered(state)
    if told is not None and not chain.exists(folder) and newest_anchor(state / AUDIT_FILE) is None:
        raise LedgerError(
            f"the consortium remembers that the data of {told.hospital} has spent ε = {told.epsilon:g}, by a ledger "
            "that is not here: give it with `confide hospital join --ledger DIR`; where it is lost, "
            "`confide hospital ledger accept --forget` goes on without, and the ledger says so"
        )


def _accepted(folder: Path, fingerprint: bytes, here: _Digests) -> frozenset[str]:
    """Return the fingerprints that this data may be bound to: its own, and those of what it has grown from."""
    earlier = _states(folder)
    if fingerprint.hex() in earlier or _knows(folder, here):
        return frozenset(earlier)
    return frozenset()


def _remember(folder: Path, fingerprint: bytes, here: _Digests) -> None:
    """Add this data to what the ledger counts, before anything is booked for it."""
    states = _states(folder)
    if fingerprint.hex() in states and (folder / IMAGES_FILE).exists() and _contains(folder, here):
        return
    with chain.usable(), hold(folder / _LOCK):
        union = np.union1d(_read_images(folder), here)
        write_private(folder / IMAGES_FILE, _HEAD + union.tobytes())
        names = tuple(dict.fromkeys((*_states(folder), fingerprint.hex())))
        write_private(folder / STATES_FILE, _States(fingerprints=names).model_dump_json().encode())


def _knows(folder: Path, here: _Digests) -> bool:
    return bool(len(here)) and len(np.intersect1d(_read_images(folder), here)) > 0


def _contains(folder: Path, here: _Digests) -> bool:
    return len(np.setdiff1d(here, _read_images(folder))) == 0


def _digests(images: bytes) -> _Digests:
    return np.unique(np.frombuffer(images, _DIGEST))


def _read_images(folder: Path) -> _Digests:
    """Return the images that a ledger counts; none where it was begun by an earlier version.

    Raises:
        LedgerError: the file is damaged.
    """
    try:
        content = (folder / IMAGES_FILE).read_bytes()
    except FileNotFoundError:
        return _digests(b"")
    except OSError as error:
        raise LedgerError(f"{IMAGES_FILE} beside the ledger must be readable: {error.strerror}") from None
    if not content.startswith(_HEAD) or (len(content) - len(_HEAD)) % DIGEST_BYTES:
        raise LedgerError(f"{IMAGES_FILE} beside the ledger must say which images it counts; it was changed")
    return _digests(content[len(_HEAD) :])


def _states(folder: Path) -> tuple[str, ...]:
    try:
        return _States.model_validate_json((folder / STATES_FILE).read_bytes()).fingerprints
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError):
        raise LedgerError(f"{STATES_FILE} beside the ledger must say which data it counts; it was changed") from None


def _registered(registry: Path | None) -> Iterable[Path]:
    """Return the ledgers of this machine that are still there."""
    if registry is None:
        return ()
    return [path for path in map(Path, _read_registry(registry).ledgers) if chain.exists(path)]


def _read_registry(registry: Path) -> _Registry:
    """Return the machine's list; an empty one where there is none, or where this user cannot have one.

    Raises:
        LedgerError: it is there and cannot be read; without it, images could be counted by two ledgers.
    """
    try:
        return _Registry.model_validate_json((registry / REGISTRY_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return _Registry()
    except OSError as error:
        if not os.path.lexists(registry):
            return _Registry()  # The home above it is closed to this user, who has written no list there.
        found = error.strerror or type(error).__name__
    except ValidationError:
        found = "it was changed, or written by another version"
    raise LedgerError(
        f"{registry / REGISTRY_FILE} must list the ledgers of this machine: {found}; restore it, or move it away and "
        "start each hospital of this machine once, which enters its ledger again"
    )


def _register(registry: Path, folder: Path) -> None:
    """Enter a ledger in the machine's list; a machine without a writable home has none."""
    place = str(folder.resolve())
    with suppress(OSError):
        if place in _read_registry(registry).ledgers:
            return
        with locked(registry):
            ledgers = (*_read_registry(registry).ledgers, place)
            write_private(registry / REGISTRY_FILE, _Registry(ledgers=ledgers).model_dump_json().encode())
