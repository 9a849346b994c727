"""Microsoft Presidio as a detector, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util

from memdefense.errors import ModelError

from .forms import KINDS, Detector, Pii, canonical, is_ip

_PRESIDIO = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "account",
    "IBAN_CODE": "account",
    "US_BANK_NUMBER": "account",
    "US_SSN": "ssn",
    "IP_ADDRESS": "ip",
    "URL": "url",
}


def presidio_detector(model: str = "en_core_web_lg") -> Detector:
    """Microsoft Presidio's detector with an English spaCy model: the `KINDS`, names and the rest, dates left out.

    Entities without a counterpart in `KINDS` keep Presidio's name in lower case (``person``, ``location``); their
    canonical form is the case-folded text with single spaces. They cannot be given to `fake`. Of entities that overlap
    the one that begins first counts, and of those the longest.

    Args:
        model: an installed package of spaCy's that tells names and places; the default is Presidio's own.

    Raises:
        ModelError: the extra or its language model is not installed.
    """
    if importlib.util.find_spec("presidio_analyzer") is None:
        raise ModelError('the presidio detector needs an extra: pip install "memdefense[presidio]"')
    # Presidio would otherwise download the model by itself, and end the process where it cannot.
    if importlib.util.find_spec(model) is None:
        raise ModelError(f"the presidio detector needs its language model: python -m spacy download {model}")
    provider = importlib.import_module("presidio_analyzer.nlp_engine").NlpEngineProvider
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    analyzer = importlib.import_module("presidio_analyzer").AnalyzerEngine
    engine = analyzer(nlp_engine=provider(nlp_configuration=settings).create_engine(), supported_languages=["en"])

    def detect(text: str) -> list[Pii]:
        found: list[Pii] = []
        for result in sorted(engine.analyze(text=text, language="en"), key=lambda r: (r.start, -r.end, -r.score)):
            if result.entity_type == "DATE_TIME" or (found and result.start < found[-1].end):
                continue
            value = text[result.start : result.end]
            kind = _PRESIDIO.get(result.entity_type, result.entity_type.lower())
            ours = kind in KINDS and (kind != "ip" or is_ip(value))
            form = canonical(kind, value) if ours else " ".join(value.casefold().split())
            found.append(Pii(kind, result.start, result.end, value, form))
        return found

    return detect
