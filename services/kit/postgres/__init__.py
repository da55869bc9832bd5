"""PostgreSQL: one reading of DATABASE_URL, one way to connect, one pool, migrations. No domain word lives here."""
