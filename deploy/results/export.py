"""``confide export``: a trained model for people without Confide, as one ONNX file or as a MONAI bundle around it."""

from pathlib import Path

import click

from common.errors import RunError
from common.files import replace_file
from deploy.command import FILE, command, out_option
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, load_model

ONNX_FILE = "model.onnx"
BUNDLE_FOLDER = "monai_bundle"


@command(
    "export",
    "Write a trained model for people without Confide: one ONNX file that takes pictures of any size and gives "
    "probabilities and decisions, or a MONAI bundle around it. Before it is written, the file is run beside "
    "./confide predict.\n\n"
    f"MODEL is a run's folder, or one of {CARD_FILE} and {TENSORS_FILE}.",
    "./confide export runs/0123456789ab --onnx",
)
@click.argument("model", type=FILE)
@click.option("--onnx", "as_onnx", is_flag=True, help=f"Write {ONNX_FILE}.")
@click.option("--monai", "as_bundle", is_flag=True, help=f"Write a MONAI bundle, the folder {BUNDLE_FOLDER}.")
@out_option(shown="the model's folder", help="Where to write.")
def main(model: Path, as_onnx: bool, as_bundle: bool, out: Path | None) -> int:
    """Write what was asked for."""
    if not as_onnx and not as_bundle:
        raise click.UsageError("name what to write: --onnx, --monai or both")
    folder = model.parent if model.name in (CARD_FILE, TENSORS_FILE) else model
    flat, card = load_model(folder)
    from deploy.results.onnx_file import to_onnx  # PyTorch's exporter takes seconds to import.

    encoded = to_onnx(flat, card)
    written = []
    to = out or folder
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out must name a folder that can be written: {error.strerror}") from None
    if as_onnx:
        replace_file(to / ONNX_FILE, encoded)
        written.append(to / ONNX_FILE)
    if as_bundle:
        from deploy.results.monai_bundle import write_bundle

        write_bundle(to / BUNDLE_FOLDER, encoded, card)
        written.append(to / BUNDLE_FOLDER)
    for path in written:
        print(path)
    return 0
