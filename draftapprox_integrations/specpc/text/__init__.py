"""Text in, text out: split passages into sentences, rank them, pack them into a budget."""
