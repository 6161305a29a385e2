"""The SpecKV engine: requests, queue and streams around the pipeline of the method."""
