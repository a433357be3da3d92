"""``python -m server.flower.superlink DIR …``: Flower's SuperLink with a certificate that can be renewed.

``fleet.py``, ``object_files.py`` and ``runtime_api.py`` beside it say how else it differs from Flower's.
What follows the state folder are the arguments of ``flower-superlink``; the certificate they name is used for the
Runtime and Control API on the loopback interface alone.
"""

import sys
from pathlib import Path

import grpc
from flwr.supercore.grpc import generic_create_grpc_server
from flwr.superlink.cli.flower_superlink import flower_superlink

from common.flower.seam import replace_in
from server.flower.fleet import change_superlink
from server.flower.object_files import keep_objects_in_files
from server.flower.runtime_api import spare_runtime_calls
from server.members.tls import reloading_credentials


def main() -> None:
    """Serve until it is stopped."""
    state = Path(sys.argv[1])
    # The only gRPC server in this process is the Fleet API; Flower gives it the certificate of the other interfaces.
    replace_in(
        grpc,
        "ssl_server_credentials",
        lambda *_given, **_options: reloading_credentials(state),
        used_by=generic_create_grpc_server,
    )
    change_superlink(state)
    spare_runtime_calls()
    keep_objects_in_files(state)
    sys.argv = ["flower-superlink", *sys.argv[2:]]
    flower_superlink()


if __name__ == "__main__":
    main()
