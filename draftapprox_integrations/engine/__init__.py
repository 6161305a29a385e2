"""The SpecKV engine: requests, continuous queue, streams, and the pipeline that serves them."""
