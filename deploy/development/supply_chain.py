"""``python -m deploy.development.supply_chain advisories|secrets``: two of the static checks of ``confide dev check``.

``advisories`` asks for known vulnerabilities of the locked packages (pip-audit); where no advisory data can be had,
without a network or behind a mirror that carries none, it says so and passes. ``secrets`` searches for keys, tokens and
passwords among the files under version control (detect-secrets).
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from deploy.source_tree import ROOT

LOCK = "requirements.lock"

SKIPPED = "skipped"
"""The beginning of the output of a check that could not be made."""

_LONGEST_SECONDS = 45.0
"""The longest wait for advisories, which come over the network."""
_REQUEST_SECONDS = "5"

_PUBLIC = r"requirements\.lock|tests/vectors/.*|tests/fuzz/corpus/.*"
"""Hashes of packages, keys that standards print as examples, and bytes made to be refused."""


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
        finished = _run(command, _LONGEST_SECONDS)
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


def check_secrets() -> int:
    """Search the files under version control for secrets."""
    finished = _run(("-m", "detect_secrets", "scan", "--exclude-files", _PUBLIC))
    if finished.returncode != 0:
        print(finished.stderr)
        return 1
    found = json.loads(finished.stdout)["results"]
    for path, items in sorted(found.items()):
        for item in items:
            print(f"{path}:{item['line_number']}: {item['type']}")
    return 1 if found else 0


def _tell_vulnerable(packages: Sequence[dict[str, Any]]) -> int:
    vulnerable = [package for package in packages if package["vulns"]]
    for package in vulnerable:
        for advisory in package["vulns"]:
            fixed = ", ".join(advisory["fix_versions"]) or "no release yet"
            print(f"{package['name']} {package['version']}: {advisory['id']}; fixed in {fixed}")
    return 1 if vulnerable else 0


def _run(arguments: Sequence[str], longest_seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, *arguments), cwd=ROOT, check=False, capture_output=True, text=True, timeout=longest_seconds
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "pip-audit gave no answer"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
