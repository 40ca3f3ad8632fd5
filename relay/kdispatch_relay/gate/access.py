"""Checks with the store whether an agent may offer, open or attach, and checks again when rights may have changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any, Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_id
from kdispatch_relay.auth import Authority, Grant
from kdispatch_relay.limiter import SessionLimits, Shares
from kdispatch_relay.store.records import AuditRecord
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.claims import handle_of
from kdispatch_relay.switch.intents import AskAttach, AskOffer, FirstStream, Question
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.revocations import Claim, claims, doubt, revoke
from kdispatch_relay.switch.switch import Switch

__all__ = ["AccessControl"]

# While the store does not answer, running streams go on, and the store is asked again after this many seconds.
_ASK_AGAIN: Final = 1.0
_PASSING: Final = frozenset({"storage_unavailable", "busy"})
# Running streams do not end either when others behind the same address exceed its rate.
_PASSING_FOR_STREAMS: Final = _PASSING | {"rate_limited"}
_GONE: Final = "The service was deleted, or is not open to you any more."
_log = logging.getLogger("kdispatch.relay")


class AccessControl:
    """Asks ``authority`` the switch's questions, and gives the switch the answers; each time it then calls ``settle``.

    ``limits_of`` returns the limits of a session, or ``None`` when the session is over.
    """

    def __init__(
        self,
        authority: Authority,
        switch: Switch,
        settle: Callable[[], None],
        limits_of: Callable[[AgentSession], SessionLimits | None],
    ) -> None:
        self._authority = authority
        self._switch = switch
        self._settle = settle
        self._limits_of = limits_of
        self._loop = asyncio.get_running_loop()
        self._work: set[asyncio.Task[None]] = set()
        self._closing = False
        # The earliest expiry of a token in use, by handle and service.
        self._until: dict[str, dict[str, int]] = {}
        self._rechecks: dict[str, bool] = {}  # scopes under a check, and whether to repeat it

    def ask(self, question: Question) -> None:
        """Answer one of the switch's questions, in a task."""
        self._do(self._answer(question))

    def recheck(self, scope: str) -> None:
        """Rights within ``handle/name``, or within a whole handle, may have ended: check again what runs there."""
        self._authority.forget(scope)
        doubt(self._switch, scope)
        if scope in self._rechecks:  # if changes come faster than the store answers, one more check covers them all
            self._rechecks[scope] = True
        else:
            self._rechecks[scope] = False
            self._do(self._recheck(scope))

    def expire(self, now: float) -> None:
        """Check again the services where a token in use has expired by ``now``, in unix seconds."""
        expired = [service for services in self._until.values() for service, until in services.items() if until <= now]
        for service in expired:
            self.recheck(service)

    async def rechecked(self) -> None:
        """Wait until no check is under way."""
        while self._rechecks:
            await asyncio.wait(self._work, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> None:
        """Wait for work under way. It is not cancelled: a cancelled look-up loses its database connection."""
        self._closing = True
        if self._work:
            await asyncio.wait(self._work)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    # --- questions ------------------------------------------------------------------------------

    async def _answer(self, question: Question) -> None:
        """Let the store decide. Its failures are answers too."""
        switch = self._switch
        try:
            grant = await self._look_up(question)
            limits = self._limits_of(question.session)
            terms = _terms(grant, Shares() if limits is None else limits.shares)
            if isinstance(question, AskOffer):
                if switch.offers.allowed(question, terms, self._loop.time()):
                    self._note_host(question, grant)
            elif isinstance(question, AskAttach):
                if limits is not None:  # otherwise its session is over
                    switch.registry.learn(question.service, terms)
                switch.attachments.allowed(question, self._loop.time())
            else:
                switch.opens.allowed(question.route, terms, self._loop.time())
        except KdispatchError as error:
            self._refuse(question, error.code, error.text)
        except Exception:  # noqa: BLE001
            # A defect must not leave an agent without an answer.
            _log.exception("A look-up failed.")
            self._refuse(question, "internal_error", "")
        self._settle()

    async def _look_up(self, question: Question) -> Grant:
        """The grant, if the answer is yes; otherwise raises the reason."""
        with self._switch.doubts.watching(question.service) as watched:
            while True:
                before = watched.version
                try:
                    limits = self._limits_of(question.session)
                    with nullcontext() if limits is None else limits.authenticating(question.token):
                        grant = await self._ask_store(question)
                except KdispatchError as error:
                    if not isinstance(question, AskAttach) or error.code not in _PASSING_FOR_STREAMS:
                        raise
                    if not any(question.alive()):
                        raise KdispatchError("cancelled") from error
                    await asyncio.sleep(_ASK_AGAIN)
                    continue
                if watched.version == before:
                    return grant
                # Rights of the account have changed meanwhile, so this answer may be outdated.

    async def _ask_store(self, question: Question) -> Grant:
        if isinstance(question, AskOffer):
            return await self._grant("host", question.offer.service, question.offer.token)
        role = question.role if isinstance(question, AskAttach) else "client"
        return await self._grant(role, question.service, question.token)

    async def _grant(self, role: str, service: str, token: str | bytes | None) -> Grant:
        may = self._authority.may_host if role == "host" else self._authority.may_open
        grant = await may(service, token)
        if grant.expires is not None:
            services = self._until.setdefault(handle_of(service), {})
            services[service] = min(services.get(service, grant.expires), grant.expires)
        return grant

    # --- checking again -----------------------------------------------------------------------

    async def _recheck(self, scope: str) -> None:
        try:
            while True:
                self._rechecks[scope] = False
                self._forget_expiries(scope)
                await self._ask_again(scope)
                if not self._rechecks[scope]:
                    break
        finally:
            del self._rechecks[scope]

    def _forget_expiries(self, scope: str) -> None:
        """Forget the expiries within ``scope``: the check that follows sets them again."""
        handle = handle_of(scope)
        services = self._until.get(handle, {})
        services.pop(scope, None)
        if scope == handle or not services:
            self._until.pop(handle, None)

    async def _ask_again(self, scope: str) -> None:
        """End what is no longer allowed. While the store does not answer, everything goes on."""
        left = await self._without_public(claims(self._switch, scope))
        while left and not self._closing:
            answers = await asyncio.gather(*map(self._refusal, left))
            refused = {claim: why for claim, why in zip(left, answers, strict=True) if why and why[0] not in _PASSING}
            if refused:
                revoke(self._switch, refused, self._loop.time())
                self._settle()
            if self._rechecks[scope]:
                return  # all is asked again from the beginning
            left = [claim for claim, why in zip(left, answers, strict=True) if why and why[0] in _PASSING]
            if left:
                await asyncio.sleep(_ASK_AGAIN)

    async def _without_public(self, asked: set[Claim]) -> list[Claim]:
        """Leave out the clients of public services: the tokens that they show, possibly thousands, need no check."""
        clients = Counter(claim.service for claim in asked if claim.role == "client")
        several = [service for service, count in clients.items() if count > 1]
        answers = await asyncio.gather(*(self._refusal(Claim(service, "client", None)) for service in several))
        public = {service for service, why in zip(several, answers, strict=True) if why is None}
        return [claim for claim in asked if claim.role != "client" or claim.service not in public]

    async def _refusal(self, claim: Claim) -> tuple[str, str] | None:
        """Why a claim does not hold; ``None`` if it holds."""
        try:
            await self._grant(claim.role, claim.service, claim.token)
        except KdispatchError as error:
            return error.code, _GONE if error.code == "unknown_service" else error.text
        except Exception:  # noqa: BLE001 - after a defect the claim is checked again, and does not go on for ever
            _log.exception("A look-up failed.")
            return "storage_unavailable", ""
        return None

    # --- the audit ------------------------------------------------------------------------------

    def _note_host(self, asked: AskOffer, grant: Grant) -> None:
        session, offer = asked.session, asked.offer
        actor = grant.identity.actor if grant.identity is not None else ""
        self._note("host", offer.service, actor, session, host=offer.host)

    def note_client(self, first: FirstStream) -> None:
        """Put into the audit that an agent opened its first stream of a service."""
        route = first.route
        opener, service = route.opener, route.message.service
        entry = self._switch.registry.get(service)
        public = entry is not None and entry.terms is not None and entry.terms.public
        actor = "anybody" if public or route.client.rests is None else f"token {token_id(route.client.rests)}"
        self._note("connect", service, actor, opener)

    def _note(self, action: str, service: str, actor: str, session: AgentSession, **detail: str) -> None:
        event = AuditRecord(
            actor=actor,
            action=action,
            subject=service,
            source=session.source,
            detail={"agent": session.process, **detail},
            at=int(time.time()),
        )
        self._authority.note(event)

    def _refuse(self, question: Question, code: str, text: str) -> None:
        now = self._loop.time()
        if isinstance(question, AskOffer):
            self._switch.offers.refused(question, code, text, now=now)
        elif isinstance(question, AskAttach):
            self._switch.attachments.refused(question, code, text, now)
        else:
            self._switch.opens.refused(question.route, code, text, now)


def _terms(grant: Grant, shares: Shares) -> Terms:
    quotas = grant.service.quotas
    return Terms(
        grant.public,
        grant.service.pins,
        hosts=quotas.hosts,
        streams=quotas.streams,
        public_streams=shares.public_of(quotas.streams),
        source_part=shares.source_part,
    )
