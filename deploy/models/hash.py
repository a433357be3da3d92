"""``confide model hash``: the SHA-256 by which a hospital accepts a package, or a backbone's file."""

from pathlib import Path

import click

from common.models.backbone_file import file_hash
from common.models.package import package_hash
from deploy.command import command


@command(
    "hash",
    "Print the SHA-256 of an installed package's source, or of a backbone's file.\n\n"
    "A run names it in model.sha256, and each hospital whose people have read the source or trust the file adds it to "
    "hospital.accepted_models. Nothing of either is run.",
    "./confide model hash lung_net\n./confide model hash backbones/densenet121.onnx",
)
@click.argument("what", metavar="PACKAGE|FILE")
def main(what: str) -> int:
    """Print one line."""
    path = Path(what)
    print(file_hash(path) if path.suffix in {".onnx", ".safetensors"} else package_hash(what.partition(":")[0]))
    return 0
