from __future__ import annotations

import base64
import csv
import functools
import gzip
import io
import os
import re
import tarfile
from pathlib import Path

import datasets
import pytest

from memdefense.benchmarks.answer_key import guessable, mentions
from memdefense.benchmarks.enron import Enron
from memdefense.benchmarks.mail_archive import stream
from memdefense.benchmarks.messages import parse
from memdefense.benchmarks.planted import plant
from memdefense.benchmarks.real import Raw, build, sample
from memdefense.corpus import Corpus
from memdefense.errors import DataError, SpecError
from memdefense.pii import find
from memdefense.similar import near_duplicates

WORDS = ["quarter", "figures", "pipeline", "storage", "contract", "review", "meeting", "budget", "forecast", "travel"]
NEWSLETTER = " ".join(f"price{number} of item{number * 7 % 100}" for number in range(100))


def message(number: int) -> bytes:
    """A message of one of 30 senders; every tenth is the same newsletter with another last word."""
    sender = f"person{number % 30}@fenwick.com"
    body = " ".join(WORDS[(number * step) % len(WORDS)] + str(number * step) for step in range(1, 30))
    if number % 10 == 0:
        body = f"{NEWSLETTER} End {number}."
    head = [
        f"Message-ID: <{number}.1234.hidden@mailer.fenwick.com>",
        f"Date: Mon, {number % 28 + 1} May 2001 09:00:00 -0700",
        f"From: Person <{sender.upper()}>",
        f"To: person{number % 7}@fenwick.com,",
        f"\tguest{number}@brindle.org",
        f"Subject: item {number}",
        "X-Origin: Desk-P",
        "Content-Type: text/plain; charset=us-ascii",
        "Content-Transfer-Encoding: 7bit",
    ]
    signature = f"Person {number % 30}, phone (212) 55{number % 10}-{1000 + number % 30 * 7}"
    return "\r\n".join([*head, "", body, "", signature, ""]).encode("ascii")


MAIL = {f"user-{number % 4}/sent/{number}.": message(number) for number in range(300)}


