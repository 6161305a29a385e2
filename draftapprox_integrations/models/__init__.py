"""Loading models, observing their attention, tokenizers, names that can be saved."""
