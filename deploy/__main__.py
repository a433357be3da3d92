"""``python -m deploy``: what the command ``./confide`` runs."""

import os
import sys

from deploy.cli import main

os.umask(0o077)  # What a command writes is its own alone, whatever umask it was started with.
sys.exit(main(sys.argv[1:]))
