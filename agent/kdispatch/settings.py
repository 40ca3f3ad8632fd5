"""What can be set, each thing stated once: flags, environment, file and documents derive from it.

Precedence: flags, then the environment, then ``config.toml`` in the
configuration directory, then the defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from kdispatch.private_files import private_lock, write_private
from kdispatch.relay_url import RelayUrl
from kdispatch.setup_error import SetupError

__all__ = [
    "CONFIG_VERSION",
    "ENVIRONMENT",
    "Setting",
    "Settings",
    "SetupError",
    "config_directory",
    "environment_switch",
    "load_settings",
    "private_lock",
    "remember_relay",
    "setting_of",
    "state_directory",
    "version",
    "write_private",
]

CONFIG_VERSION: Final = 1
CONFIG_FILE: Final = "config.toml"

#: Variables that are no settings of the file; nothing else reads the environment by name.
ENVIRONMENT: Final[dict[str, str]] = {
    "KDISPATCH_CONFIG_DIR": "The directory of config.toml and of the stored tokens, instead of the platform's.",
    "KDISPATCH_STATE_DIR": "The directory of what is known of running agents, and of their logs, "
    "instead of the platform's.",
    "KDISPATCH_TOKEN": "The token to show, where neither --token nor --token-file is given.",
    "KDISPATCH_NO_UVLOOP": "With 1, the standard event loop is used although uvloop is installed.",
    "KDISPATCH_DEBUG": "With 1, an error is followed by its traceback.",
}

_SWITCH: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """How one setting is written: its flag, its variable, its unit, and one sentence."""

    flag: str
    env: str
    unit: str
    text: str


def _setting(default: Any, flag: str, env: str, unit: str, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"setting": Setting(flag, env, unit, text)})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values in force; the fields' names are the keys of ``config.toml``."""

    relay: str = _setting(
        "", "--relay", "KDISPATCH_RELAY", "URL", "The relay's address; sign-up and login remember it."
    )
    insecure_plaintext: bool = _setting(
        False,  # noqa: FBT003 - the default beside its field
        "--insecure-plaintext",
        "KDISPATCH_INSECURE_PLAINTEXT",
        "yes or no",
        "Allow plain http to another machine: everyone on the way can read tokens.",
    )

    log_format: str = _setting("text", "--log-format", "KDISPATCH_LOG_FORMAT", "text or json", "How agents log.")
    grace: float = _setting(
        120.0,
        "--grace",
        "KDISPATCH_GRACE",
        "seconds, 0 to 86400",
        "How long a running connection waits for a lost session before it is reset.",
    )
    open_wait: float = _setting(
        30.0,
        "--open-wait",
        "KDISPATCH_OPEN_WAIT",
        "seconds, 0 to 60",
        "How long a new connection waits for the relay and a host before it is reset.",
    )

    rotate: float = _setting(
        1800.0,
        "--rotate",
        "KDISPATCH_ROTATE",
        "seconds, 1 to 86400",
        "How old a session gets before another takes its place, give or take a sixth.",
    )

    def __post_init__(self) -> None:
        # The upper bound of open_wait: a host remembers ended streams for no less, so none is asked for twice.
        for name, least, most in (("grace", 0.0, 86400.0), ("open_wait", 0.0, 60.0), ("rotate", 1.0, 86400.0)):
            value = getattr(self, name)
            if not least <= value <= most:
                setting = setting_of(name)
                raise SetupError("bad_request", f"{name} is {value:g}.", hint=f"Write {setting.unit}: {setting.flag}.")

    @property
    def relay_url(self) -> RelayUrl:
        """The relay's checked address; raises ``bad_relay_url`` or ``plaintext_refused``."""
        return RelayUrl.parse(self.relay, insecure_plaintext=self.insecure_plaintext)


def setting_of(name: str) -> Setting:
    """The description of the field ``name`` of :class:`Settings`."""
    field = next(field for field in dataclasses.fields(Settings) if field.name == name)
    setting: Setting = field.metadata["setting"]
    return setting


