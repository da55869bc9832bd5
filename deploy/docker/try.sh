#!/usr/bin/env bash
# Tries what `make images` has built, each image alone and all of them together: make images-check.
# Needs Docker, its compose, curl and python3. It uses a project, a port and volumes of its own, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")"

# A Traefik is not tried here: the gateway is asked directly. COMPOSE_FILE may name other files instead.
export COMPOSE_FILE=${COMPOSE_FILE:-compose.yaml:direct.yaml} COMPOSE_PROJECT_NAME=backendai-try
export GATEWAY_PORT=${GATEWAY_PORT:-18080} REGISTRY=${REGISTRY:-backendai} VERSION=${VERSION:-0.1.0}
POSTGRES_PASSWORD=$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')
CURSOR_SECRET=$POSTGRES_PASSWORD-cursor AUTH_JWT_SECRET=$POSTGRES_PASSWORD-token
export POSTGRES_PASSWORD CURSOR_SECRET AUTH_JWT_SECRET
services=(gateway chat billing agent speech translate local-ai)
compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)

say() { printf '%s\n' "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

# Every library must load, and nothing but /tmp may be written.
probe='
import ctypes, os, pathlib, sys
libraries = [file for root in ("/venv", sys.base_prefix + "/lib") for file in pathlib.Path(root).rglob("*.so")]
for file in libraries:
    ctypes.CDLL(str(file))
assert os.getuid() == 10001, os.getuid()
for folder in ("/app", "/venv", "/"):
    try:
        open(os.path.join(folder, "written"), "w")
    except OSError:
        continue
    raise SystemExit(folder + " can be written")
open("/tmp/written", "w").write("yes")
shells = [place for place in ("/bin/sh", "/usr/bin/sh", "/bin/bash", "/usr/bin/apt", "/sbin/apk") if os.path.exists(place)]
assert not shells, shells
print(len(libraries), "libraries load; runs as", os.getuid(), "on a root that is read-only")
'

say "== each image alone"
for service in "${services[@]}"; do
  image=$REGISTRY/$service:$VERSION
  said=$(docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --network none "$image" \
    python -c "$probe") || fail "$image"
  kept=$(docker inspect --format '{{json .Config.Env}}' "$image"; docker history --no-trunc "$image")
  ! grep -qE 'PIP_|UV_|SSL_CERT' <<<"$kept" || fail "$image keeps settings of its build"
  say "$image: $(($(docker inspect --format '{{.Size}}' "$image") / 1000000)) MB; $said"
done

container=$(docker run -d --network none --env DATABASE_URL=postgresql://127.0.0.1/none "$REGISTRY/billing:$VERSION")
sleep 0.2
docker stop -t 30 "$container" >/dev/null
code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
docker rm "$container" >/dev/null
((code != 137)) || fail "a process that is still starting does not end when it is told to"
say "one that is still starting ends when it is told to"

say "== all of them together"
trap '"${compose[@]}" down --volumes >/dev/null 2>&1 || true' EXIT
"${compose[@]}" up -d gateway agent >/dev/null 2>&1 || fail "compose up"
id() { "${compose[@]}" ps -q "$1"; }
for service in "${services[@]}" recogniser; do
  for ((second = 0; ; second++)); do
    [[ $(docker inspect --format '{{.State.Health.Status}}' "$(id "$service")") != healthy ]] || break
    ((second < 90)) || fail "$service does not become healthy: $("${compose[@]}" logs "$service" | tail -5)"
    sleep 1
  done
done
say "every container says that it is healthy"

say "== docs/api.md, against the gateway's container"
workspace=$(python3 -c 'import uuid; print(uuid.uuid4())')
token() { "${compose[@]}" run --rm -T token "$@" 2>/dev/null; }
alice=$(token --user alice --workspace "$workspace" --role owner) bob=$(token --user bob --role member)
folder=$(mktemp -d)
{ echo 'set -euo pipefail'; awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' ../../docs/api.md; } >"$folder/walk.sh"
(cd ../.. && env URL="http://127.0.0.1:$GATEWAY_PORT" WORKSPACE="$workspace" TOKEN="$alice" BOB="$bob" bash "$folder/walk.sh" >"$folder/said") ||
  fail "the walk; it said $(tail -3 "$folder/said")"
diff <(grep -oE '# [0-9]{3}$' ../../docs/api.md | cut -c3-) <(grep -oE '^[0-9]{3}$' "$folder/said") || fail "other statuses than documented"
say "every block works as pasted"

say "== SIGTERM"
for service in "${services[@]}" recogniser; do
  container=$(id "$service") began=$(date +%s%N)
  docker stop -t 30 "$container" >/dev/null
  code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
  [[ $code == 0 ]] || fail "$service ended with $code"
  say "$service ended by itself after $((($(date +%s%N) - began) / 1000000)) ms"
done
rm -r "$folder"
say "All is well."
