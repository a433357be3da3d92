"""``python -m common.models.onnx_worker``: runs one ONNX network in a process that can do nothing else.

The agent starts it and hands it the file's bytes. Before they are parsed the process gives up, for good, what it could
do harm with: memory beyond a limit, processor time beyond a limit, opening or writing any file, any connection. What
goes wrong with the file ends this process, not the agent.

On standard input: a line of JSON with the limits and the length of the file; the file; then for each image its height
and width (two unsigned 32-bit numbers) and 3 x height x width float32. On standard output: for the file, and for each
image, one status (an unsigned 32-bit number) and its content: for 0 the features, else as many bytes of words.
"""

import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from common.models.naming import RGB
from common.models.onnx_rules import BackboneRefusedError, Breach, image_side, read
from common.processes import die_with_parent

OK = 0
STATUS = struct.Struct("<I")
SIZE = struct.Struct("<II")

_MAP_AXES = 4
_STANDARD_STREAMS = 3
_Result = TypeVar("_Result")

_LOUDEST = 4
"""onnxruntime's level of logging at which it says nothing but fatal errors."""


def main() -> int:
    """Serve until standard input ends."""
    die_with_parent()
    source, out = sys.stdin.buffer, sys.stdout.buffer
    asked = json.loads(source.readline())
    encoded = _exactly(source, asked["file_bytes"])
    _give_up_everything(asked["memory_bytes"], asked["cpu_seconds"])
    try:
        session, side = _session(encoded, asked["threads"])
    except BackboneRefusedError as error:
        _say(out, error)
        return 0
    del encoded
    out.write(STATUS.pack(OK) + STATUS.pack(side))
    out.flush()
    while (head := source.read(SIZE.size)) and len(head) == SIZE.size:
        height, width = SIZE.unpack(head)
        pixels = _exactly(source, 4 * RGB * height * width)
        image = np.frombuffer(pixels, np.float32).reshape(1, RGB, height, width)
        try:
            features = _features(session, image)
        except BackboneRefusedError as error:
            _say(out, error)
            return 0
        out.write(STATUS.pack(OK) + STATUS.pack(features.nbytes))
        out.write(features.tobytes())
        out.flush()
    return 0


def _give_up_everything(memory_bytes: int, cpu_seconds: int) -> None:
    """Limit this process to what running a network takes, on top of what its libraries hold already."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - one line, before files are given up
        held = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes, held + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_STANDARD_STREAMS, _STANDARD_STREAMS))


def _session(encoded: bytes, threads: int) -> tuple[onnxruntime.InferenceSession, int]:
    model = _guarded(lambda: read(encoded))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOUDEST
    options.enable_cpu_mem_arena = False  # It would take powers of two of what is needed.
    options.use_deterministic_compute = True
    # Folding of constants would run operators before their sizes are known to be within limits of an image.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = _guarded(lambda: onnxruntime.InferenceSession(encoded, options, providers=["CPUExecutionProvider"]))
    return session, image_side(model)


def _features(session: onnxruntime.InferenceSession, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    name = session.get_inputs()[0].name
    (found,) = _guarded(lambda: session.run(None, {name: image}))
    if found.ndim == _MAP_AXES:
        found = found.mean(axis=(2, 3), dtype=np.float64)
    row = np.ascontiguousarray(found, np.float32)
    if row.ndim < 1 or len(row) != 1:
        raise BackboneRefusedError(Breach.OUTPUT, f"shape {found.shape[:8]} for one image")
    return row.reshape(-1)


def _guarded(work: Callable[[], _Result]) -> _Result:
    """Do some work of onnxruntime's, and name what is wrong with the file where it fails."""
    try:
        return work()
    except BackboneRefusedError:
        raise
    except MemoryError:
        raise BackboneRefusedError(Breach.MEMORY) from None
    except Exception as error:  # noqa: BLE001 - whatever a library raises for a hostile file
        words = str(error)
        if "alloc" in words.lower():
            raise BackboneRefusedError(Breach.MEMORY) from None
        raise BackboneRefusedError(Breach.FAILED, type(error).__name__) from None


def _say(out: BinaryIO, error: BackboneRefusedError) -> None:
    words = json.dumps([error.breach.name, error.detail]).encode()
    out.write(STATUS.pack(len(words)) + words)
    out.flush()


def _exactly(source: BinaryIO, length: int) -> bytes:
    content = source.read(length)
    if len(content) != length:
        os._exit(1)  # The agent has gone.
    return content


if __name__ == "__main__":
    sys.exit(main())
