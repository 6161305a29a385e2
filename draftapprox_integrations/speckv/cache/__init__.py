"""KV cache layers after eviction: evicted, ragged (adaptive budgets), quantized."""
