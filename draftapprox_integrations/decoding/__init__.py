"""Decoding one token of every row at a time, over buffers that stay where they are."""
