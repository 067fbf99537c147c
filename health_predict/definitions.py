"""The code location: everything Dagster loads, assembled on one page.

Assets and checks stand in `defs`, one module a group; what they call is the pure half of the
package. Settings are read when the location is loaded.
"""

import os
import warnings
from typing import Any

import dagster as dg

from health_predict.settings import ROOT, Settings, silence_telemetry


@dg.definitions
def defs() -> dg.Definitions:
    """Returns the definitions for the settings of the environment."""
    silence_telemetry()
    return assemble(Settings.of_state())


def assemble(settings: Settings) -> dg.Definitions:
    """Returns the definitions for the given settings.

    Args:
        settings: read from the environment, or made by a test.
    """
    # Otherwise matplotlib keeps a font cache in the home directory.
    os.environ.setdefault("MPLCONFIGDIR", str(settings.var.absolute() / "matplotlib"))
    # A check of one batch needs its partition; Dagster still calls that a preview.
    warnings.filterwarnings("ignore", "Specifying a partitions_def", dg.PreviewWarning)
    # And the links from an asset to its code beta, in one warning an asset.
    warnings.filterwarnings("ignore", ".*(code_ref|CodeRef|FilePathMapping)", dg.BetaWarning)

    from health_predict.defs import (
        data,
        jobs,
        monitoring,
        performance,
        registry,
        reporting,
        serving,
        training,
    )
    from health_predict.defs.alerting import alerting
    from health_predict.defs.automation import automation
    from health_predict.defs.resources import resources
    from health_predict.defs.traffic import traffic

    groups = (data, training, registry, serving, monitoring, performance, reporting)
    schedules, sensors = automation(settings)
    return dg.Definitions(
        assets=_with_source(
            [asset for group in groups for asset in group.ASSETS], settings.source_url
        ),
        asset_checks=[check for group in groups for check in group.CHECKS],
        jobs=jobs.JOBS,
        schedules=[*schedules, *reporting.SCHEDULES],
        sensors=[*sensors, *traffic(settings), *alerting(settings)],
        resources=resources(settings),
        executor=jobs.EXECUTOR,
    )


def _with_source(assets: list[Any], source_url: str) -> Any:
    """Returns the assets with a link from Dagit to their code: in the repository, or here."""
    here = dg.with_source_code_references(assets)
    if not source_url.startswith(("https://github.com/", "https://gitlab.com/")):
        return here
    files = dg.AnchorBasedFilePathMapping(local_file_anchor=ROOT, file_anchor_path_in_repository="")
    return dg.link_code_references_to_git(here, source_url.rstrip("/"), "main", files)
