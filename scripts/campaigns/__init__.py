"""Campaigns against the library: random walks over memory operations, and hostile files."""
