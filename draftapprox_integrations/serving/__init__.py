"""The service: SpecPC and SpecKV behind HTTP (extra "serve")."""