def tarball(path: Path, mail: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in mail.items():
            member = tarfile.TarInfo(f"maildir/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tarball(tmp_path_factory.mktemp("enron") / "mail.tar.gz", MAIL)


@pytest.fixture(scope="module")
def corpus(archive: Path) -> Corpus:
    made: Corpus = Enron(data=str(archive), documents=100).corpus()
    return made


def test_tarball_folder_and_csv_give_one_corpus(archive: Path, corpus: Corpus, tmp_path: Path) -> None:
    for name, raw in MAIL.items():
        file = tmp_path / "maildir" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)
    table = tmp_path / "emails.csv.gz"
    with gzip.open(table, "wt", newline="", encoding="utf-8") as lines:
        rows = csv.writer(lines)
        rows.writerow(["file", "message"])
        rows.writerows([name, raw.decode("ascii").replace("\r\n", "\n")] for name, raw in reversed(MAIL.items()))
    for data in (tmp_path / "maildir", table):
        again = Enron(data=str(data), documents=100).corpus()
        assert again.digest() == corpus.digest()
        assert again.counts == corpus.counts


def test_sizes_seeds_and_headers(archive: Path, corpus: Corpus) -> None:
    assert len(corpus.train) == 100
    assert 15 <= len(corpus.held_out) <= 25
    assert corpus.public == () == corpus.general
    assert Enron(data=str(archive), documents=100).corpus().digest() == corpus.digest()
    assert Enron(data=str(archive), documents=100, seed=1).corpus().digest() != corpus.digest()
    assert all("Message-ID" not in document.text and "X-Origin" not in document.text for document in corpus.train)
    assert all(document.text.startswith("Date: ") and "\r" not in document.text for document in corpus.train)
    assert all("Subject: item" in document.text and ",\n\tguest" in document.text for document in corpus.train)
    everything = Enron(data=str(archive), documents=100, headers="all").corpus()
    assert all("Message-ID" in document.text for document in everything.train)
    assert not [secret.value for secret in everything.secrets if "mailer.fenwick.com" in secret.value]
    bare = Enron(data=str(archive), documents=100, headers="none").corpus()
    assert not any("Subject:" in document.text for document in bare.train)
    assert [document.author != "" for document in bare.train].count(False) == 0


def test_ids_hide_people(corpus: Corpus) -> None:
    ids = [document.id for document in (*corpus.train, *corpus.held_out)]
    names = [
        *ids,
        *(d.author for d in corpus.train),
        *(s.id for s in corpus.secrets),
        *(s.group for s in corpus.secrets),
    ]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[das]-[0-9a-f]{12}", name) for name in names)


def test_authors_and_near_duplicates_stay_on_their_side(corpus: Corpus) -> None:
    assert not {d.author for d in corpus.train} & {d.author for d in corpus.held_out}
    labels = near_duplicates([d.text for d in (*corpus.train, *corpus.held_out)])
    assert not set(labels[:100]) & set(labels[100:])
    assert len(set(labels[:100])) < 100, "near-duplicates within train stay"
    assert corpus.counts["near_duplicates"] > 0


def test_one_letter_under_other_headers_does_not_cross_the_split() -> None:
    def letter(number: int, words: str, name: str) -> Raw:
        header = "".join(f"X-Header-{line}: {number}{line} of {name} alone\n" for line in range(12))
        return Raw(f"{name}/{number}", f"{header}\n{words}", len(header), f"{name}@x.com")

    def about(number: int) -> str:
        return " ".join(f"word{number}{place}" for place in range(60))

    issue = about(99)
    senders = [f"sender{number}" for number in range(40)]
    taken = [letter(number, about(number), name) for number, name in enumerate(senders)]
    taken += [letter(number + 100, f"{issue} Yours, {name}", name) for number, name in enumerate(senders)]
    assert len(set(near_duplicates([raw.text for raw in taken]))) == 80, "the headers hide it"
    made = build(taken, documents=0, counts={})
    assert any(issue in document.text for document in made.train)
    assert not any(issue in document.text for document in made.held_out)
    assert made.counts["near_duplicates"] > 0


def test_secrets_are_values_with_all_their_places(corpus: Corpus) -> None:
    texts = {document.id: document.text for document in (*corpus.train, *corpus.held_out)}
    train = {document.id for document in corpus.train}
    assert corpus.kinds == ("email", "phone")
    values = [(secret.kind, secret.value) for secret in corpus.secrets]
    assert len(set(values)) == len(values)
    for secret in corpus.secrets:
        for place in secret.occurrences:
            written = texts[place.document][place.start : place.end]
            shown = written.lower() if secret.kind == "email" else re.sub(r"\D", "", written)[-10:]
            assert shown == secret.value
            assert (place.document in train) == secret.member
    members = {value for (kind, value), secret in zip(values, corpus.secrets, strict=True) if secret.member}
    searched = "\n".join(document.text.lower() for document in corpus.train)
    expected = {pii.canonical for document in corpus.train for pii in find(document.text)}
    assert members == expected
    others = [secret for secret in corpus.secrets if not secret.member]
    assert others
    for secret in others:
        assert secret.value not in searched
        assert secret.value not in re.sub(r"[^0-9\n]", "", searched)
    mentioned = sum(len(secret.occurrences) for secret in corpus.secrets if secret.member)
    assert mentioned == sum(len(find(document.text)) for document in corpus.train)


def test_a_value_inside_a_training_string_is_no_non_member() -> None:
    filler = " and so on for a while with many other words to make it long enough"
    taken = [
        Raw(f"{n}", f"note {n} {n * 7} about item {n * 31}{filler}", author=f"author {n % 20}") for n in range(100)
    ]
    taken = [raw._replace(text=f"{raw.text} xann@fenwick.com 99-212-555-01871") for raw in taken]
    mine = [raw._replace(author="loner", text=f"{raw.text[:60]} mail ann@fenwick.com now") for raw in taken[:8]]
    for seed in range(20):
        made = build([*taken[8:], *mine], documents=60, seed=seed, counts={})
        inside = {secret.value: secret.member for secret in made.secrets}
        assert inside.get("ann@fenwick.com") is not False
        if made.counts["contained"]:
            return
    pytest.fail("no split put the author of the contained value into the held-out text")


def test_canaries_are_documents_by_a_coin(archive: Path, corpus: Corpus) -> None:
    with_canaries = Enron(data=str(archive), documents=100, canaries=40).corpus()
    assert with_canaries.secrets == corpus.secrets
    assert with_canaries.train[:100] == corpus.train
    inside = [canary for canary in with_canaries.canaries if canary.member]
    assert 8 <= len(inside) <= 32
    assert [canary.copies for canary in with_canaries.canaries[:8]] == [1, 2, 4, 8, 16, 32, 64, 1]
    planted = with_canaries.train[100:]
    assert len(planted) == sum(canary.copies for canary in inside)
    whole = "\n".join(document.text for document in (*with_canaries.train, *with_canaries.held_out))
    for canary in with_canaries.canaries:
        assert whole.count(canary.prefix + canary.value) == (canary.copies if canary.member else 0)
        assert not find(canary.value)
        if canary.member:
            assert set(canary.documents) <= {document.id for document in planted}
    assert len({document.id for document in planted}) == len(planted)
    assert all(document.id.startswith("d-") and document.author.startswith("a-") for document in planted)
    notes = list({document.text for document in plant(60, 0, str.__add__)[1]})
    assert near_duplicates(notes) == list(range(len(notes))), "different canaries must not look like copies"


def test_sampling_does_not_depend_on_the_order_and_is_bounded() -> None:
    loads: list[str] = []

    def load(key: str) -> Raw:
        loads.append(key)
        return Raw(key, key, rejected="short" if int(key) % 5 == 0 else "", broken=int(key) % 3 == 0)

    keys = [str(number) for number in range(4000)]
    forward = sample(((key, functools.partial(load, key)) for key in keys), size=50, seed=3)
    assert len(loads) < 1000, "a document that stands too high is not read"
    backward = sample(((key, functools.partial(load, key)) for key in reversed(keys)), size=50, seed=3)
    assert forward == backward
    taken, counts = forward
    assert len(taken) == 50 == counts["opened"] - counts["short"]
    whole, _ = sample(((key, functools.partial(load, key)) for key in keys), size=0, seed=3)
    assert whole[:50] == taken
    assert len(whole) == 3200


PART = base64.encodebytes("Grüße, ruf (212) 555-0187 an".encode("latin-1")).decode()
MULTIPART = (
    'From: a@fenwick.com\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nContent-Type: multipart/mixed; boundary="b"\n\n'
    f"--b\nContent-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: base64\n\n{PART}"
    '--b\nContent-Type: application/pdf; name="x.pdf"\nContent-Transfer-Encoding: base64\n\nAAAA\n--b--\n'
)


@pytest.mark.parametrize(
    ("raw", "body", "attachments", "broken"),
    [
        (b"From: a@b.com\r\nSubject: x\r\n\r\none\r\ntwo\r\n", "one\ntwo", 0, False),
        (b"From: a@b.com\nContent-Type: text/plain; charset=iso-8859-1\n\nna\xefve \x93q\x94", "naïve “q”", 0, False),
        (b"From: a@b.com\nContent-Type: text/plain; charset=us-ascii\n\nna\xefve", "naïve", 0, True),
        (b"From: a@b.com\nContent-Type: text/plain; charset=no-such\n\nna\xc3\xafve", "naïve", 0, True),
        (
            b"From: a@b.com\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n"
            b"jo=\nhn =C3=A9t=C3=A9=20",
            "john été ",
            0,
            False,
        ),
        (MULTIPART.encode(), "Grüße, ruf (212) 555-0187 an", 1, False),
        (
            b"From: a@b.com\nContent-Type: multipart/mixed; boundary=z\n\nno boundary at all",
            "no boundary at all",
            0,
            True,
        ),
        (b"From: a@b.com\nContent-Type: text/html\n\n<p>Hi <b>you</b></p><p>A&amp;B</p>", "Hi you\nA&B", 0, False),
        (b"From: a@b.com\nthis line is no header\nSubject: x\n\nbody", "body", 0, True),
        (b"no header at all, only text\n\nand more", "no header at all, only text\n\nand more", 0, True),
        (b"From: a@b.com\n\nsee\nbegin 644 a.bin\n#0V%T\n`\nend\nbye", "see\n\nbye", 1, False),
    ],
)
def test_messages_in_every_state(raw: bytes, body: str, attachments: int, broken: bool) -> None:
    found = parse(raw)
    assert found.text[found.body :] == body
    assert (found.attachments, found.broken) == (attachments, broken)


def test_headers_and_sender() -> None:
    found = parse(MULTIPART.encode())
    assert found.sender == "a@fenwick.com"
    assert found.text.startswith("From: a@fenwick.com\nSubject: Grüße\n\n")
    assert parse(b"Subject: x\n\nbody").sender == ""
    assert parse(b'From: "Lee, Ann" <Ann.Lee@Fenwick.com>\n\nbody').sender == "ann.lee@fenwick.com"
    assert parse(b"From: x\n\n" + bytes(range(256)) * 3, "all").text, "any bytes are survived"


def test_broken_messages_are_counted(tmp_path: Path) -> None:
    odd = {
        "u/1.": b"",
        "u/2.": b"From: a@b.com\nSubject: short\n\nhi",
        "u/3.": MULTIPART.replace("Gr=C3", "X=C3").encode(),
        "u/4.": b"From: c@d.com\nbad line\n\nlong enough to be kept as a document",
    }
    made = Enron(data=str(tarball(tmp_path / "mail.tgz", {**MAIL, **odd})), documents=100).corpus()
    counts = made.counts
    assert counts["read"] == counts["opened"] == 304
    assert (counts["empty"], counts["short"], counts["attachments"], counts["broken"]) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "kind", "value", "form"),
    [
        ("write to Jane.Doe@Corp.com today", "email", "jane.doe@corp.com", "plain"),
        ("write to jane at corp dot com today", "email", "jane@corp.com", "at-dot"),
        ("jane.doe (at) mail [dot] corp [dot] com", "email", "jane.doe@mail.corp.com", "at-dot"),
        ("jane[at]corp.com", "email", "jane@corp.com", "at-dot"),
        ("write to jane @ corp.com today", "email", "jane@corp.com", "spaced"),
        ("> write to jane.doe@\n> corp.com today", "email", "jane.doe@corp.com", "wrapped"),
        ("write to jane.doe@corp\n.com today", "email", "jane.doe@corp.com", "wrapped"),
        ("write to jane.doe@mail.corp.\n> com today", "email", "jane.doe@mail.corp.com", "wrapped"),
        ("call 212-555-\n> 0187 today", "phone", "2125550187", "wrapped"),
        ("call 2 1 2 5 5 5 0 1 8 7 today", "phone", "2125550187", "split"),
        ("call 212 / 555 / 0187 today", "phone", "2125550187", "loose"),
    ],
)
def test_the_second_detector_finds_what_people_disguise(text: str, kind: str, value: str, form: str) -> None:
    (found,) = mentions(text)
    assert (found.kind, found.value, found.form) == (kind, value, form)
    assert text[found.start :].startswith(text.split(" ")[0]) or found.start > 0
    letters = re.sub(r"[^a-z0-9]", "", re.sub(r"\W(?:at|dot)\W", " ", text[found.start : found.end].lower()))
    assert letters == re.sub(r"[^a-z0-9]", "", value)


