"""Chat messages to prompts and answers back to messages, for any framework: templates, tools, grammars."""
