"""Scorers: how much each sentence matters for a query. One file per scorer."""
