"""Audit chains on an operator's page: whether each line follows the one before it and is signed by its writer."""

import subprocess
import sys
from pathlib import Path

from cryptography import x509

from common.audit.chain import read_chain
from common.errors import AuditError
from deploy.source_tree import ROOT

_VERIFY_SECONDS = 600.0


class Chains:
    """What was found of each chain; a file that has not changed is not read again.

    Args:
        authority: the consortium's, from which all trust comes.
    """

    def __init__(self, authority: x509.Certificate) -> None:
        self._authority = authority
        self._found: dict[Path, tuple[tuple[int, int], str]] = {}

    def words(self, path: Path) -> str:
        """Say whether a chain is whole, of how many lines."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return "none yet"
        stamp = found.st_size, found.st_mtime_ns
        if self._found.get(path, (None, ""))[0] != stamp:
            self._found[path] = stamp, self._checked(path)
        return self._found[path][1]

    def _checked(self, path: Path) -> str:
        try:
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # The last line may be on its way to the disk.
            if not whole:
                return "none yet"
            chain = read_chain(whole, path.name, self._authority)
        except (AuditError, OSError) as error:
            return f"NOT WHOLE: {error}"
        lines = len(chain.entries)
        return f"whole: {lines} {'line' if lines == 1 else 'lines'}, signed by {chain.party}"


def verify_run(folder: Path) -> str:
    """Return what ``confide audit verify`` says of a run's folder, from a process of its own: it takes PyTorch."""
    done = subprocess.run(
        (sys.executable, "-m", "deploy", "audit", "verify", str(folder)),
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=_VERIFY_SECONDS,
    )  # fmt: skip
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1] if lines else "no verdict"
