"""Cache layers that hold the kept KV pairs of a prompt."""
