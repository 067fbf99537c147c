"""Whether the service answers, and as the champion; the local one and the one in a cluster."""

from collections.abc import Callable, Iterator

from health_predict import supervisor
from health_predict.backend import HOST
from health_predict.cluster import Cluster, ClusterError, Pace, Unreachable
from health_predict.doctoring import web
from health_predict.doctoring.finding import Finding, of_error
from health_predict.release import NAME
from health_predict.settings import Settings
from health_predict.verification import over_http, served_version

SERVICE = "service"
PACE = Pace(poll=0.2, answer=3.0, unreachable=2.0)
"""How patiently a cluster is asked: it answers at once, or something is wrong."""

_SERVE = "make serve, or make dev"
_DEPLOY = "launch the job deploy; its run says what is wrong"


def local(
    settings: Settings, started: bool, champion: str | None, on_its_way: Callable[[], str]
) -> Iterator[Finding]:
    """Finds out whether the supervised service is ready and serves the champion.

    Args:
        settings: say where it is.
        started: whether a command has started it and not stopped it.
        champion: version behind the alias, None if unknown or none.
        on_its_way: says what is about to be served, empty if nothing is.
    """
    status = supervisor.status(settings.serving)
    wanted = supervisor.wanted(settings.serving)
    if status is None:
        if started or (settings.deployment == "host" and wanted):
            seen = "its supervisor does not run, though nobody stopped it in order"
            remedy = f"read the end of {settings.var / 'logs' / 'supervisor.log'}, then {_SERVE}"
            yield Finding(SERVICE, "wrong", seen, remedy)
        else:
            what = f"version {wanted.version} is deployed" if wanted else "nothing was deployed yet"
            yield Finding(SERVICE, "off", f"stopped in order; {what}", _SERVE)
        return
    if status.state == "failed":
        about = f"version {status.wanted.version}" if status.wanted else "what is wanted"
        seen = f"{about} does not run: {status.message}"
        yield Finding(SERVICE, "wrong", seen, f"{_DEPLOY}, as does {settings.serving}")
    elif status.state != "serving":
        yield Finding(SERVICE, "off", f"{status.state}: the supervisor serves nothing yet", _DEPLOY)
    else:
        yield _answered(settings, status, champion, on_its_way)


def _answered(
    settings: Settings,
    status: supervisor.Status,
    champion: str | None,
    on_its_way: Callable[[], str],
) -> Finding:
    url = f"http://{HOST}:{status.port}"
    log = f"read the newest log in {settings.serving}, then stop and start the service"
    try:
        ready = web.ask(f"{url}/readyz").status
    except web.Unanswered as error:
        return of_error(SERVICE, error, log)
    if ready != 200:
        return Finding(SERVICE, "wrong", f"{url}/readyz answers {ready}", log)
    ask = over_http(url, _token(settings))
    served = served_version(ask)
    if served is None:
        told, _ = ask("/model-info", None)
        seen = f"{url} is ready and tells no version: /model-info answers {told}"
        remedy = "set HEALTH_PREDICT_SERVICE_TOKEN to a token whose sha256 the service has"
        return Finding(SERVICE, "wrong", seen, remedy if told in (401, 403) else log)
    restarts = f", started again {status.restarts} times" if status.restarts else ""
    return _compared(f"{url}{restarts}", served, champion, on_its_way)


def _compared(
    where: str, served: str, champion: str | None, on_its_way: Callable[[], str]
) -> Finding:
    seen = f"version {served} answers at {where}"
    if champion is None:
        return Finding(SERVICE, "ok", f"{seen}; the champion is not known")
    if served == champion:
        return Finding(SERVICE, "ok", f"{seen}: the champion")
    if coming := on_its_way():
        return Finding(SERVICE, "ok", f"{seen}, the champion is version {champion}: {coming}")
    return Finding(SERVICE, "wrong", f"{seen}, the champion is version {champion}", _DEPLOY)


def in_cluster(
    settings: Settings, champion: str | None, on_its_way: Callable[[], str]
) -> Iterator[Finding]:
    """Finds out whether the service in the cluster serves the champion; see `local`."""
    cluster = Cluster(
        settings.namespace,
        settings.kube_context or None,
        service_url=settings.service_url,
        pace=PACE,
    )
    token = _token(settings)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        served = served_version(lambda path, body: cluster.ask_service(NAME, path, body, headers))
    except Unreachable:
        yield Finding(SERVICE, "off", "unknown while the cluster does not answer")
        return
    except ClusterError as error:
        remedy = f"kubectl -n {settings.namespace} get pods,events; {_DEPLOY}"
        yield of_error(SERVICE, error, remedy)
        return
    where = settings.service_url or f"service {NAME} in namespace {settings.namespace}"
    if served is None:
        remedy = "set HEALTH_PREDICT_SERVICE_TOKEN to a token whose sha256 the service has"
        yield Finding(SERVICE, "wrong", f"{where} tells no version", remedy)
    else:
        yield _compared(where, served, champion, on_its_way)


def _token(settings: Settings) -> str:
    return settings.service_token.get_secret_value() if settings.service_token else ""
