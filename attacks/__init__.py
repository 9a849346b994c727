"""The built-in attacks of memdefense."""
