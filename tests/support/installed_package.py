"""A package installed as hospitals install one: a wheel, by pip, into a folder of its own."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

NAME = "lung_net"


def source_of_the_example() -> str:
    """Return the package that docs/extending.md shows."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = text.split("## A model of your own")[1]
    lines = section.split("```python\n")[1].split("```")[0].splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[indent:] for line in lines) + "\n"


def write_wheel(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    """Write a wheel of a package; ``files`` are by their names inside the package."""
    content = {f"{name}/{inside}": text.encode() for inside, text in files.items()}
    info = f"{name}-1.0.dist-info"
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}"
        for path, data in content.items()
    ]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in content.items():
            archive.writestr(path, data)
    return wheel


def install(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    """Install a package with pip; returns the folder that PYTHONPATH must name."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = write_wheel(folder, name, files)
    target = folder / "site"
    subprocess.run(
        (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps",
         "--target", str(target), str(wheel)),
        check=True,
    )  # fmt: skip
    return target
