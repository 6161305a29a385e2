"""Methods of other libraries beside ours, each in an environment of its own."""
