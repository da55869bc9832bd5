#!/bin/sh
# Makes .env beside this file, with secrets of this machine's own; one that is there already stays as it is.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
  echo "deploy/docker/.env is there already and stays as it is." >&2
  exit
fi
secret() { od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n'; }
umask 077
cat > .env.part <<END
# What compose.yaml is told. Every setting of ../../.env.example that a process reads may be set here too.
COMPOSE_PROJECT_NAME=backendai

# Made for this machine, once. Without them nobody's token, no cursor and no table can be read again.
POSTGRES_PASSWORD=$(secret)
CURSOR_SECRET=$(secret)
AUTH_JWT_SECRET=$(secret)

# A real provider: its key, its name in the list, and what answers when a session names nothing.
#OPENAI_API_KEY=
#AI_PROVIDERS=openai,local
#DEFAULT_AI_PROVIDER=openai
#DEFAULT_AI_MODEL=gpt-4.1-mini
END
mv .env.part .env
echo "Made deploy/docker/.env." >&2