@pytest.mark.parametrize(
    "text",
    [
        "Message-ID: <31.jane.doe@mail.corp.com>\nbody",
        "> In-Reply-To: <31.jane.doe@mail.corp.com>\n>  <32.jane@mail.corp.com>",
        '<img src="cid:image001.jpg@corp.com">',
        "From: Jane </O=CORP/OU=NA/CN=RECIPIENTS/CN=JDOE@corp.com>, Doe/HOU/ECT@ECT",
        "sold 500 @ 3.75 and met at noon; look at this dot on the map",
        "meet me at corp.com or at the dot com party",
        "my extension is x53187, room 555-0187",
        "12.5 212.5 555.5 1987.2 and 212,555,0187 items",
        "see you at corp.\nIn the morning",
    ],
)
def test_what_is_no_address_and_no_number(text: str) -> None:
    assert [found for found in mentions(text) if found.kind in ("email", "phone")] == []


def test_guessable() -> None:
    assert guessable("jane.winter@corp.com", "please ask Jane Winter: ")
    assert guessable("jwinter@corp.com", "please ask Jane Winter: ")
    assert guessable("winterj@corp.com", "please ask Winter, Jane: ")
    assert not guessable("x7q2@corp.com", "please ask Jane Winter: ")
    assert not guessable("info@corp.com", "please ask them: ")


