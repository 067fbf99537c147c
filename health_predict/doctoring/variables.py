"""Whether the environment says what it can mean: each setting, and no name that nobody reads."""

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr, ValidationError

from health_predict.doctoring.finding import Finding
from health_predict.settings import Settings
from health_predict.settings_table import PREFIX, known, secret

PART = "settings"

_OF_LIBRARIES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD")


def read() -> tuple[Settings | None, list[Finding]]:
    """Returns the settings that the state was made with; None, and why, if they cannot be had."""
    try:
        path = Settings().var / "settings.json"
    except ValidationError as error:
        return None, list(_refused(error, "correct it, or unset it for its default"))
    try:
        return Settings.of_state(), []
    except ValidationError as error:
        remedy = f"set it in the environment, which outranks {path}, or correct it there"
        return None, list(_refused(error, remedy))
    except (OSError, ValueError) as error:
        seen = f"{path} cannot be read: {error}"
        remedy = "remove it, and set in the environment what the state was made with"
        return None, [Finding(PART, "wrong", seen, remedy)]


def _refused(error: ValidationError, remedy: str) -> Iterator[Finding]:
    for one in error.errors():
        name = f"{PREFIX}{str(one['loc'][0]).upper()}"
        yield Finding(PART, "wrong", f"{name}: {one['msg']}", f"{remedy} (docs/settings.md)")


def misspelt(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Yields a finding for each variable that has our prefix and is read by nothing."""
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known():
            continue
        ends = {each.removeprefix(PREFIX) for each in known() if each.startswith(PREFIX)}
        near = get_close_matches(name.removeprefix(PREFIX), sorted(ends), n=1)
        remedy = "unset it; docs/settings.md has all there are"
        if near:
            remedy = f"write {PREFIX}{near[0]}, or unset it"
        yield Finding(PART, "wrong", f"{name} is read by nothing", remedy)


def look(settings: Settings, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Finds out whether something is missing that another setting needs."""
    if settings.deployment != "local" and settings.postgres is None:
        seen = f"the deployment is {settings.deployment}, and no database is given for Dagster"
        remedy = f"set {PREFIX}POSTGRES, or {PREFIX}DEPLOYMENT=local"
        yield Finding(PART, "wrong", seen, remedy)
        return
    given = sum(name.startswith(PREFIX) for name in environment)
    kept = settings.var / "settings.json"
    words = f", others by {kept}" if kept.is_file() else ""
    seen = f"deployment {settings.deployment}; {given} set in the environment{words}"
    yield Finding(PART, "ok", seen)


def secrets(settings: Settings | None, environment: Mapping[str, str] = os.environ) -> set[str]:
    """Returns what no finding may show: passwords and tokens, those inside addresses too."""
    found = {environment.get(name, "") for name in {*_OF_LIBRARIES, *secret()}}
    texts = [value for name, value in environment.items() if name.startswith(PREFIX)]
    if settings is not None:
        values = [getattr(settings, name) for name in Settings.model_fields]
        found |= {value.get_secret_value() for value in values if isinstance(value, SecretStr)}
        texts += [value for value in values if isinstance(value, str)]
    for text in [*texts, *found]:
        found |= _passwords(text)
    return found - {""}


def _passwords(text: str) -> set[str]:
    try:
        password = urlsplit(text).password or ""
    except ValueError:
        return set()
    return {password, unquote(password)}
