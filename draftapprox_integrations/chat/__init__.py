"""Chat templates, tool calls and enforced JSON, for any framework."""
