"""Evaluation on the field's own harness: RULER, LongBench, passages, and the paper's grid (extra "eval").

`draftapprox eval` runs it. In Python, importing `draftapprox_integrations.evaluation.harness` registers the engine as
the model "draftapprox" of lm-evaluation-harness.
"""
