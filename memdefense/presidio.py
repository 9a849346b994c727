"""Microsoft Presidio beside the suite's own patterns, where it is installed: names, places and the rest."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
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

    How well it finds names depends on the language model, and was not measured here.

    Source: https://microsoft.github.io/presidio, with a pipeline of spaCy's.

    Attributes:
        model: an installed package of spaCy's that tells English names and places; the default is Presidio's own.
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
        if not self.model.isidentifier() or importlib.util.find_spec(self.model) is None:
            raise ModelError(
                f"the presidio detector needs its language model: python -m spacy download {self.model}, or name an "
                "installed one with --detector presidio:model=NAME"
            )

    def outside(self) -> str:
        versions = {}
        for package in ("presidio-analyzer", "spacy", self.model):
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = ""
        return digest(versions)

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


@functools.cache
def _engine(model: str) -> Any:
    Presidio(model).ready()
    provider = importlib.import_module("presidio_analyzer.nlp_engine").NlpEngineProvider
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    analyzer = importlib.import_module("presidio_analyzer").AnalyzerEngine
    return analyzer(nlp_engine=provider(nlp_configuration=settings).create_engine(), supported_languages=["en"])


__all__ = ["Presidio"]
