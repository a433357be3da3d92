"""The frozen features of a demo's images, computed once on this machine and given to each hospital's own cache.

In production each hospital computes its own, once. A demo makes its hospitals anew each time, and computing them anew
would take most of its time; they are a fixed public function of images that this one user dealt out.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import Config, Warp
from common.errors import RunError
from common.files import replace_file
from common.models import registry
from deploy.datasets.datasets import DataSet, default_cache

FEATURES_FOLDER = "features"
"""In the user's cache folder for downloads."""

_CHUNK = 256
"""Images whose features lie in one file, and are computed by one process at a time."""

_BYTES_PER_NUMBER = 4

_INDEX_PREFIX = "index-"
"""The beginning of the name of a file that lists the files of one data set's features."""

Say = Callable[[str], None]


def features_for(data: DataSet, config: Config, say: Say, folder: Path | None = None) -> tuple[Path, ...]:
    """Return the files of the features of all images of a data set, computing those that are not there yet.

    Args:
        data: the whole data set.
        config: of the demo: its model, and the copies it trains on.
        say: called with how far it is.
        folder: of the cache; in the user's unless given.

    Returns:
        Files to be linked into a hospital's cache; none for a model on images.

    Raises:
        RunError: a process that computes them has ended.
    """
    if not registry.is_on_features(config.model.architecture):
        return ()
    _one_thread()  # The threads of this process would take the cores that its workers need.
    kept = folder or default_cache() / FEATURES_FOLDER
    index = kept / f"{_INDEX_PREFIX}{_named(data, config)}.json"
    known = _known(index, kept)
    if known:
        return known
    chunks = [
        (part.images[start : start + _CHUNK], 1 if split == "test" else config.training.copies)
        for split, part in data.parts.items()
        for start in range(0, len(part), _CHUNK)
    ]
    pictures = sum(len(images) * copies for images, copies in chunks)
    say(f"features of {pictures} pictures: computed once, kept in {kept}")
    started, done = time.monotonic(), 0
    # Processes of their own, because a small network leaves most of several threads idle.
    workers = max(1, min(os.cpu_count() or 1, len(chunks)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        name, warp = config.model.architecture, config.training.warp
        waiting: set[Future[list[str]]] = {
            # A folder for each, because a feature cache removes what an earlier user of its folder left unfinished.
            pool.submit(_compute, name, images, warp, copies, kept / f"part-{number}")
            for number, (images, copies) in enumerate(chunks)
        }
        files: set[str] = set()
        try:
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    files.update(future.result())
                    done += 1
                left = (time.monotonic() - started) / done * (len(chunks) - done)
                say(f"features: {100 * done // len(chunks)} %, {math.ceil(left)} s left; once for all demos")
        except BrokenExecutor:
            raise RunError(
                "a process that computes features must not end by itself; free memory, or start with "
                "--set model.name=cnn, which needs none"
            ) from None
        except BaseException:
            # Whoever stops a demo does not wait for what its workers have in hand; the pool would.
            for worker in active_children():
                worker.terminate()
            raise
    say(f"features: computed in {time.monotonic() - started:.0f} s")
    replace_file(index, json.dumps(sorted(files)).encode())
    return tuple(sorted(kept / name for name in files))


def _named(data: DataSet, config: Config) -> str:
    """Return a name for everything that the features follow from."""
    features = registry.frozen_features(config.model.architecture)
    version = "" if features is None else features.version
    digest = hashlib.sha256(f"{version} {config.training.warp} {config.training.copies}".encode())
    for split, part in data.parts.items():
        digest.update(f" {split} {part.images.shape} ".encode())
        digest.update(np.ascontiguousarray(part.images).data)
    return digest.hexdigest()[:32]


def _known(index: Path, folder: Path) -> tuple[Path, ...]:
    """Return the files that an index names; none where one of them, or the index, is not there or not whole."""
    try:
        files = tuple(folder / str(name) for name in json.loads(index.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return ()
    return files if all(file.is_file() for file in files) else ()


def give(files: Sequence[Path], cache: Path) -> None:
    """Put the files into a hospital's own cache: as links, or as copies on another disk."""
    if not files:
        return
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in files:
        target = cache / file.name
        with suppress(FileExistsError):
            try:
                os.link(file, target)
            except FileExistsError:
                raise
            except OSError:
                shutil.copy2(file, target)


def bytes_needed(data: DataSet, config: Config) -> int:
    """Return the disk that the hospitals' own sets of features take; 0 for a model on images."""
    if not registry.is_on_features(config.model.architecture):
        return 0
    pictures = sum(len(part) * (1 if split == "test" else config.training.copies) for split, part in data.parts.items())
    width = registry.input_shape(config.model.architecture, 1, data.channels, config.model.image_size)[1]
    return pictures * width * _BYTES_PER_NUMBER


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _compute(name: str, images: NDArray[np.uint8], warp: Warp, copies: int, folder: Path) -> list[str]:
    """Compute one chunk's features, or find them; return where its files are in the folder's own."""
    from client.features import model_files, model_inputs
    from client.warps import copies_of

    pictures = copies_of(images, warp, copies)
    model_inputs(name, pictures, folder)
    return [f"{folder.name}/{path.name}" for path in model_files(name, pictures, folder)]
