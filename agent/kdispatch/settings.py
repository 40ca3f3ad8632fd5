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
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.errors import KdispatchError

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
    "version",
    "write_private",
]

CONFIG_VERSION: Final = 1
CONFIG_FILE: Final = "config.toml"
LOCK_FILE: Final = "lock"
#: Seconds to wait for another kdispatch that writes here; one write takes milliseconds.
LOCK_WAIT: Final = 10.0

#: Variables that are no settings of the file; nothing else reads the environment by name.
ENVIRONMENT: Final[dict[str, str]] = {
    "KDISPATCH_CONFIG_DIR": "The directory of config.toml and of the stored tokens, instead of the platform's.",
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


class SetupError(KdispatchError):
    """Something in this machine's configuration is wrong; ``hint`` says how to mend exactly that."""

    def __init__(self, code: str, text: str, *, hint: str) -> None:
        super().__init__(code, text)
        self.hint = hint


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

    relay: str = _setting("", "--relay", "KDISPATCH_RELAY", "URL", "The relay's address; sign-up remembers it.")
    insecure_plaintext: bool = _setting(
        False,  # noqa: FBT003 - the default beside its field
        "--insecure-plaintext",
        "KDISPATCH_INSECURE_PLAINTEXT",
        "yes or no",
        "Allow plain http to another machine: everyone on the way can read tokens.",
    )

    @property
    def relay_url(self) -> RelayUrl:
        """The relay's checked address; raises ``bad_relay_url`` or ``plaintext_refused``."""
        return RelayUrl.parse(self.relay, insecure_plaintext=self.insecure_plaintext)


def setting_of(name: str) -> Setting:
    """The description of the field ``name`` of :class:`Settings`."""
    field = next(field for field in dataclasses.fields(Settings) if field.name == name)
    setting: Setting = field.metadata["setting"]
    return setting


def load_settings(**flags: str | bool | None) -> Settings:
    """Merge flags (``None``: not given), environment, file and defaults.

    Raises :class:`SetupError` for a value of the wrong type, an unknown key or
    a file that can't be read.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        setting: Setting = field.metadata["setting"]
        if text := os.environ.get(setting.env, ""):
            values[field.name] = _switch(setting.env, text) if field.default is False else text
    values = _read_file(config_directory() / CONFIG_FILE) | values
    return Settings(**values | {name: value for name, value in flags.items() if value is not None})


def config_directory() -> Path:
    """Where ``config.toml`` and the stored tokens are; it may not exist yet."""
    if given := os.environ.get("KDISPATCH_CONFIG_DIR"):
        return Path(given)
    import platformdirs  # noqa: PLC0415 - not needed where the directory is given

    return Path(platformdirs.user_config_dir("kdispatch", appauthor=False))


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
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, [*known, "config_version"], n=1)
            suggestion = f" Did you mean {close[0]!r}?" if close else f" Known are {', '.join(sorted(known))}."
            raise SetupError("bad_request", f"{path} has an unknown key {key!r}.{suggestion}", hint=hint)
        if type(value) is not type(known[key].default):
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


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` whole or not at all, readable by its owner only, and on the disk on return."""
    # A configuration that is a symbolic link stays one: its target is replaced.
    target = Path(os.path.realpath(path))
    _make_private(target.parent)
    with _writing(target.parent):
        # mkstemp gives mode 0600 from the first moment on.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_directory(target.parent)


@contextlib.contextmanager
def private_lock(directory: Path) -> Iterator[None]:
    """Hold ``directory``'s lock against other processes and threads; raises :class:`SetupError` after ten seconds."""
    _make_private(directory)
    path = directory / LOCK_FILE
    deadline = time.monotonic() + LOCK_WAIT
    with _writing(directory):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                text = f"Another process has held {path} for {LOCK_WAIT:g} s."
                raise SetupError("busy", text, hint=f"See which one: fuser {path}")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # which ends the lock


def _make_private(directory: Path) -> None:
    with _writing(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            "bad_request",
            f"{directory} cannot be written: {error.strerror or error}.",
            hint="Check its owner and mode, or name another directory in KDISPATCH_CONFIG_DIR.",
        ) from error


if sys.platform == "win32":
    import msvcrt

    def _sync_directory(directory: Path) -> None:
        """Windows writes names through."""

    def _try_lock(descriptor: int) -> bool:
        with contextlib.suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            return True
        return False

else:
    import fcntl

    def _sync_directory(directory: Path) -> None:
        # The new name is on the disk only when its directory is.
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _try_lock(descriptor: int) -> bool:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False
