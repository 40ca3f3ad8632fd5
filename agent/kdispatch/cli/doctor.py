"""``kdispatch doctor``: finds what blocks a tunnel from this machine, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kdispatch.addresses import bare
from kdispatch.cli.options import Json, Quiet, Service, ServiceOption, Token, TokenFile, one_service
from kdispatch.cli.output import Output, run_async
from kdispatch.cli.reach import Reach, reaches_relay
from kdispatch.credentials import given_token
from kdispatch.settings import Settings, load_settings
from kdispatch_protocol.errors import KdispatchError

if TYPE_CHECKING:
    from kdispatch.doctor.examination import Wishes
    from kdispatch.doctor.findings import Finding

__all__ = ["app"]

app = typer.Typer()

_WIDTH: Final = 11  # length of the longest check name


@app.command(epilog="Example: kdispatch doctor ann/web")
@reaches_relay
def doctor(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="A local port to offer.", show_default=False),
    ] = None,
    address: Annotated[str, typer.Option("--address", help="Where that port is.")] = "localhost",
    idle: Annotated[
        bool, typer.Option("--idle", help="Measure how long a connection may be silent; takes up to 6 minutes.")
    ] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Measure the throughput to the relay and back.")] = False,
    bundle: Annotated[
        str | None,
        typer.Option(
            "--bundle",
            metavar="FILE.zip",
            help="Write findings, versions and logs, without secrets, for a support request.",
            show_default=False,
        ),
    ] = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Check what keeps this machine from the relay, and name the hop. --quiet prints the checks that are not OK.

    Each line is OK, WARN or FAIL, or SKIP after an earlier failure. The status is 0, 7 for warnings, 1 for failures.
    """
    from kdispatch.doctor.bundle import write_bundle  # noqa: PLC0415 - heavy, as are the next ones
    from kdispatch.doctor.examination import Wishes  # noqa: PLC0415
    from kdispatch.doctor.findings import exit_status  # noqa: PLC0415

    output = Output(quiet=quiet, json=json)
    if idle:
        output.note("Silence is measured last: that takes up to 6 minutes. Ctrl-C ends.")
    typed = None if service is None and service_option is None else one_service(service, service_option)
    findings: list[Finding] = []
    settings: Settings | None = None
    given: str | None = None
    try:
        settings = load_settings(**reach)
        given = given_token(token, token_file, warn=output.warn)
    except KdispatchError as error:
        _broke(output, findings, "config" if settings is None else "credentials", error)
    else:
        wishes = Wishes(service=typed, token=given, address=bare(address), port=port, idle=idle, speed=speed)
        _examine(settings, wishes, findings, output)
    if bundle is not None:
        path = Path(bundle)
        write_bundle(path, findings, settings, given, _WIDTH)
        output.note(f"Written: {path}. It has no tokens or passwords, but names and addresses; check it first.")
    _sum_up(output, findings)
    if status := exit_status(findings):
        raise SystemExit(status)


def _examine(settings: Settings, wishes: Wishes, findings: list[Finding], output: Output) -> None:
    from kdispatch.doctor.examination import examine  # noqa: PLC0415 - heavy

    async def main() -> None:
        try:
            async for finding in examine(settings, wishes):
                _tell(output, findings, finding)
        except KdispatchError as error:  # of the settings: everything else is a finding
            _broke(output, findings, "config", error)

    run_async(main, output)


def _broke(output: Output, findings: list[Finding], check: str, error: KdispatchError) -> None:
    from kdispatch.doctor.examination import NEEDED  # noqa: PLC0415 - heavy
    from kdispatch.doctor.findings import failed, skipped  # noqa: PLC0415

    _tell(output, findings, failed(check, error))
    told = {finding.check for finding in findings}
    for name in NEEDED:
        if name not in told:
            _tell(output, findings, skipped(name, f"not looked at: {check} failed"))


def _tell(output: Output, findings: list[Finding], finding: Finding) -> None:
    """Store the finding and print it at once, because the next one may take a while."""
    findings.append(finding)
    if not (output.json or output.quiet):
        output.result({}, quiet=[], plain=finding.lines(_WIDTH))


def _sum_up(output: Output, findings: list[Finding]) -> None:
    from kdispatch.doctor.findings import Level, worst  # noqa: PLC0415 - heavy

    level = worst(findings)
    amiss = [finding.check for finding in findings if finding.level in {Level.WARN, Level.FAIL}]
    summary = f"{', '.join(dict.fromkeys(amiss))}: see above." if amiss else "All is well."
    data = {"level": str(level), "findings": [finding.as_dict() for finding in findings]}
    output.result(data, quiet=list(dict.fromkeys(amiss)), plain=["", summary])
