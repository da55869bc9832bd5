#!/bin/sh
# Part of building an image: installs into /venv, from wheels and with bytecode, what requirements/$1.txt pins and no more.
set -eu
. /build/settings
export UV_LINK_MODE=copy UV_NO_CACHE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH

python -m venv --without-pip /venv
/uv/bin/uv pip install --quiet --python /venv/bin/python --require-hashes --no-deps --only-binary :all: \
    --compile-bytecode -r "requirements/$1.txt"
# Programs of packages and what activates a shell: nothing in an image runs them.
find /venv/bin -mindepth 1 ! -name 'python*' -delete
