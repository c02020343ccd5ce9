"""Contexts as people have them: patterns, encodings, archives, PDF; hostile ones, too."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.documents import archive, pdf
from orchestrator.documents.load import load_context
from orchestrator.errors import ContextError
from tests.support.cli import write

_OBJECTS = (
    "<</Type/Catalog/Pages 2 0 R>>",
    "<</Type/Pages/Kids[3 0 R 3 0 R]/Count 2>>",
    "<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
    "<</Length 40>> stream\nBT /F 12 Tf 72 720 Td (Hello page) Tj ET \nendstream",
    "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
)


def portable_document() -> bytes:
    """Return a PDF of two pages, each with a line of text."""
    made, table = b"%PDF-1.4\n", b"0000000000 65535 f \n"
    for number, content in enumerate(_OBJECTS, 1):
        table += b"%010d 00000 n \n" % len(made)
        made += f"{number} 0 obj {content} endobj\n".encode()
    return made + b"xref\n0 6\n%strailer <</Root 1 0 R/Size 6>>\nstartxref\n%d\n%%%%EOF\n" % (table, len(made))


PDF = portable_document()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return file.getvalue()


def tarred(*members: tuple[str, bytes], mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as made:  # type: ignore[call-overload]
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    return file.getvalue()


class TestPatterns:
    def test_one_that_matches_several_files_gives_documents_and_one_match_a_text(self, tmp_path: Path) -> None:
        write(tmp_path, a_dot_md="A", sub__b_dot_md="B", sub__c_dot_txt="C", _dot_hidden_dot_md="no")
        assert load_context(f"{tmp_path}/**/*.md").context == {"a.md": "A", "sub/b.md": "B"}
        assert load_context(tmp_path / "sub" / "*.txt").context == "C"
        assert load_context(f"{tmp_path}/**").context == {"a.md": "A", "sub/b.md": "B", "sub/c.txt": "C"}

    def test_a_file_of_that_very_name_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "[1].txt").write_text("brackets")
        (tmp_path / "1.txt").write_text("one")
        assert load_context(tmp_path / "[1].txt").context == "brackets"

    def test_one_that_matches_nothing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ContextError, match="as a pattern it matches nothing"):
            load_context(tmp_path / "*.md")
        with pytest.raises(ContextError, match="no file is named"):
            load_context([])


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_a_byte_order_mark_is_believed(self, tmp_path: Path, encoding: str) -> None:
        (tmp_path / "a").write_bytes("Grüße, 世界".encode(encoding))
        loaded = load_context(tmp_path / "a")
        assert (loaded.context, loaded.notes()) == ("Grüße, 世界", [])

    def test_what_is_not_utf8_is_detected_and_told(self, tmp_path: Path) -> None:
        text = "Der Bürgermeister eröffnete die Straße über den Fluß und grüßte die Gäste. " * 20
        write(tmp_path, old_dot_txt=text.encode("cp1252"), new_dot_txt=text.encode())
        loaded = load_context(tmp_path)
        assert loaded.context == {"new.txt": text, "old.txt": text}
        (note,) = loaded.notes()
        assert note.startswith("read 1 file in an encoding that was guessed: old.txt as cp125")

    def test_what_goes_on_otherwise_than_it_begins_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x" * (1 << 19) + b"\xff\xfe" * 10)
        with pytest.raises(ContextError, match="goes on otherwise"):
            load_context(tmp_path / "a")

    def test_its_size_is_counted_as_it_will_be_in_the_box(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(("\u4e16" * 400_000).encode("utf-16"))  # 0.8 MB here, 1.2 MB as UTF-8
        with pytest.raises(ContextError, match="is more than"):
            load_context(tmp_path / "a", 1)


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


class TestArchives:
    def test_one_is_refused_unless_it_may_be_unpacked(self, tmp_path: Path) -> None:
        write(tmp_path, a_dot_zip=zipped(x=b"X"), b_dot_txt="B")
        with pytest.raises(ContextError, match=r"a\.zip is an archive \(zip\): unpack it, or .* --unpack"):
            load_context(tmp_path / "a.zip")
        loaded = load_context(tmp_path)
        assert loaded.context == {"b.txt": "B"}
        assert loaded.notes() == ["left out 1 archive (see --unpack): a.zip"]
        assert load_context(tmp_path, unpack=True).context == {"a.zip/x": "X", "b.txt": "B"}

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_a_tar_gives_its_regular_files_however_it_is_compressed(self, tmp_path: Path, mode: str) -> None:
        packed = tarred(("d/a.txt", b"A"), ("d/.git/config", b"no"), ("b.bin", b"\xff\0"), mode=mode)
        (tmp_path / "t").write_bytes(packed)
        loaded = load_context(tmp_path / "t", unpack=True)
        assert loaded.context == {"t/d/a.txt": "A"}
        assert loaded.skipped == ["t/b.bin"]

    @pytest.mark.parametrize("suffix", PACK)
    def test_a_file_that_is_only_compressed_is_a_document(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"log.txt.{suffix}").write_bytes(PACK[suffix](b"line\n"))
        loaded = load_context(tmp_path / f"log.txt.{suffix}", unpack=True)
        assert loaded.context == {f"log.txt.{suffix}/log.txt": "line\n"}

    @pytest.mark.parametrize("suffix", PACK)
    def test_a_bomb_ends_at_the_policys_limit(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / "bomb").write_bytes(PACK[suffix](bytes(64 << 20)))
        with pytest.raises(ContextError, match="unpacks to more than the policy allows"):
            load_context(tmp_path / "bomb", 1, unpack=True)

    def test_a_tar_whose_headers_are_the_bomb_ends_at_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(archive, "HEADERS", 1 << 20)
        with tarfile.open(tmp_path / "bomb", "w:gz", format=tarfile.PAX_FORMAT) as tar:
            for number in range(8):
                member = tarfile.TarInfo(str(number))
                member.pax_headers = {"comment": "x" * (1 << 20)}
                tar.addfile(member)
        with pytest.raises(ContextError, match="its headers alone are large"):
            load_context(tmp_path / "bomb", 1, unpack=True)

    def test_a_zip_that_lies_of_its_sizes_or_holds_too_many_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "bomb.zip").write_bytes(zipped(a=bytes(600 << 10), b=bytes(600 << 10)))
        with pytest.raises(ContextError, match="unpacks to more"):
            load_context(tmp_path / "bomb.zip", 1, unpack=True)
        monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
        (tmp_path / "many.zip").write_bytes(zipped(a=b"", b=b"", c=b""))
        with pytest.raises(ContextError, match="holds more than 2 files"):
            load_context(tmp_path / "many.zip", unpack=True)

    def test_names_in_it_lead_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(tarred(("../../etc/cron.d/x", b"X"), ("/abs", b"Y"), mode="w"))
        assert load_context(tmp_path / "a.tar", unpack=True).context == {"a.tar/etc/cron.d/x": "X", "a.tar/abs": "Y"}

    def test_an_archive_in_an_archive_stays_packed(self, tmp_path: Path) -> None:
        (tmp_path / "a.zip").write_bytes(zipped(inner_dot_zip=zipped(x=b"X"), t=b"T"))
        loaded = load_context(tmp_path / "a.zip", unpack=True)
        assert loaded.context == {"a.zip/t": "T"}
        assert loaded.skipped == ["a.zip/inner.zip"]

    @pytest.mark.parametrize("cut", [10, 40])
    @pytest.mark.parametrize("kind", ["zip", "gz", "xz", "tar"])
    def test_a_broken_one_is_refused_in_a_line(self, tmp_path: Path, kind: str, cut: int) -> None:
        made = {
            "zip": zipped(x=b"X" * 99),
            "tar": tarred(("x", b"X" * 99)),
            **{k: PACK[k](bytes(range(256))) for k in PACK},
        }
        (tmp_path / "a").write_bytes(made[kind][:-cut] if kind != "tar" else made[kind][:cut])
        with pytest.raises(ContextError, match="cannot unpack"):
            load_context(tmp_path / "a", unpack=True)

    def test_one_with_a_password_is_refused(self, tmp_path: Path) -> None:
        data = bytearray(zipped(x=b"X"))
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(mark) + offset] |= 1  # the flag of encryption, APPNOTE.TXT 4.4.4
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(ContextError, match=r"cannot unpack .*password"):
            load_context(tmp_path / "a.zip", unpack=True)


class TestPdf:
    def test_its_text_is_read_page_by_page(self, tmp_path: Path) -> None:
        write(tmp_path, a_dot_pdf=PDF, b_dot_txt="B")
        assert load_context(tmp_path / "a.pdf").context == "Hello page\fHello page"
        assert load_context(tmp_path).context == {"a.pdf": "Hello page\fHello page", "b.txt": "B"}

    def test_without_the_library_a_named_one_is_refused_and_a_found_one_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, a_dot_pdf=PDF, b_dot_txt="B")
        monkeypatch.setattr(pdf, "available", lambda: False)
        with pytest.raises(ContextError, match=r"is a PDF: install rlm-sandbox\[pdf\]"):
            load_context(tmp_path / "a.pdf")
        loaded = load_context(tmp_path)
        assert (loaded.context, loaded.skipped) == ({"b.txt": "B"}, ["a.pdf"])

    def test_a_broken_one_is_refused_in_a_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\n" + b"garbage " * 100)
        with pytest.raises(ContextError, match=r"cannot read the PDF .*a\.pdf: \w+") as caught:
            load_context(tmp_path / "a.pdf")
        assert "\n" not in str(caught.value)

    def test_more_text_than_the_policy_allows_is_refused(self) -> None:
        with pytest.raises(ContextError, match="more than the 12 bytes"):
            pdf.text(PDF, "a.pdf", 12)

    def test_its_reader_has_no_secret_and_is_ended_when_its_time_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "canary")
        made = subprocess.Popen

        def another(command: list[str], **settings: object) -> subprocess.Popen[bytes]:
            assert settings["env"] == {}
            code = "import os, time; print(dict(os.environ), flush=True); time.sleep(1000)"
            return made([command[0], "-I", "-c", code], **settings)  # type: ignore[call-overload, no-any-return]

        monkeypatch.setattr(subprocess, "Popen", another)
        monkeypatch.setattr(pdf, "TIME_S", 0.3)
        with pytest.raises(ContextError, match="its reader ended with -9"):
            pdf.text(PDF, "a.pdf", 1000)
