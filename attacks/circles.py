"""Who hangs together: the clusters of every comparison of members with non-members."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from memdefense import Corpus, Document, Secret


def circle_of(corpus: Corpus) -> dict[str, str]:
    """The circle of every training and held-out document, by its id; the same for all attacks."""
    documents = [*corpus.train, *corpus.held_out]
    return dict(zip((d.id for d in documents), circles(documents, corpus.secrets), strict=True))


def circles(documents: Sequence[Document], secrets: Sequence[Secret]) -> list[str]:
    """The circle of each document: documents that share an author or a secret hang together.

    A classifier tested on a circle it was trained on reads the split off people's names, which says nothing of whether
    the split is fair. And the texts of a circle are easy or hard for a model together, by the names that stand in all
    of them, and are on one side of the split together, so that it is circles that a comparison of members with others
    rests on, not documents (on `mailbox` authors in their place gave the base model, which has read neither side, an
    AUC of 0.29 whose interval ended at 0.38). Where one circle holds more than half of the documents, as in real mail,
    authors alone are used.
    """
    authors = [document.author or document.id for document in documents]
    parent: dict[str, str] = {author: author for author in authors}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    of = {document.id: author for document, author in zip(documents, authors, strict=True)}
    for secret in secrets:
        together = {root(of[place.document]) for place in secret.occurrences if place.document in of}
        if secret.group in parent:
            together.add(root(secret.group))
        first, *rest = sorted(together) or [""]
        for other in rest:
            parent[other] = first
    found = [root(author) for author in authors]
    largest = max(Counter(found).values(), default=0)
    return authors if 2 * largest > len(documents) else found
