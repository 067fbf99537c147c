# shellcheck shell=bash
# What the scripts beside it share: settings, engine, containers and their health. Sourced, not run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
readonly here root
name=$(basename "$0")
readonly name
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-health-predict}
readonly project=$COMPOSE_PROJECT_NAME
# Of the image (Dockerfile).
readonly user=10001

say() {
  printf '%s\n' "$*"
}

refuse() {
  printf '%s: %s\n' "$name" "$*" >&2
  exit 1
}

random() {
  head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'
}

digest() {
  printf %s "$1" | sha256sum | cut -d ' ' -f 1
}

# --- settings ---

# One file, of the machine if there is one or this is root, else of the checkout.
settings_file() {
  local machine=/etc/health-predict/env
  if [[ -n ${SETTINGS_FILE:-} ]]; then
    say "$SETTINGS_FILE"
  elif [[ -e $machine || $(id -u) == 0 ]]; then
    say "$machine"
  else
    say "$here/.env"
  fi
}

# Puts the settings of the file into the environment, which outranks it. Read as it stands: nothing is
# expanded, so a password may hold any character; one pair of quotes around a value is taken off.
read_settings() {
  local line key value number=0
  file=$(settings_file)
  readonly file
  if [[ ! -e $file ]]; then return; fi
  [[ -r $file ]] || refuse "$file cannot be read: run this as its owner"
  [[ $(stat -L -c %a "$file") == [46]00 ]] ||
    refuse "$file holds secrets and others may read it: chmod 600 $file"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    if [[ $line =~ ^[[:space:]]*(#.*)?$ ]]; then continue; fi
    [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] ||
      refuse "line $number of $file is not NAME=VALUE"
    key=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
    if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
    if [[ -n $value && -z ${!key+set} ]]; then export "$key=$value"; fi
  done <"$file"
}

made=()

# secret NAME VALUE: sets it unless it is set, to be written down.
secret() {
  if [[ -n ${!1:-} ]]; then return; fi
  export "$1=$2"
  made+=("$1=$2")
}

make_secrets() {
  secret POSTGRES_PASSWORD "$(random)"
  secret HEALTH_PREDICT_POSTGRES "postgresql://dagster:$(random)@postgres:5432/dagster"
  secret MLFLOW_BACKEND_STORE_URI "postgresql://mlflow:$(random)@postgres:5432/mlflow"
  if [[ $(deployment) == host ]]; then
    secret HEALTH_PREDICT_SERVICE_TOKEN "$(random)"
    secret HEALTH_PREDICT_TOKENS "$(digest "$HEALTH_PREDICT_SERVICE_TOKEN")"
  fi
  if wanted notebook; then secret JUPYTER_TOKEN "$(random)"; fi
  if [[ ${#made[@]} == 0 ]]; then return; fi
  write_secrets
  say "Made and written to $file: ${made[*]%%=*}"
}

# Whole or not at all, and where a link leads to.
write_secrets() {
  local target
  target=$(readlink -m "$file")
  mkdir -p "$(dirname "$target")"
  (
    umask 077
    if [[ -e $target ]]; then cat "$target"; fi >"$target.new"
    printf '%s\n' "${made[@]}" >>"$target.new"
  )
  mv "$target.new" "$target"
}

deployment() {
  say "${HEALTH_PREDICT_DEPLOYMENT:-host}"
}

# Whether a profile of compose.yaml is wanted.
wanted() {
  [[ ,${COMPOSE_PROFILES:-}, == *,"$1",* ]]
}

# Whether the cluster is a Minikube of this machine.
has_minikube() {
  [[ $(deployment) == kubernetes && ${HEALTH_PREDICT_OVERLAY:-minikube} == minikube ]]
}

# --- the engine ---

# Sets `engine`, `compose` and `compose_files`.
find_engine() {
  local given=${HOST_COMPOSE:-} version
  if [[ -n $given ]]; then
    read -ra compose <<<"$given"
  elif docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
  elif docker info >/dev/null 2>&1 && command -v docker-compose >/dev/null; then
    compose=(docker-compose)
  elif command -v podman-compose >/dev/null && podman info >/dev/null 2>&1; then
    compose=(podman-compose)
  else
    refuse "neither Docker with its compose plug-in nor podman-compose works here: install Docker" \
      "(https://docs.docker.com/engine/install), start it, or be a user who may use it"
  fi
  engine=docker
  if [[ ${compose[0]} == *podman-compose ]]; then engine=podman; fi
  "$engine" info >/dev/null 2>&1 || refuse "$engine does not answer: start it"
  compose_files=(--file "$here/compose.yaml")
  if [[ $engine == podman ]]; then
    version=$("${compose[@]}" --version 2>/dev/null | sed -nE 's/^podman-compose.* ([0-9.]+)$/\1/p')
    [[ $version =~ ^(1\.[1-9]|1\.[0-9]{2,}|[2-9]) ]] ||
      refuse "podman-compose ${version:-of an unknown version} cannot share a network between" \
        "services: install 1.1 or newer (pip install podman-compose)"
    compose_files+=(--file "$here/compose.podman.yaml")
  elif [[ $(docker info --format '{{.LoggingDriver}}') != json-file ]]; then
    compose_files+=(--file "$here/compose.daemon-logs.yaml")
  fi
  if [[ $(deployment) == kubernetes ]]; then compose_files+=(--file "$here/compose.kubernetes.yaml"); fi
  if [[ -n ${HOST_COMPOSE_FILE:-} ]]; then compose_files+=(--file "$HOST_COMPOSE_FILE"); fi
}

# podman-compose tells what it runs, values included: what it says is shown only if it fails, and
# without them.
compose() {
  local told code=0 key
  told=$("${compose[@]}" --project-name "$project" "${compose_files[@]}" "$@" 2>&1) || code=$?
  if [[ $code == 0 ]]; then return; fi
  for key in "${secrets[@]}"; do
    if [[ -n ${!key:-} ]]; then told=${told//"${!key}"/"($key)"}; fi
  done
  printf '%s\n' "$told" | tail -n 30 >&2
  refuse "${compose[*]} $1 failed with exit code $code"
}

# start_service NAME: without what it depends on, which runs already. Podman would start anew what has
# ended well, and Docker would wait for its next health check, which may be minutes away.
start_service() {
  compose up --detach --no-deps "$1"
}

readonly secrets=(
  HEALTH_PREDICT_POSTGRES MLFLOW_BACKEND_STORE_URI POSTGRES_PASSWORD HEALTH_PREDICT_SERVICE_TOKEN
  HEALTH_PREDICT_REGISTRY_PASSWORD HEALTH_PREDICT_ALERT_WEBHOOK HEALTH_PREDICT_ALERT_SMTP
  AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN
  RAY_AUTH_TOKEN PUBLIC_HASH JUPYTER_TOKEN
)

# --- containers ---

# The services that shall run, in the order in which each needs those before it.
services() {
  local all=(postgres migrate mlflow node code daemon web)
  if [[ $(deployment) != kubernetes ]]; then all+=(supervisor); fi
  if wanted notebook; then all+=(notebook); fi
  if wanted public; then all+=(proxy); fi
  say "${all[@]}"
}

# container SERVICE: its id, nothing if there is none.
container() {
  "$engine" ps --all --quiet --no-trunc --filter "label=com.docker.compose.project=$project" \
    --filter "label=com.docker.compose.service=$1" | head -n 1
}

# health SERVICE: `healthy`, `done`, or in a word what it is instead.
health() {
  local id status code
  id=$(container "$1")
  if [[ -z $id ]]; then
    say missing
    return
  fi
  read -r status code < <("$engine" inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$id")
  if [[ $1 == migrate && $status == exited && $code == 0 ]]; then
    say 'done'
  elif [[ $status != running ]]; then
    say "$status ($code)"
  elif [[ $1 == migrate ]]; then
    say starting
  elif [[ $engine == docker ]]; then
    status=$(docker inspect --format '{{.State.Health.Status}}' "$id")
    if [[ $status == starting ]] && passes "$id"; then status=healthy; fi
    say "$status"
  elif podman healthcheck run "$id" >/dev/null 2>&1; then # by a timer of systemd, where there is one
    say healthy
  else
    say starting
  fi
}

# passes ID: whether a container's health check does, which Docker makes for the first time only when
# its interval is over.
passes() {
  local check
  check=$(docker inspect --format '{{index .Config.Healthcheck.Test 1}}' "$1")
  docker exec "$1" sh -c "$check" >/dev/null 2>&1
}

is_well() {
  [[ $1 == healthy || $1 == 'done' ]]
}

# What answers where, on this machine.
address() {
  case $1 in
    web) say "http://127.0.0.1:${DAGSTER_PORT:-3000}" ;;
    mlflow) say "http://127.0.0.1:${MLFLOW_PORT:-5000}" ;;
    supervisor) say "http://127.0.0.1:${SERVICE_PORT:-3500}" ;;
    notebook) say "http://127.0.0.1:${NOTEBOOK_PORT:-8888}" ;;
    proxy) say "https://dagster.${PUBLIC_DOMAIN:-} https://mlflow.${PUBLIC_DOMAIN:-} https://${PUBLIC_DOMAIN:-}" ;;
    *) say '' ;;
  esac
}

# Prints the table; fails if a service is not well.
health_table() {
  local service found failed=()
  printf '%-11s %-12s %s\n' service health where
  for service in $(services); do
    found=$(health "$service")
    printf '%-11s %-12s %s\n' "$service" "$found" "$(address "$service")"
    is_well "$found" || failed+=("$service")
  done
  if has_minikube; then
    found=$(minikube_health)
    printf '%-11s %-12s %s\n' minikube "$found" ''
    is_well "$found" || failed+=(minikube)
  fi
  for service in "${failed[@]}"; do
    if [[ $service == minikube ]]; then
      say "minikube: k8s/minikube-up starts it and makes its pull secret anew"
    elif [[ -z $(container "$service") ]]; then
      say "$service: iac/host/up starts it"
    else
      say "$service: what it says: $engine logs --tail 50 $(container "$service" | cut -c 1-12)"
    fi
  done
  [[ ${#failed[@]} == 0 ]]
}

minikube_health() {
  if minikube status --profile "${MINIKUBE_PROFILE:-health-predict}" >/dev/null 2>&1; then
    say healthy
  else
    say stopped
  fi
}

# Whether a service was started again and again since it was made.
has_crashed() {
  local id
  id=$(container "$1")
  [[ -n $id ]] && (($("$engine" inspect --format '{{.RestartCount}}' "$id") > 3))
}

# await SERVICE SECONDS: waits until it is well; AWAIT_SECONDS is for machines that take longer.
await() {
  local began=$SECONDS deadline=$((SECONDS + ${AWAIT_SECONDS:-$2})) found id
  while ((SECONDS < deadline)); do
    found=$(health "$1")
    if is_well "$found"; then return; fi
    if [[ $1 == migrate && $found == exited* ]] || has_crashed "$1"; then break; fi
    sleep 2
  done
  id=$(container "$1")
  if [[ -n $id ]]; then "$engine" logs --tail 20 "$id" >&2; fi
  refuse "$1 is ${found:-unknown} after $((SECONDS - began)) s; its last lines are above"
}

# left container|volume|network: ids of what there is of the project.
left() {
  local list=("$1" ls --quiet)
  if [[ $1 == container ]]; then list+=(--all); fi
  "$engine" "${list[@]}" --filter "label=com.docker.compose.project=$project"
}

# --- files of containers ---

# volume NAME: what is mounted for a volume of compose.yaml.
volume() {
  if [[ $1 == state && -n ${HEALTH_PREDICT_VAR:-} ]]; then
    say "$HEALTH_PREDICT_VAR"
  else
    say "${project}_$1"
  fi
}

# The state folder belongs to the containers' user; Docker makes folders that are lacking root's.
make_state_folder() {
  if [[ -z ${HEALTH_PREDICT_VAR:-} ]]; then return; fi
  mkdir -p "$HEALTH_PREDICT_VAR"
  if [[ $(id -u) == 0 ]]; then chown "$user:$user" "$HEALTH_PREDICT_VAR"; fi
}

# in_volume NAME COMMAND...: runs a command in the volume, as its owner, with nothing else. Where the
# image has a folder for it: a new volume takes over that one's owner.
in_volume() {
  local path
  case $1 in
    state) path=/var/lib/health-predict ;;
    artifacts) path=/var/lib/mlflow ;;
  esac
  "$engine" run --rm --interactive --network none --read-only --cap-drop ALL --user "$user:$user" \
    --volume "$(volume "$1"):$path" --workdir "$path" "$PLATFORM_IMAGE" "${@:2}"
}

# in_postgres COMMAND...: runs a command beside the database server.
in_postgres() {
  "$engine" exec --interactive "$(container postgres)" "$@"
}

# --- image ---

# Sets PLATFORM_IMAGE to what the image of this checkout is called: by its contents.
name_image() {
  local contents
  if [[ -n ${PLATFORM_IMAGE:-} ]]; then return; fi
  contents=$(
    cd "$root" || exit
    find Makefile bentofile.yaml pyproject.toml requirements.lock requirements-serving.lock \
      health_predict iac/host image k8s notebooks -type f ! -path '*/__pycache__/*' ! -name .env \
      -print0 | sort -z | xargs -0 sha256sum | sha256sum
  )
  export PLATFORM_IMAGE=localhost/health-predict:${contents:0:12}
  export NOTEBOOK_IMAGE=${NOTEBOOK_IMAGE:-$PLATFORM_IMAGE-notebook}
  export BUILDER_IMAGE=${BUILDER_IMAGE:-$PLATFORM_IMAGE-builder}
}

# build TARGET IMAGE: unless there is one of these contents.
build() {
  if "$engine" image inspect "$2" >/dev/null 2>&1; then return; fi
  say "Building $2; the first time takes a quarter of an hour."
  "$engine" build --file "$here/Dockerfile" --target "$1" --tag "$2" \
    --build-arg "REVISION=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || echo unknown)" \
    ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} "$root"
}