def load_settings(**flags: str | bool | float | None) -> Settings:
    """Merge flags (``None``: not given), environment, file and defaults.

    Raises :class:`SetupError` for a value of the wrong type, an unknown key or
    a file that can't be read.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        setting: Setting = field.metadata["setting"]
        if text := os.environ.get(setting.env, ""):
            values[field.name] = _from_text(field.default, setting.env, text)
    values = _read_file(config_directory() / CONFIG_FILE) | values
    return Settings(**values | {name: value for name, value in flags.items() if value is not None})


def _from_text(default: object, name: str, text: str) -> Any:
    if isinstance(default, bool):
        return _switch(name, text)
    if not isinstance(default, float):
        return text
    try:
        return float(text)
    except ValueError:
        raise SetupError("bad_request", f"{name} is {text!r}.", hint="Write a number of seconds.") from None


def config_directory() -> Path:
    """Where ``config.toml`` and the stored tokens are; it may not exist yet."""
    if given := os.environ.get("KDISPATCH_CONFIG_DIR"):
        return Path(given)
    import platformdirs  # noqa: PLC0415 - not needed where the directory is given

    return Path(platformdirs.user_config_dir("kdispatch", appauthor=False))


def state_directory() -> Path:
    """Where records and logs of running agents are; it may not exist yet."""
    if given := os.environ.get("KDISPATCH_STATE_DIR"):
        return Path(given).absolute()
    import platformdirs  # noqa: PLC0415 - not needed where the directory is given

    return Path(platformdirs.user_state_dir("kdispatch", appauthor=False))


def environment_switch(name: str) -> bool:
    """Whether the variable ``name`` of :data:`ENVIRONMENT` is switched on."""
    assert name in ENVIRONMENT
    return bool(text := os.environ.get(name, "")) and _switch(name, text)


def remember_relay(relay: RelayUrl) -> bool:
    """Write ``relay`` into ``config.toml``, keeping all else there; whether that changed the file."""
    directory = config_directory()
    path = directory / CONFIG_FILE
    with private_lock(directory):
        before = _read_file(path)
        if before.get("relay") == str(relay):
            return False
        text = path.read_text(encoding="utf-8") if path.exists() else f"config_version = {CONFIG_VERSION}\n"
        text = _with_relay(text, str(relay))
        if _parse(path, text) != before | {"relay": str(relay)}:
            raise SetupError(
                "bad_request",
                f"{path} is written in a way that kdispatch cannot change.",
                hint=f'Write this line into it yourself: relay = "{relay}"',
            )
        write_private(path, text.encode())
        return True


def _with_relay(text: str, relay: str) -> str:
    line = f'relay = "{relay}"'
    changed, count = re.subn(r"(?m)^[ \t]*relay[ \t]*=.*$", lambda _: line, text, count=1)
    if count:
        return changed
    # A key must stand before the first table, so the new line goes to the top.
    return re.sub(
        r"(?m)\A((?:[ \t]*(?:#.*|config_version[ \t]*=.*)?\n)*)", lambda top: f"{top[1]}{line}\n", text, count=1
    )


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError("bad_request", f"{path} cannot be read: {error}.", hint="Check the file.") from error
    return _parse(path, text)


def _parse(path: Path, text: str) -> dict[str, Any]:
    hint = f"Correct {path}."
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SetupError("bad_request", f"{path} is not TOML: {error}.", hint=hint) from error
    if (found := table.pop("config_version", CONFIG_VERSION)) != CONFIG_VERSION:
        raise SetupError(
            "bad_request",
            f"{path} has config_version {found!r}; this kdispatch knows {CONFIG_VERSION}.",
            hint="Upgrade kdispatch, or write the file anew.",
        )
    known = {field.name: field for field in dataclasses.fields(Settings)}
    for key, value in list(table.items()):
        if key not in known:
            close = difflib.get_close_matches(key, [*known, "config_version"], n=1)
            suggestion = f" Did you mean {close[0]!r}?" if close else f" Known are {', '.join(sorted(known))}."
            raise SetupError("bad_request", f"{path} has an unknown key {key!r}.{suggestion}", hint=hint)
        if type(value) is int and type(known[key].default) is float:
            table[key] = float(value)
        elif type(value) is not type(known[key].default):
            unit = setting_of(key).unit
            raise SetupError("bad_request", f"{path}: {key} is to be {unit}, not {value!r}.", hint=hint)
    return table


def _switch(name: str, text: str) -> bool:
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise SetupError("bad_request", f"{name} is {text!r}.", hint="Write 1 or 0, yes or no.") from None


def version() -> str:
    """The installed version of kdispatch."""
    import importlib.metadata  # noqa: PLC0415 - takes 20 ms, and few commands need it

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("kdispatch")
    return "unknown"
