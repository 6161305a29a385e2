"""Parts that the LangChain and LlamaIndex adapters share; no framework is imported here."""
