"""Release records: one JSON file a release, for whoever asks what was rolled out and how.

The ledger says that a version was released or taken back and why; the record holds the rest:
digest, sizes, seconds, what was tried, how the roll-out went. Nothing is decided here.
"""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from health_predict.release import Deployment, Image


@dataclass(frozen=True)
class ReleaseRecords:
    """The records in a folder."""

    folder: Path

    def keep(self, image: Image, deployment: Deployment, reason: str, run_id: str) -> Path:
        """Writes the record of a release, whole or not at all; returns the file.

        Args:
            image: what was rolled out.
            deployment: how that ended.
            reason: why it was asked for.
            run_id: the Dagster run: run again, its record takes the place of the first.
        """
        now = datetime.now(UTC)
        record = {
            "at": now.isoformat(timespec="seconds"),
            "version": image.version,
            "reason": reason,
            "outcome": "rolled back" if deployment.rolled_back else "released",
            "sentence": deployment.sentence,
            "dagster_run_id": run_id,
            "image": asdict(image),
            "deployment": asdict(deployment),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"release-{image.version}-{run_id[:8]}.json"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(record, indent=1, default=str) + "\n")
        partial.replace(path)
        return path

    def all(self) -> list[dict[str, Any]]:
        """Returns every record, oldest first."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("release-*.json")]
        return sorted(found, key=lambda record: str(record["at"]))
