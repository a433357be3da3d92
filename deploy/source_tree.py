"""Where this copy of Confide lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder with ``config.yaml``, ``confide`` and the packages."""
