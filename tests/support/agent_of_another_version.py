"""A hospital's agent out of another source tree, in a process of its own that reads the same state folder.

``next_release`` copies the tree and moves its window of protocol versions on by one, as a release does. The process
takes over what a hospital's upgrade takes over: identity, ledger, audit chain and record of answered rounds, on disk.
"""

import io
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from client.agent import Answer, Array
from common.config import PROTOCOL_VERSION, HospitalConfig
from common.files import write_private
from common.identity.certificates import HospitalIdentity, certificate_pem, private_key_pem
from common.run import messages
from common.run.messages import Request

ROOT = Path(__file__).parents[2]
NEXT = PROTOCOL_VERSION + 1

_LENGTH = struct.Struct(">Q")

_WORKER = """
import io, json, os, struct, sys
from pathlib import Path
import numpy as np
from client.agent import HospitalAgent, Surroundings
from common.audit.chain import AUDIT_FILE, AuditChain
from common.audit.parties import Writer
from common.config import PROTOCOL_VERSION, HospitalConfig
from common.identity.certificates import load_certificate, load_identity
from common.run.messages import decode_request, encode

told = json.loads(sys.argv[1])
state = Path(told["state"])
identity = load_identity(state)
chain = AuditChain(state / AUDIT_FILE, Writer(identity.certificate, identity.key))
agent = HospitalAgent(
    identity, load_certificate(state / "ca.pem"), HospitalConfig.model_validate_json(json.dumps(told["policy"])),
    Surroundings(
        record=chain.append, state=state, data=Path(told["data"]), cache=Path(told["cache"]), random=os.urandom
    ),
)
length = struct.Struct(">Q")
def read():
    (size,) = length.unpack(sys.stdin.buffer.read(length.size))
    return sys.stdin.buffer.read(size)
def write(content):
    sys.stdout.buffer.write(length.pack(len(content)) + content)
    sys.stdout.buffer.flush()
write(str(PROTOCOL_VERSION).encode())
while True:
    try:
        request, array = read(), read()
    except struct.error:
        break
    model = np.load(io.BytesIO(array), allow_pickle=False) if array else None
    reply, vector = agent.answer(decode_request(request), model)
    write(encode(reply))
    content = io.BytesIO()
    if vector is not None:
        np.save(content, vector, allow_pickle=False)
    write(content.getvalue())
"""


def next_release(folder: Path) -> Path:
    """Copy what a hospital runs, as the next release: it speaks the version after ours, and ours."""
    for package in ("client", "common"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(project.replace('\nversion = "', '\nversion = "9.', 1), encoding="utf-8")
    config = folder / "common" / "config.py"
    ours = f"\nPROTOCOL_VERSION = {PROTOCOL_VERSION}\n"
    source = config.read_text(encoding="utf-8")
    assert ours in source
    assert f"\nOLDEST_PROTOCOL_VERSION = {PROTOCOL_VERSION}\n" in source
    config.write_text(source.replace(ours, f"\nPROTOCOL_VERSION = {NEXT}\n"), encoding="utf-8")
    return folder


class AgentOfAnotherVersion:
    """Answers as :class:`client.agent.HospitalAgent` does, from a process that runs the tree ``release``.

    Raises:
        RuntimeError: the process ended, or speaks another version than expected.
    """

    def __init__(
        self,
        release: Path,
        identity: HospitalIdentity,
        authority: bytes,
        policy: HospitalConfig,
        folders: Mapping[str, Path],
    ) -> None:
        state = folders["state"]
        write_private(state / "identity.key", private_key_pem(identity.key))
        write_private(state / "identity.pem", certificate_pem(identity.certificate))
        write_private(state / "ca.pem", authority)
        told: dict[str, Any] = {name: str(path) for name, path in folders.items()}
        told["policy"] = policy.model_dump(mode="json")
        self._process = subprocess.Popen(
            (sys.executable, "-c", _WORKER, json.dumps(told)), cwd=release, env={"PYTHONPATH": str(release)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.version = int(self._read())

    def answer(self, request: Request, array: Array | None) -> Answer:
        """Send one request as it travels, and read the reply as it travels."""
        content = io.BytesIO()
        if array is not None:
            np.save(content, array, allow_pickle=False)
        for part in (messages.encode(request), content.getvalue()):
            self._to.write(_LENGTH.pack(len(part)) + part)
        self._to.flush()
        reply, vector = messages.decode_reply(self._read()), self._read()
        return reply, np.load(io.BytesIO(vector), allow_pickle=False) if vector else None

    def close(self) -> None:
        """End the process, and wait for its end."""
        self._to.close()
        self._process.wait(timeout=60)
        self._from.close()

    @property
    def _to(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _from(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _read(self) -> bytes:
        head = self._from.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise RuntimeError("the agent of another version has ended; see its output above")
        (size,) = _LENGTH.unpack(head)
        return self._from.read(size)
