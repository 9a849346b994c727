"""Microsoft Presidio beside the suite's own patterns, where it is installed: names, places and the rest."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
from pathlib import Path
from typing import Any, ClassVar

from memdefense import pii
from memdefense.detector import Detector, joined
from memdefense.errors import ModelError, SpecError
from memdefense.pii import Pii
from memdefense.pii.forms import is_ip
from memdefense.recipe import digest

_KINDS = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "account",
    "IBAN_CODE": "account",
    "US_BANK_NUMBER": "account",
    "US_SSN": "ssn",
    "IP_ADDRESS": "ip",
    "URL": "url",
    "PERSON": "person",
    "LOCATION": "location",
    "ORGANIZATION": "organization",
    "NRP": "group",
}
_LEFT_OUT = ("DATE_TIME",)


@dataclasses.dataclass(frozen=True)
class Presidio(Detector):
    """What the suite's patterns find, and beside it what Microsoft Presidio does: names, places, groups, other numbers.

    Presidio's entities without a kind of their own here (driving licences, passports, ...) are of kind ``identifier``.
    Dates are left out, and whatever is shorter than two letters or digits. Where both find something the patterns
    stand, so that nothing is read otherwise than without Presidio. A full name and a first name alone are two values.

    Names are replaced, forgotten or filtered like all that a detector finds; attacks are not scored on them, so that no
    table says how well. How well they are found depends on the language model, and was not measured here. The library
    that Presidio checks addresses with (tldextract) asks the network for the list of public suffixes once, and does
    without where there is none; no text leaves the machine.

    Source: https://microsoft.github.io/presidio, with a pipeline of spaCy's.

    Attributes:
        model: a pipeline of spaCy's that tells English names and places, an installed package or a folder; the default
            is Presidio's own.
        score: how sure Presidio must be at least, 0 to 1.

    Raises:
        SpecError: the score is out of range.
    """

    name: ClassVar[str] = "presidio"
    summary: ClassVar[str] = "The patterns, and the names, places and other numbers that Microsoft Presidio finds."

    model: str = "en_core_web_lg"
    score: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise SpecError(f"presidio: score is {self.score}; it is a share, 0 to 1")

    def ready(self) -> None:
        if importlib.util.find_spec("presidio_analyzer") is None:
            raise ModelError('the presidio detector needs an extra: pip install "memdefense[presidio]"')
        # Presidio would otherwise download the model by itself, and end the process where it cannot.
        if not Path(self.model).is_dir() and not _version(self.model):
            raise ModelError(
                f"the presidio detector needs its language model: python -m spacy download {self.model}, or name "
                "another, installed or a folder, with --detector presidio:model=NAME"
            )

    def outside(self) -> str:
        return digest([_version("presidio-analyzer"), _version("spacy"), _version(self.model) or _content(self.model)])

    def find(self, text: str) -> list[Pii]:
        found = []
        for result in _engine(self.model).analyze(text=text, language="en", score_threshold=self.score):
            value = text[result.start : result.end]
            if result.entity_type in _LEFT_OUT or sum(map(str.isalnum, value)) < 2:
                continue
            kind = _KINDS.get(result.entity_type, "identifier")
            if kind == "ip" and not is_ip(value):
                kind = "identifier"
            found.append(Pii(kind, result.start, result.end, value, pii.canonical(kind, value)))
        return joined(super().find(text), found)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # the second of a name that is none, such as a path
        return ""


@functools.cache
def _content(folder: str) -> str:
    """A digest of the files of a pipeline's folder."""
    found = []
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found.append([path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()])
    return digest(found)


@functools.cache
def _engine(model: str) -> Any:
    Presidio(model).ready()
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)  # a line for each recogniser of another language
    logging.getLogger("tldextract").setLevel(logging.CRITICAL)  # a traceback for each address of a list it can't fetch
    provider = importlib.import_module("presidio_analyzer.nlp_engine").NlpEngineProvider
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    analyzer = importlib.import_module("presidio_analyzer").AnalyzerEngine
    return analyzer(nlp_engine=provider(nlp_configuration=settings).create_engine(), supported_languages=["en"])


__all__ = ["Presidio"]
