"""The command line: `draftapprox ask`, `compress`, `ingest`, `calibrate`, `store`."""
