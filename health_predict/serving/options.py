"""What the service is told by its environment: tokens, limits, where its image came from.

Read once when a worker starts, and refused as a whole where a value makes no sense: a service that
guesses whether it is open to everybody is worse than one that does not start. The platform's own
settings are in `health_predict.settings`, which the Bento does not hold.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

AUTH = "HEALTH_PREDICT_AUTH"
TOKENS = "HEALTH_PREDICT_TOKENS"
BATCH_ROWS = "HEALTH_PREDICT_SERVICE_BATCH_ROWS"
UPLOAD_BYTES = "HEALTH_PREDICT_SERVICE_UPLOAD_BYTES"
CONCURRENCY = "HEALTH_PREDICT_SERVICE_CONCURRENCY"
IMAGE_DIGEST = "HEALTH_PREDICT_IMAGE_DIGEST"

_SHA256 = re.compile(r"[0-9a-f]{64}")


class OptionsError(ValueError):
    """The environment asks for something that makes no sense; the message names it."""


@dataclass(frozen=True)
class Options:
    """What the environment asks for.

    Attributes:
        tokens: sha256 digests (hex) of the bearer tokens that may ask; None: everybody may.
        batch_rows: most encounters of a JSON batch.
        upload_bytes: most bytes of a batch.
        concurrency: most requests answered at a time by one worker.
        image_digest: digest of the image it runs from, None where there is none.
    """

    tokens: frozenset[str] | None
    batch_rows: int = 10_000
    upload_bytes: int = 64 * 2**20
    concurrency: int = 256
    image_digest: str | None = None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Options":
        """Reads the options.

        Raises:
            OptionsError: neither tokens are given nor authentication is switched off, or a value
                is not what it should be.
        """
        return cls(
            tokens=_tokens(environment),
            batch_rows=_count(environment, BATCH_ROWS, cls.batch_rows),
            upload_bytes=_count(environment, UPLOAD_BYTES, cls.upload_bytes),
            concurrency=_count(environment, CONCURRENCY, cls.concurrency),
            image_digest=environment.get(IMAGE_DIGEST) or None,
        )


def _tokens(environment: Mapping[str, str]) -> frozenset[str] | None:
    switch = environment.get(AUTH, "on")
    if switch not in ("on", "off"):
        raise OptionsError(f"{AUTH} is {switch!r}: it takes on or off")
    if switch == "off":
        return None
    given = [token.strip().lower() for token in environment.get(TOKENS, "").split(",")]
    tokens = [token for token in given if token]
    if not tokens:
        raise OptionsError(
            f"{TOKENS} is empty: give sha256 digests of the tokens that may ask, separated by "
            f"commas (printf %s TOKEN | sha256sum), or switch authentication off by {AUTH}=off"
        )
    for number, token in enumerate(tokens, 1):
        if not _SHA256.fullmatch(token):  # it may be the token itself: it is not repeated
            raise OptionsError(
                f"entry {number} of {TOKENS} is no sha256 digest of 64 hexadecimal digits: give "
                "the digest of the token (printf %s TOKEN | sha256sum), never the token"
            )
    return frozenset(tokens)


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise OptionsError(f"{name} is {text!r}: it takes a whole number from 1")
    return int(text)
