"""The chat schema: tables and SQL, nowhere else. One method is one transaction; rows leave as domain values."""
