"""Chat templates, tool calls and constrained JSON, independent of any framework."""
