"""Release records: one JSON value a release, for whoever asks what was rolled out and how.

The ledger says that a version was released or taken back and why; the record holds the rest:
digest, sizes, seconds, what was tried, how the roll-out went. Nothing is decided here.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from health_predict.release import Deployment, Image
from health_predict.store import Store

_FOLDER = "releases/"


@dataclass(frozen=True)
class ReleaseRecords:
    """The records in a store."""

    store: Store

    def keep(self, image: Image, deployment: Deployment, reason: str, run_id: str) -> str:
        """Writes the record of a release; returns where it stands.

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
        key = f"{_FOLDER}release-{image.version}-{run_id[:8]}.json"
        self.store.write(key, (json.dumps(record, indent=1, default=str) + "\n").encode())
        return self.store.where(key)

    def keep_parts(self, tag: str, parts: bytes) -> str:
        """Writes the list of an image's parts (SBOM); returns where it stands."""
        key = f"{_FOLDER}{tag}.cdx.json"
        self.store.write(key, parts)
        return self.store.where(key)

    def all(self) -> list[dict[str, Any]]:
        """Returns every record, oldest first."""
        keys = [key for key in self.store.keys(_FOLDER) if key.startswith(f"{_FOLDER}release-")]
        found = [json.loads(self.store.read(key)) for key in keys]
        return sorted(found, key=lambda record: str(record["at"]))
