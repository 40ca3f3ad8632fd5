"""The options for reaching a relay: precedence, contradictions, and what others can see of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings, load_settings
from tests.agent.cli.test_settings import write

_HIDES = """
import sys
from pathlib import Path
from kdispatch.machine.hidden_arguments import hide_argument, hide_password
assert (hide_password if "://" in sys.argv[2] else hide_argument)(sys.argv[2])
print(Path("/proc/self/cmdline").read_bytes().decode().replace("\\0", " "), end="")
"""


def test_a_proxy_goes_before_what_counts_less(own_configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named proxy overrides a ``no_proxy`` from a weaker source, and the other way round."""
    write(own_configuration, "no_proxy = true")
    assert load_settings().no_proxy
    monkeypatch.setenv("KDISPATCH_PROXY", "http://proxy.example:3128")
    assert not load_settings().no_proxy
    assert load_settings(no_proxy=True).no_proxy


def test_files_are_found_from_anywhere(
    own_configuration: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file name in config.toml is relative to that file, one in a flag to the current directory."""
    write(own_configuration, "ca_file = 'ca.pem'\nclient_cert = '/etc/me.pem'")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(client_key="me.key")
    assert settings.ca_file == str(own_configuration / "ca.pem")
    assert settings.client_cert == "/etc/me.pem"
    assert settings.client_key == str(tmp_path / "me.key")


def test_several_addresses_are_checked_and_ordered() -> None:
    """Several addresses are one text with commas; each is checked, and duplicates count once."""
    settings = Settings(relay="https://b.example, a.example,https://b.example:443/")
    assert settings.relay_urls == (RelayUrl.parse("https://b.example"), RelayUrl.parse("https://a.example"))
    assert settings.relay_url == settings.relay_urls[0]


def test_the_way_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection options are the same after a round trip through environment variables."""
    settings = load_settings(proxy="http://me:secret@proxy.example", pin="sha256:abc", no_proxy=False)
    for name, value in settings.network.items():
        monkeypatch.setenv(name, value)
    assert load_settings().network == settings.network


def test_a_password_is_in_no_process_list() -> None:
    """The part of an argument before its last @ is overwritten wherever it was typed."""
    if sys.platform != "linux":
        pytest.skip("only on Linux a process can change what others see of its arguments")
    proxy = "http://me:se%40cret@proxy.example:3128"
    command = [sys.executable, "-c", _HIDES, "--proxy", proxy, f"--also={proxy}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "se%40cret" not in shown
    assert shown.rstrip().endswith(
        f"--proxy http://{'x' * 12}@proxy.example:3128 --also=http://{'x' * 12}@proxy.example:3128"
    )
