"""Tokens for development, signed with the data directory's secret.

`make token USER=alice WORKSPACE=<uuid> ROLE=owner` prints one.
"""

import argparse
import sys
import time

import jwt

from deploy.local.problem import Problem
from deploy.local.settings import Settings
from deploy.local.state import DataDirectory

LIFETIME_SECONDS = 30 * 24 * 3600
ROLES = ("owner", "admin", "member", "viewer")
DEMO_USER = "demo"


def make_token(settings: Settings, data: DataDirectory, *, user: str, workspace: str, role: str) -> str:
    """A token that the gateway takes for 30 days."""
    if settings.auth_jwks_url:
        raise Problem("AUTH_JWKS_URL is set, so the gateway takes the tokens of that issuer only: get one there.")
    secret = settings.auth_jwt_secret.get_secret_value() if settings.auth_jwt_secret else data.secret("auth_jwt")
    now = int(time.time())
    claims = {"sub": user, "iat": now, "exp": now + LIFETIME_SECONDS, "workspaces": {workspace: role}}
    optional = {"iss": settings.auth_issuer, "aud": settings.auth_audience}
    return jwt.encode(
        {**claims, **{name: value for name, value in optional.items() if value}}, secret, algorithm="HS256"
    )


def main() -> None:
    """Print a token."""
    settings = Settings.read()
    data = DataDirectory(settings.data)
    data.path.mkdir(parents=True, exist_ok=True)
    parser = argparse.ArgumentParser(prog="make token", description="Print a token for the API.")
    parser.add_argument("--user", default=DEMO_USER)
    parser.add_argument("--workspace", default=str(data.demo_workspace))
    parser.add_argument("--role", default="owner", choices=ROLES)
    asked = parser.parse_args()
    print(make_token(settings, data, user=asked.user, workspace=asked.workspace, role=asked.role))


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(str(problem))
