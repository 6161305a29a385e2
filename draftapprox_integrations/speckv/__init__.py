"""SpecKV: KV cache dropping guided by a draft model's lookahead."""
