import socket
from pathlib import Path

from common.settings import free_port
from deploy.containers.health import unreachable


def test_only_addresses_that_nobody_listens_on_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        alive = f"127.0.0.1:{listener.getsockname()[1]}"
        dead = f"127.0.0.1:{free_port()}"
        assert unreachable((alive, dead)) == (dead,)


def test_a_socket_in_a_folder_is_an_address(tmp_path: Path) -> None:
    alive, dead = tmp_path / "alive.sock", tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(alive))
        listener.listen()
        assert unreachable((str(alive), str(dead))) == (str(dead),)
