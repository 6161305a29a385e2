"""SpecPC: which text or tokens of the context stay (paper section 4.2)."""
