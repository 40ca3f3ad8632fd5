"""Tests of tests/net that say the same of agents under Wine, in so far as they send no signal to an agent."""

from __future__ import annotations

import pytest

from kdispatch_protocol.limits import DEFAULT_LIMITS
from tests.net import test_early_data
from tests.net.harness import sizes
from tests.net.test_early_data import test_no_request_is_delivered_twice
from tests.net.test_last_words import (
    test_a_relay_that_is_killed_behind_an_answer,
    test_an_endless_sender_that_reads,
    test_an_endless_sender_that_reads_nothing,
    test_an_upload_before_the_answer_is_read,
)
from tests.net.test_opens import (
    test_connect_says_what_is_not_there,
    test_host_follows_its_port,
    test_host_needs_its_port,
    test_host_that_just_left_is_no_live_host,
    test_killed_host_gets_no_more,
    test_no_live_host_is_a_reset,
    test_refused_dial_goes_elsewhere_unseen,
)
from tests.net.test_patience import test_final_answer
from tests.net.test_removal import (
    test_a_deleted_service_ends_what_rests_on_it_within_two_seconds,
    test_a_withdrawn_host_ends_after_its_streams,
)
from tests.net.test_stopped_reader import test_stopped_reader_goes_on
from tests.net.test_taken_back import access, test_a_rotated_service_keeps_its_clients
from tests.net.test_tls import (
    test_a_new_certificate_under_running_streams,
    test_transfer_over_tls,
    test_unknown_authority_ends_the_start,
)
from tests.windows.running import WindowsNetwork

__all__ = [
    "access",
    "test_a_deleted_service_ends_what_rests_on_it_within_two_seconds",
    "test_a_new_certificate_under_running_streams",
    "test_a_relay_that_is_killed_behind_an_answer",
    "test_a_rotated_service_keeps_its_clients",
    "test_a_withdrawn_host_ends_after_its_streams",
    "test_an_endless_sender_that_reads",
    "test_an_endless_sender_that_reads_nothing",
    "test_an_upload_before_the_answer_is_read",
    "test_connect_says_what_is_not_there",
    "test_final_answer",
    "test_host_follows_its_port",
    "test_host_needs_its_port",
    "test_host_that_just_left_is_no_live_host",
    "test_killed_host_gets_no_more",
    "test_no_live_host_is_a_reset",
    "test_no_request_is_delivered_twice",
    "test_refused_dial_goes_elsewhere_unseen",
    "test_stopped_reader_goes_on",
    "test_transfer_over_tls",
    "test_unknown_authority_ends_the_start",
]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kills", sizes(2, 8))
async def test_killed_host_loses_no_request_silently(
    network: WindowsNetwork, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of a killed host's requests, but some are reset later than on Linux.

    Wine's server keeps the connections of one in twenty killed processes open. To the relay such a host falls silent.
    """
    monkeypatch.setattr(test_early_data, "_PATIENCE", DEFAULT_LIMITS.dead_relay + 20)
    await test_early_data.test_killed_host_loses_no_request_silently(network, kills)
