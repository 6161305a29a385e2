"""HTML heat maps of what was kept."""
