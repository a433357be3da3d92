"""``confide hospital policy``: what a hospital that has joined agrees to, and how it changes that."""

from pathlib import Path

import click

from common.config import HospitalConfig, load_config, replace
from common.errors import ConfigError
from common.files import write_private
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.command import command, state_option

_SECTION = "hospital."


@command(
    "policy",
    "Show what this hospital agrees to, whatever a server asks, and change it. It is the section 'hospital' of the "
    "config.yaml in the state folder; the file that was given when the hospital joined counts no more. A change counts "
    "from the hospital's next start.",
    "./confide hospital policy --state /srv/confide --set epsilon_budget=12",
)
@state_option("hospital", Path("hospital-state"))
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable.")
def main(state: Path, changes: tuple[str, ...]) -> int:
    """Print the policy, and what has been changed of it."""
    path = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE).config
    before = load_config(path)
    overrides = tuple(map(_override, changes))
    after = load_config(path, overrides)
    if after.hospital != before.hospital:
        write_private(path, replace(before, hospital=after.hospital.model_dump()).as_yaml())
    old, new = before.hospital.model_dump(mode="json"), after.hospital.model_dump(mode="json")
    width = max(map(len, new))
    for name, value in new.items():
        print(f"{name:<{width}}  {value}" + (f"  (was {old[name]})" if value != old[name] else ""))
    if after.hospital != before.hospital:
        print("changed; restart the hospital, which takes part by its earlier policy until then")
    return 0


def _override(change: str) -> str:
    """Return a change of the policy as the configuration takes it.

    Raises:
        ConfigError: it is no KEY=VALUE, or names a key of another section.
    """
    key, equals, _ = change.partition("=")
    name = key.removeprefix(_SECTION)
    if not equals or name not in HospitalConfig.model_fields:
        known = ", ".join(HospitalConfig.model_fields)
        raise ConfigError(f"--set takes KEY=VALUE with one of {known}; got {change!r}")
    return f"{_SECTION}{change.removeprefix(_SECTION)}"
