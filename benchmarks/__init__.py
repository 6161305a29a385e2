"""Every claim on speed or accuracy: one command prints its table."""
