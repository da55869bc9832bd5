"""Prices, credit accounts, holds and the ledger."""
