"""``python -m deploy.development.supply_chain advisories|secrets``: two of the static checks of ``confide dev check``.

``advisories`` asks for known vulnerabilities of the locked packages (pip-audit); where no advisory data can be had,
without a network or behind a mirror that carries none, it says so and passes. ``secrets`` searches for keys, tokens and
passwords among the files under version control (detect-secrets); a file in which none was found is not searched again
until it changes.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.files import replace_file
from deploy.source_tree import ROOT

LOCK = "requirements.lock"

SKIPPED = "skipped"
"""The beginning of the output of a check that could not be made."""

_LONGEST_SECONDS = 45.0
"""The longest wait for advisories, which come over the network."""
_REQUEST_SECONDS = "5"

_PUBLIC = re.compile(r"requirements\.lock|tests/vectors/.*|tests/fuzz/corpus/.*")
"""Hashes of packages, keys that standards print as examples, and bytes made to be refused."""
_SEARCHED = ".secrets_cache/clean.json"
"""The files in which no secret was found, each as a hash of its name, its content and the version of detect-secrets."""


def main(argv: Sequence[str]) -> int:
    """Run one of the two checks; returns 0 when nothing was found."""
    return {"advisories": check_advisories, "secrets": check_secrets}[argv[0]]()


def check_advisories() -> int:
    """Search the published vulnerabilities for the locked packages."""
    command = (
        "-m", "pip_audit", "--disable-pip", "--no-deps", "-r", LOCK, "--timeout", _REQUEST_SECONDS,
        "--progress-spinner", "off", "--format", "json",
    )  # fmt: skip
    try:
        finished = _run((sys.executable, *command), longest_seconds=_LONGEST_SECONDS)
        packages = json.loads(finished.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print(f"{SKIPPED}: no advisory data within {_LONGEST_SECONDS:g} s")
        return 0
    except (ValueError, KeyError):
        print(f"{SKIPPED}: no advisory data; {_last_line(finished.stderr)}")
        return 0
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        print(f"{SKIPPED}: no advisory data for any of {len(packages)} packages from here")
        return 0
    return _tell_vulnerable(known)


def check_secrets(root: Path = ROOT) -> int:
    """Search the files under version control for secrets."""
    listed = _run(("git", "ls-files", "-z"), root=root)
    if listed.returncode != 0:
        print(f"{SKIPPED}: {_last_line(listed.stderr)}")
        return 0
    files = _marks(root, [name for name in listed.stdout.split("\0") if name and not _PUBLIC.fullmatch(name)])
    searched = root / _SEARCHED
    clean = _read_clean(searched)
    unknown = [name for name, mark in files.items() if mark not in clean]
    if not unknown:
        return 0
    # After the `--`, a file whose name begins with a dash is no option.
    finished = _run((sys.executable, "-m", "detect_secrets", "scan", "--", *unknown), root=root)
    if finished.returncode != 0:
        print(finished.stderr)
        return 1
    found = json.loads(finished.stdout)["results"]
    for path, items in sorted(found.items()):
        for item in items:
            print(f"{path}:{item['line_number']}: {item['type']}")
    searched.parent.mkdir(exist_ok=True)
    replace_file(searched, json.dumps(sorted(mark for name, mark in files.items() if name not in found)).encode())
    return 1 if found else 0


def _marks(root: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Hash each file that is there with its name, which decides what detect-secrets searches it for."""
    searched_by = version("detect-secrets")
    marks = {}
    for name in names:
        if (root / name).is_file():
            whole = json.dumps([searched_by, name]).encode() + (root / name).read_bytes()
            marks[name] = hashlib.sha256(whole).hexdigest()
    return marks


def _read_clean(searched: Path) -> frozenset[str]:
    try:
        return frozenset(json.loads(searched.read_bytes()))
    except (OSError, ValueError, TypeError):
        return frozenset()  # Every file is searched again.


def _tell_vulnerable(packages: Sequence[dict[str, Any]]) -> int:
    vulnerable = [package for package in packages if package["vulns"]]
    for package in vulnerable:
        for advisory in package["vulns"]:
            fixed = ", ".join(advisory["fix_versions"]) or "no release yet"
            print(f"{package['name']} {package['version']}: {advisory['id']}; fixed in {fixed}")
    return 1 if vulnerable else 0


def _run(
    command: Sequence[str], *, root: Path = ROOT, longest_seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=root, check=False, capture_output=True, text=True, timeout=longest_seconds)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "no answer"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
