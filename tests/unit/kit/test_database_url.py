"""DATABASE_URL is read once, in one way, and its password is never repeated."""

import pytest
from psycopg.conninfo import conninfo_to_dict

from services.billing.settings import Settings as BillingSettings
from services.chat.settings import Settings as ChatSettings
from services.kit.postgres.settings import DatabaseSettings, MigrationSettings
from services.kit.postgres.url import InvalidDatabaseUrl, normalize, parse

PASSWORD = "s3cret-word"
WHOLE = {"user": "me", "password": PASSWORD, "host": "db.example", "port": "5433", "dbname": "chat"}


@pytest.mark.parametrize(
    "given",
    [
        f"postgresql://me:{PASSWORD}@db.example:5433/chat",
        f"postgres://me:{PASSWORD}@db.example:5433/chat",
        f"postgresql+psycopg://me:{PASSWORD}@db.example:5433/chat",
        f"postgresql+asyncpg://me:{PASSWORD}@db.example:5433/chat",
        f"postgres+psycopg2://me:{PASSWORD}@db.example:5433/chat",
        f"POSTGRESQL://me:{PASSWORD}@db.example:5433/chat",
        f"jdbc:postgresql://db.example:5433/chat?user=me&password={PASSWORD}",
        f"  postgresql://me:{PASSWORD}@db.example:5433/chat\r\n",
        f"host=db.example port=5433 dbname=chat user=me password='{PASSWORD}'",
    ],
)
def test_every_way_to_write_a_url_means_the_same(given: str) -> None:
    assert parse(given) == WHOLE
    assert conninfo_to_dict(normalize(given)) == WHOLE
    assert normalize(normalize(given)) == normalize(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://u:p%40s%3A%2F@h/d", {"user": "u", "password": "p@s:/", "host": "h", "dbname": "d"}),
        ("postgresql://u:a%20b%27c%5C@h/d", {"user": "u", "password": "a b'c\\", "host": "h", "dbname": "d"}),
        ("postgresql://h/d?sslmode=verify-full&sslrootcert=/ca.crt", {"sslmode": "verify-full", "host": "h"}),
        ("postgresql://h/d?target_session_attrs=any", {"target_session_attrs": "any"}),
        ("postgresql://h1:1,h2:2/d", {"host": "h1,h2", "port": "1,2", "target_session_attrs": "read-write"}),
        ("postgresql://h1,h2/d?target_session_attrs=primary", {"target_session_attrs": "primary"}),
        ("postgresql:///d?host=/var/run/postgresql", {"host": "/var/run/postgresql", "dbname": "d"}),
        ("postgresql://%2Fvar%2Frun%2Fpostgresql/d", {"host": "/var/run/postgresql", "dbname": "d"}),
        ("postgresql://[::1]:5433/d", {"host": "::1", "port": "5433"}),
    ],
)
def test_what_a_url_says_is_kept(given: str, expected: dict[str, str]) -> None:
    assert expected.items() <= parse(given).items()
    assert parse(normalize(given)) == parse(given)


WRONG = [
    "",
    "  \n",
    f"mysql://me:{PASSWORD}@db/chat",
    f"sqlite:///{PASSWORD}",
    PASSWORD,
    f"postgresql://me:{PASSWORD}@x@db/chat",
    f"postgresql://me:{PASSWORD}/x@db/chat",
    f"postgresql://db/chat?user=me&password=x&{PASSWORD}=1@db",
    f"postgresql://me:{PASSWORD}%zz@db/chat",
    f"postgresql://me:{PASSWORD} x@db/chat",
    f"postgresql://me:{PASSWORD}\nx@db/chat",
    f"postgresql://me:{PASSWORD}@db:none/chat",
    f"postgresql://me:{PASSWORD}@db:0/chat",
    f"postgresql://me:{PASSWORD}@db:65536/chat",
    f"postgresql://me:{PASSWORD}@db/chat?pgbouncer=true",
    f"postgresql://me:{PASSWORD}@db/chat?sslmode=yes",
    f"postgresql://me:{PASSWORD}@db/chat?target_session_attrs=best",
    f"host=db password=x {PASSWORD}=1",
    f"host=db password='{PASSWORD}",
]


@pytest.mark.parametrize("given", WRONG)
def test_what_is_no_url_is_refused_without_a_word_of_it(given: str) -> None:
    with pytest.raises(InvalidDatabaseUrl) as refused:
        parse(given)
    assert PASSWORD not in str(refused.value)


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(InvalidDatabaseUrl, match="pgbouncer"):
        parse(f"postgresql://me:{PASSWORD}@db/chat?pgbouncer=true")


@pytest.mark.parametrize("kind", [ChatSettings, BillingSettings, MigrationSettings])
@pytest.mark.parametrize("given", WRONG[2:])
def test_a_wrong_setting_ends_the_start_by_its_name(
    monkeypatch: pytest.MonkeyPatch, kind: type[ChatSettings | BillingSettings | MigrationSettings], given: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    with pytest.raises(SystemExit) as ended:
        kind.read()
    assert str(ended.value).startswith("DATABASE_URL: ")
    assert PASSWORD not in str(ended.value)


def test_a_missing_setting_ends_the_start_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    for kind in (ChatSettings, BillingSettings, MigrationSettings):
        with pytest.raises(SystemExit, match=r"^DATABASE_URL: Field required\.$"):
            kind.read()


def test_no_setting_shows_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{PASSWORD}@db/chat")
    settings = DatabaseSettings()
    assert PASSWORD not in repr(settings)
    assert PASSWORD in settings.database_url.get_secret_value()


def test_migrations_take_the_services_database_unless_they_have_a_way_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://pooler/chat")
    assert conninfo_to_dict(MigrationSettings().url) == {"host": "pooler", "dbname": "chat"}
    monkeypatch.setenv("MIGRATION_DATABASE_URL", "postgres://primary/chat\n")
    assert conninfo_to_dict(MigrationSettings().url) == {"host": "primary", "dbname": "chat"}
    monkeypatch.delenv("DATABASE_URL")
    assert conninfo_to_dict(MigrationSettings().url) == {"host": "primary", "dbname": "chat"}
