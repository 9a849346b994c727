"""The built-in benchmarks of memdefense."""
