"""All settings, each defined once: flags, environment, file and documents derive from them.

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

from kdispatch.machine.private_files import private_lock, write_private
from kdispatch.relay_url import RelayUrl
from kdispatch.setup_error import SetupError

__all__ = [
    "CONFIG_VERSION",
    "ENVIRONMENT",
    "NETWORK",
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
#: Settings that say how to reach the relay, independent of its address.
NETWORK: Final = ("proxy", "no_proxy", "ca_file", "client_cert", "client_key", "server_name", "pin")
CONFIG_FILE: Final = "config.toml"
#: UTF-8, with or without the byte order mark that Windows PowerShell and some editors write.
_UTF8: Final = "utf-8-sig"

#: Variables that are not settings of the file. Nothing else reads the environment by name.
ENVIRONMENT: Final[dict[str, str]] = {
    "KDISPATCH_CONFIG_DIR": "The directory of config.toml and of the stored tokens, instead of the platform's.",
    "KDISPATCH_STATE_DIR": "The directory of the records and logs of running agents, instead of the platform's.",
    "KDISPATCH_TOKEN": "The token to use if neither --token nor --token-file is given.",
    "KDISPATCH_NO_UVLOOP": "With 1, the standard event loop is used although uvloop is installed.",
    "KDISPATCH_DEBUG": "With 1, an error is followed by its traceback.",
}

#: Settings that name a file.
_FILES: Final = frozenset({"ca_file", "client_cert", "client_key"})


_SWITCH: Final = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """How a setting is written: its flag, its variable, its unit, and one sentence."""

    flag: str
    env: str
    unit: str
    text: str


def _setting(default: Any, flag: str, env: str, unit: str, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"setting": Setting(flag, env, unit, text)})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The current values. The fields' names are the keys of ``config.toml``."""

    relay: str = _setting(
        "",
        "--relay",
        "KDISPATCH_RELAY",
        "URL",
        "The relay's address; sign-up and login remember it. Several addresses of one relay, separated by commas, "
        "are tried in their order.",
    )
    insecure_plaintext: bool = _setting(
        False,  # noqa: FBT003 - the default beside its field
        "--insecure-plaintext",
        "KDISPATCH_INSECURE_PLAINTEXT",
        "yes or no",
        "Allow plain http to another machine: tokens go unencrypted.",
    )

    proxy: str = _setting(
        "",
        "--proxy",
        "KDISPATCH_PROXY",
        "URL",
        "The proxy to the relay: http://[USER:PASSWORD@]HOST:PORT or socks5://…; "
        "by default that of HTTPS_PROXY, ALL_PROXY and NO_PROXY, or of the system's settings.",
    )
    no_proxy: bool = _setting(
        False,  # noqa: FBT003 - the default beside its field
        "--no-proxy",
        "KDISPATCH_NO_PROXY",
        "yes or no",
        "Connect to the relay directly, even if a proxy is set.",
    )
    ca_file: str = _setting(
        "",
        "--ca-file",
        "KDISPATCH_CA_FILE",
        "file",
        "Trust the certificates in this file (PEM) instead of the system's.",
    )
    client_cert: str = _setting(
        "",
        "--client-cert",
        "KDISPATCH_CLIENT_CERT",
        "file",
        "A certificate (PEM, with its chain) for a server in front of the relay that asks for one.",
    )
    client_key: str = _setting(
        "", "--client-key", "KDISPATCH_CLIENT_KEY", "file", "Its private key (PEM), if that is in a separate file."
    )
    server_name: str = _setting(
        "",
        "--server-name",
        "KDISPATCH_SERVER_NAME",
        "name",
        "The name that the relay's certificate must have, if it differs from the one in its address.",
    )
    pin: str = _setting(
        "",
        "--pin",
        "KDISPATCH_PIN",
        "sha256:…",
        "The SHA-256 of the public key that the relay must have, in addition to a valid certificate; "
        "several are separated by commas.",
    )

    log_format: str = _setting("text", "--log-format", "KDISPATCH_LOG_FORMAT", "text or json", "Log format.")
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
        "The age at which an agent replaces a session, plus or minus a sixth.",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and value and not value.strip():
                setting = setting_of(field.name)
                raise SetupError(
                    "bad_request", f"{field.name} is blank.", hint=f"Write {setting.unit}: {setting.flag}."
                )
        # The upper bound of open_wait: hosts remember ended streams at least that long, so none is opened twice.
        for name, least, most in (("grace", 0.0, 86400.0), ("open_wait", 0.0, 60.0), ("rotate", 1.0, 86400.0)):
            value = getattr(self, name)
            if not least <= value <= most:
                setting = setting_of(name)
                raise SetupError("bad_request", f"{name} is {value:g}.", hint=f"Write {setting.unit}: {setting.flag}.")

    @property
    def relay_url(self) -> RelayUrl:
        """The relay's first address, which is used as its name. Raises like :attr:`relay_urls`."""
        return self.relay_urls[0]

    @property
    def relay_urls(self) -> tuple[RelayUrl, ...]:
        """The relay's checked addresses; raises ``bad_relay_url`` or ``plaintext_refused``."""
        texts = [text for text in self.relay.split(",") if text.strip()] or [""]
        urls = (RelayUrl.parse(text, insecure_plaintext=self.insecure_plaintext) for text in texts)
        return tuple(dict.fromkeys(urls))

    @property
    def network(self) -> dict[str, str]:
        """The :data:`NETWORK` settings as environment variables."""
        values = {name: getattr(self, name) for name in NETWORK}
        texts = {name: str(int(value)) if isinstance(value, bool) else value for name, value in values.items()}
        return {setting_of(name).env: text for name, text in texts.items()}


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
    given = {name: value for name, value in flags.items() if value is not None}
    environment: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        setting: Setting = field.metadata["setting"]
        if text := os.environ.get(setting.env, ""):
            if not text.strip() and field.name not in given:
                raise SetupError("bad_request", f"{setting.env} is blank.", hint=f"Write {setting.unit}, or unset it.")
            environment[field.name] = _from_text(field.default, setting.env, text)
    directory = config_directory()
    values: dict[str, Any] = {}
    for layer, base in ((_read_file(directory / CONFIG_FILE), directory), (environment, Path()), (given, Path())):
        if layer.get("proxy") and "no_proxy" not in layer:
            values.pop("no_proxy", None)  # it was meant for another proxy, given in a place of lower precedence
        values |= {name: _absolute(str(value), base) if name in _FILES else value for name, value in layer.items()}
    return Settings(**values)