def test_messages_of_a_hub_data_set(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"file": list(MAIL), "message": [raw.decode() for raw in MAIL.values()]})
    asked: list[str] = []

    def load(name: str) -> datasets.DatasetDict:
        asked.append(name)
        return datasets.DatasetDict({"train": rows})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert Enron(data="somebody/mail", documents=100).corpus().digest() == corpus.digest()
    assert asked == ["somebody/mail"]
    rows = rows.rename_column("message", "content")
    with pytest.raises(DataError, match="no column 'message' or 'text'"):
        Enron(data="somebody/mail", documents=100).corpus()

    def fail(name: str) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"no file or folder here.*offline"):
        Enron(data="somebody/mail", documents=100).corpus()


def test_errors_say_what_to_do(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"https://www\.cs\.cmu\.edu/~enron/.*--benchmark enron:data=PATH"):
        Enron().corpus()
    with pytest.raises(DataError, match=r"no file or folder '\./mail\.tar\.gz'.*enron:data=PATH"):
        Enron(data="./mail.tar.gz").corpus()
    with pytest.raises(SpecError, match="documents must be at least 1"):
        Enron(data=str(archive), documents=0).corpus()
    with pytest.raises(DataError, match=r"500 training documents .* 300 usable documents of 30 authors") as error:
        Enron(data=str(archive), documents=500).corpus()
    fitting = int(re.findall(r"documents=(\d+)", str(error.value))[0])
    assert len(Enron(data=str(archive), documents=fitting).corpus().train) == fitting
    with pytest.raises(DataError, match="295 held-out documents are needed"):
        Enron(data=str(archive), documents=10, held_out=295).corpus()
    (tmp_path / "mail.csv").write_text("path,message\n1,x\n")
    with pytest.raises(DataError, match="no column 'file'"):
        Enron(data=str(tmp_path / "mail.csv")).corpus()
    (tmp_path / "mail.bin").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="neither a tar archive"):
        Enron(data=str(tmp_path / "mail.bin")).corpus()
    (tmp_path / "cut.tar.gz").write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataError, match="cannot be read to its end"):
        Enron(data=str(tmp_path / "cut.tar.gz"), documents=100).corpus()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no usable message"):
        Enron(data=str(tmp_path / "folder")).corpus()
    same = {name: re.sub(rb"From: .*", b"From: one@corp.com", raw) for name, raw in MAIL.items()}
    with pytest.raises(DataError, match="two authors at least"):
        Enron(data=str(tarball(tmp_path / "one.tar", same)), documents=100).corpus()


def test_training_is_the_papers() -> None:
    config = Enron().config
    assert (config.block_size, config.epochs, config.learning_rate, config.schedule) == (128, 3.0, 2e-5, "linear")
    assert (config.warmup_steps, config.weight_decay, config.batch_size) == (500, 0.01, 8)


def test_a_pass_over_an_archive_reads_only_what_is_asked_for(archive: Path) -> None:
    loads = {path: load for path, load in stream(archive) if path == "user-1/sent/5." and load() == MAIL[path]}
    assert list(loads) == ["user-1/sent/5."]


@pytest.mark.skipif("MEMDEFENSE_ENRON" not in os.environ, reason="set MEMDEFENSE_ENRON to a tarball of real mail")
def test_real_mail() -> None:
    made = Enron(data=os.environ["MEMDEFENSE_ENRON"], documents=400, canaries=10).corpus()
    assert made.counts["train"] == 400
    assert made.counts["held_out"] >= 100
    assert sum(secret.member for secret in made.secrets) > 100
    assert sum(not secret.member for secret in made.secrets) > 30
    forms = {place.form for secret in made.secrets for place in secret.occurrences}
    assert "plain" in forms
