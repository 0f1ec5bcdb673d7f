"""`doctor`: what this machine can run, what is wrong, and how to mend it. It looks, and changes nothing.

Each check is a function that gives findings; `examination` says which there are and in which order, `report` how they
are told.
"""

from __future__ import annotations

from pathlib import Path

from modelops.cli.common import FAILED, as_json_option, config_option, data_dir_option, fails_well, main


@main.command()
@config_option
@data_dir_option
@as_json_option
@fails_well
def doctor(config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Say what is wrong here, and how to mend it.

    Looks at the configuration, the data folder, the network, the engine, the machine and the models, whether or not a
    coordinator runs, and changes nothing. The exit status is 0 only if nothing is wrong; warnings are allowed.
    """
    from modelops.cli.doctor.examination import examine
    from modelops.cli.doctor.report import tell, tell_json

    findings = examine(config, data_dir)
    well = tell_json(findings) if as_json else tell(findings)
    if not well:
        raise SystemExit(FAILED)
