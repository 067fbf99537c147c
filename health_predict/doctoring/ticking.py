"""Whether what works by itself does: Dagster's daemons, and the sensors and schedules they tick."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import psutil
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, TickStatus
from dagster._utils.schedules import reverse_cron_string_iterator

from health_predict import processes
from health_predict.doctoring.finding import Finding, ago
from health_predict.settings import Settings

DAEMON = "Dagster daemon"
# A heartbeat comes every 30 s, later where a sensor takes its 60 s.
_LATE_SECONDS = 180.0
# From its start to its first heartbeats and ticks on a busy machine.
_START_SECONDS = 120.0
_DEV = "make dev"
_MOST_CHARACTERS = 200


@dataclass(frozen=True)
class Working:
    """Whether the daemon works.

    Attributes:
        finding: about it.
        since: when it was started at the latest, epoch seconds; None: it does not work.
    """

    finding: Finding
    since: float | None = None


def daemon(settings: Settings, instance: dg.DagsterInstance) -> Working:
    """Finds out whether the daemons of the instance are alive, where they should be."""
    heartbeats = instance.get_daemon_heartbeats()
    newest = max((beat.timestamp for beat in heartbeats.values()), default=0.0)
    last = f"last heartbeat {ago(newest)}" if newest else "there never was a heartbeat"
    if settings.deployment != "local":
        return _beating(instance, last, 0.0, "start it")
    found = daemon_of(settings)
    if found is None:
        return Working(_stopped(settings, last))
    since = found.create_time()
    if time.time() - since < _START_SECONDS:
        return Working(Finding(DAEMON, "ok", f"process {found.pid}, just started"), since)
    return _beating(instance, last, since, "stop it and start it again")


def daemon_of(settings: Settings) -> psutil.Process | None:
    """Returns the daemon that works on the state folder, whoever has started it; None if none."""
    home = str((settings.var / "dagster").absolute())
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            is_daemon = "dagster-daemon" in words or "dagster._daemon" in words
            if is_daemon and process.environ().get("DAGSTER_HOME") == home:
                return process
        except psutil.Error:
            continue
    return None


def _stopped(settings: Settings, last: str) -> Finding:
    if "daemon" not in processes.started(settings):
        return Finding(DAEMON, "off", f"stopped in order; {last}", _DEV)
    log = settings.var / "logs" / "daemon.log"
    seen = f"daemon not running, though nobody stopped it; {last}"
    return Finding(DAEMON, "wrong", seen, f"read the end of {log}, then {_DEV} again")


def _beating(instance: dg.DagsterInstance, last: str, since: float, again: str) -> Working:
    heartbeats, required = instance.get_daemon_heartbeats(), instance.get_required_daemon_types()
    late = [
        f"{name} ({ago(heartbeats[name].timestamp) if name in heartbeats else 'never'})"
        for name in required
        if name not in heartbeats or time.time() - heartbeats[name].timestamp > _LATE_SECONDS
    ]
    if len(late) == len(required):
        remedy = f"{again} (dagster-daemon run); its log says why it ended or hangs"
        return Working(Finding(DAEMON, "wrong", f"daemon not running: {last}", remedy))
    if late:
        seen, remedy = f"no heartbeat of {', '.join(late)}", f"{again}; its log says where it hangs"
        return Working(Finding(DAEMON, "wrong", seen, remedy), since)
    errors = [e.message for beat in heartbeats.values() for e in beat.errors or ()]
    if errors:
        remedy = "see Deployment > Daemons in Dagit for the whole error"
        return Working(Finding(DAEMON, "wrong", _short(errors[0]), remedy), since)
    return Working(Finding(DAEMON, "ok", f"{len(required)} daemons, {last}"), since)


def automation(
    settings: Settings, instance: dg.DagsterInstance, since: float | None
) -> Iterator[Finding]:
    """Finds out whether each sensor and schedule is on, and what came of its newest tick.

    Args:
        settings: as the definitions are made of them.
        instance: has the ticks.
        since: when the daemon was started at the latest; None: it does not run.
    """
    from health_predict.definitions import assemble

    definitions = assemble(settings)
    states: dict[str, InstigatorState] = {}
    for state in sorted(instance.all_instigator_state(), key=_newest_tick):
        states[state.name] = state
    for kind, things in (("schedule", definitions.schedules), ("sensor", definitions.sensors)):
        for thing in things or ():
            name = thing.name
            yield _instigator(f"{kind} {name}", thing, states.get(name), instance, since)


def _newest_tick(state: InstigatorState) -> float:
    data = state.instigator_data
    return getattr(data, "last_tick_timestamp", None) or getattr(data, "start_timestamp", None) or 0


def _instigator(
    part: str,
    thing: Any,
    state: InstigatorState | None,
    instance: dg.DagsterInstance,
    since: float | None,
) -> Finding:
    ticks: Sequence[InstigatorTick] = ()
    if state:
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=5)
    ended = [tick for tick in ticks if tick.status != TickStatus.STARTED]
    newest = ended[0] if ended else None
    seen = _told(newest)
    where = f"Dagit > Automation > {thing.name}"
    on_by_default = thing.default_status.value == "RUNNING"
    if not (state.is_running if state else on_by_default):
        if not on_by_default:
            return Finding(part, "off", f"off unless switched on; {seen}")
        return Finding(part, "wrong", f"switched off; {seen}", f"switch it on: {where}")
    if since is None:
        return Finding(part, "off", f"waits for the daemon; {seen}")
    if newest and newest.status == TickStatus.FAILURE:
        return Finding(part, "wrong", seen, f"see the whole error: {where}")
    owed = _owed(thing, state, max(newest.timestamp if newest else 0.0, since))
    if owed is not None and time.time() - max(owed, since) > _START_SECONDS:
        remedy = "restart the daemon; its log and that of the code server say what it waits for"
        return Finding(part, "wrong", f"was due {ago(owed)} and did not tick; {seen}", remedy)
    return Finding(part, "ok", seen)


def _owed(thing: Any, state: InstigatorState | None, last: float) -> float | None:
    """Returns when it should have ticked after `last` (epoch seconds), None if not yet."""
    if isinstance(thing, dg.SensorDefinition):
        return last + (thing.minimum_interval_seconds or 30)
    newest = reverse_cron_string_iterator(
        time.time(), thing.cron_schedule, thing.execution_timezone
    )
    due = next(newest).timestamp()
    begun = getattr(state.instigator_data, "start_timestamp", None) if state else None
    return due if due > max(last, begun or 0.0) else None


def _told(tick: InstigatorTick | None) -> str:
    if tick is None:
        return "has not ticked yet"
    when = f"ticked {ago(tick.timestamp)}"
    if tick.status == TickStatus.FAILURE:
        return f"{when} and failed: {_short(tick.error.message if tick.error else '')}"
    if tick.run_ids:
        return f"{when}: {len(tick.run_ids)} run{'s' * (len(tick.run_ids) > 1)} requested"
    return f"{when}, skipped: {_short(tick.skip_reason or 'it gave no reason')}"


def _short(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
