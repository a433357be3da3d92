"""The process in which ``confide dev fuzz`` runs one decoder: its name, then libFuzzer's options."""

import sys

import atheris

with atheris.instrument_imports(include=["client", "common", "deploy", "server"]):
    from tests.fuzz.decoders import DECODERS, feed


def main(name: str, options: list[str]) -> None:
    """Fuzz until libFuzzer's time is up or something other than a refusal is raised; doesn't return."""
    decoder = next(decoder for decoder in DECODERS if decoder.name == name)
    atheris.Setup([name, *options], lambda content: feed(decoder, content) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
