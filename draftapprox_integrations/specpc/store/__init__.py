"""Keys of passages that were read before, in memory or in a file."""
