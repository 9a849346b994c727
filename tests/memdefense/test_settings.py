from __future__ import annotations

from pathlib import Path

import pytest

from memdefense.settings import Settings, nameplate


def test_what_is_published_does_not_say_where_things_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    (tmp_path / "mail.tar.gz").write_text("")
    monkeypatch.chdir(tmp_path / "models")
    whole = str(tmp_path / "mail.tar.gz")
    assert nameplate(f"enron:data={whole},documents=400", whole, 400) == "enron:data=mail.tar.gz,documents=400"
    assert nameplate("enron:data=../mail.tar.gz", "../mail.tar.gz") == "enron:data=mail.tar.gz"
    assert nameplate("./small") == nameplate("small") == nameplate(str(tmp_path / "models" / "small")) == "small"
    assert nameplate(".") == "models"
    assert nameplate("openai-community/gpt2@abc") == "openai-community/gpt2@abc"
    assert nameplate("mailbox:documents=300", 300) == "mailbox:documents=300"
    assert nameplate("") == ""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert nameplate("~/models/small") == "small"
    told = Settings(model="./small", store="/home/me/store", output="/home/me/out", general_text=whole).told()
    assert told["model"] == "small"
    assert told["general_text"] == "mail.tar.gz"
    assert not {"store", "output"} & told.keys()