def _absolute(path: str, base: Path) -> str:
    """A file name that does not depend on the current directory."""
    try:
        return str(base.absolute() / Path(path).expanduser()) if path else ""
    except (OSError, RuntimeError) as error:
        why = "the current directory is gone" if isinstance(error, OSError) else "there is no such user, or no home"
        text = f"{path!r} leads nowhere: {why}."
        raise SetupError("bad_request", text, hint="Write a whole path.") from error


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
    """The directory of ``config.toml`` and the stored tokens; it may not exist yet."""
    if given := os.environ.get("KDISPATCH_CONFIG_DIR"):
        return _given_directory("KDISPATCH_CONFIG_DIR", given)
    return _in_home("user_config_dir", "KDISPATCH_CONFIG_DIR")


def state_directory() -> Path:
    """The directory of records and logs of running agents; it may not exist yet."""
    if given := os.environ.get("KDISPATCH_STATE_DIR"):
        return _given_directory("KDISPATCH_STATE_DIR", given).absolute()
    return _in_home("user_state_dir", "KDISPATCH_STATE_DIR")


def _given_directory(variable: str, text: str) -> Path:
    if not text.strip():
        raise SetupError("bad_request", f"{variable} is blank.", hint="Name a directory of yours.")
    return Path(text)


def _in_home(kind: str, variable: str) -> Path:
    """The platform's directory of this kind; raises ``SetupError`` if the user has no home."""
    import platformdirs  # noqa: PLC0415 - not needed if the directory is given

    try:
        path = Path(getattr(platformdirs, kind)("kdispatch", appauthor=False))
    except RuntimeError:  # neither HOME nor the system's list of users has one
        path = Path("~")
    except (OSError, ValueError) as error:
        text = f"Windows names no folder for the files of this user's programs: {error}."
        raise SetupError("bad_request", text, hint=f"Set {variable} to a directory of yours.") from error
    if not path.is_absolute():  # older releases of platformdirs keep the ~
        text = "This user has no home directory: HOME is not set, and the system does not know the user."
        raise SetupError("bad_request", text, hint=f"Set HOME, or {variable}, to a directory of yours.")
    return path


def environment_switch(name: str) -> bool:
    """Whether the variable ``name`` of :data:`ENVIRONMENT` is switched on."""
    assert name in ENVIRONMENT
    return bool(text := os.environ.get(name, "")) and _switch(name, text)


def remember_relay(*relays: RelayUrl) -> bool:
    """Write the relay's addresses into ``config.toml``, keeping the rest; returns whether the file changed."""
    relay = ", ".join(map(str, relays))
    directory = config_directory()
    path = directory / CONFIG_FILE
    with private_lock(directory):
        before = _read_file(path)
        if before.get("relay") == relay:
            return False
        text = path.read_text(_UTF8) if path.exists() else f"config_version = {CONFIG_VERSION}\n"
        text = _with_relay(text, relay)
        if _parse(path, text) != before | {"relay": relay}:
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
        text = path.read_text(_UTF8)
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        text = f"{path} is not text in UTF-8: see its byte {error.start + 1}."
        raise SetupError("bad_request", text, hint=f"Save {path} as UTF-8.") from error
    except OSError as error:
        text = f"{path} cannot be read: {error.strerror or error}."
        raise SetupError("bad_request", text, hint="Check the file's owner and mode.") from error
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
            hint="Upgrade kdispatch, or write the file again.",
        )
    known = {field.name: field for field in dataclasses.fields(Settings)}
    for key, value in list(table.items()):
        if key not in known:
            close = difflib.get_close_matches(key, [*known, "config_version"], n=1)
            suggestion = f" Did you mean {close[0]!r}?" if close else f" Known are {', '.join(sorted(known))}."
            raise SetupError("bad_request", f"{path} has an unknown key {key!r}.{suggestion}", hint=hint)
        if isinstance(value, str) and not value.strip():
            raise SetupError("bad_request", f"{path}: {key} is empty.", hint=f"{hint} Remove the line for the default.")
        if type(value) is int and type(known[key].default) is float:
            table[key] = float(value)
        elif type(value) is not type(known[key].default):
            unit = setting_of(key).unit
            raise SetupError(
                "bad_request", f"{path}: {key} must be {unit}, not {_KINDS.get(type(value), 'a table')}.", hint=hint
            )
    return table


#: The type of a value of the file, for people. Not the value: a proxy's contains a password.
_KINDS: Final = {str: "a text", bool: "yes or no", int: "a number", float: "a number", list: "a list"}


def _switch(name: str, text: str) -> bool:
    if not text.strip():
        raise SetupError("bad_request", f"{name} is blank.", hint="Write 1 or 0, yes or no, or unset it.")
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
