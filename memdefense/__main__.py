"""``python -m memdefense`` is the command ``memdefense``."""

from memdefense.cli import main

main()
