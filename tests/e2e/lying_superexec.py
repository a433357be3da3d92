"""``python -m tests.e2e.lying_superexec …``: the deployed executor, which starts ``lying_serverapp.py``."""

import sys
import tempfile
from pathlib import Path

from common.flower.seam import replace_in
from server.flower import superexec

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        command = Path(folder) / "serverapp"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.e2e.lying_serverapp "$@"\n')
        command.chmod(0o700)
        replace_in(superexec, "_COMMAND", str(command), used_by=superexec.SilentExecutor.launch)
        superexec.main()
