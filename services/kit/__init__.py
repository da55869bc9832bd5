"""What two or more processes need; no domain word lives here."""
