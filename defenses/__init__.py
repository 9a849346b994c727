"""The built-in defenses of memdefense."""
