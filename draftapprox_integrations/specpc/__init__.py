"""SpecPC: prompt compression by a draft model's attention."""
