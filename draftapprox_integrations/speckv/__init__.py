"""SpecKV: which KV pairs of the target stay (paper section 4.1). Tensors in, tensors out."""
