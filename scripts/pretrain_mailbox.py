"""Makes the base model of `mailbox` that ships: ``python scripts/pretrain_mailbox.py benchmarks/mailbox_base``.

On another kind of machine, or with other versions of the libraries, its weights come out other in their last bits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from memdefense.bench import Bench
from memdefense.benchmarks.mailbox import Mailbox
from memdefense.lab import Lab
from memdefense.store import Store


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Writes weights and tokenizer."""
    mailbox = Mailbox()
    public = mailbox.corpus().public
    with tempfile.TemporaryDirectory() as store:
        bench = Bench(Store(Path(store)), "cpu")
        lab = Lab(bench, who="mailbox", seed=0, originals=(), public=public, config=mailbox.config, base=None)
        mailbox.pretrained(lab).save(folder)


if __name__ == "__main__":
    main()
