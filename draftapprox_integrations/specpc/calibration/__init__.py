"""Find the attention heads of a draft that look at evidence."""
