import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from splitter import cli, reporting
from splitter import formatting as units
from splitter.errors import UsageError
from splitter.names import is_hidden
from splitter.reporting import page as pages
from splitter.reporting.findings import NotRun, Recorded
from splitter.verification.checks import Status

from .harness import parsed, rows


@pytest.fixture(scope="session")
def elements(page):
    return parsed(page)


# --------------------------------------------------------------------------------------------- loads nothing


def assert_self_contained(page):
    root = parsed(page)
    for one in root.walk():
        for key, value in one.attributes.items():
            if key in ("src", "srcset", "poster", "data", "action", "background", "formaction", "xlink:href"):
                assert value.startswith(("data:image/png;base64,", "#")), (one.tag, key, value[:60])
            if key == "href":
                link = one.tag == "a" and value.startswith(("https://", "#"))
                assert link or (one.tag == "use" and value.startswith("#")), (one.tag, value[:60])
            assert not key.startswith("on"), (one.tag, key)
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target.startswith("#"), (one.tag, target)
    assert not {"link", "iframe", "object", "embed", "base", "audio", "video"} & {one.tag for one in root.walk()}
    (style,) = root.all("style")
    assert "url(" not in style.words()
    assert "@import" not in style.words()


def test_characters_that_hide_are_shown(findings):
    page = pages.render(replace(findings, profile=NotRun("a\x1b[2J\u202e\x00\udce9")))
    assert r"a\x1b[2J\u202e\x00\udce9" in page
    assert not [character for character in page if is_hidden(character) and character not in "\n\t"]


def test_page_loads_nothing(page):
    assert page.startswith("<!doctype html>")
    assert_self_contained(page)


def test_browser_is_told_to_load_nothing_and_to_run_this_script_alone(elements):
    (policy,) = (
        one.attributes["content"]
        for one in elements.all("meta")
        if one.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    data, player = elements.all("script")
    assert data.attributes["type"] == "application/json"
    digest = base64.b64encode(hashlib.sha256(player.children[0].text.encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
    }


def test_ids_are_unique_and_everything_referred_to_is_there(elements):
    ids = [one.attributes["id"] for one in elements.walk() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for one in elements.walk():
        for key in ("aria-labelledby", "href", "xlink:href", "clip-path"):
            value = one.attributes.get(key, "")
            if "#" in value and not value.startswith("https:"):
                assert re.sub(r"^url\(|\)$", "", value).removeprefix("#") in ids
        assert one.attributes.get("aria-labelledby", ids[0]) in ids


HOSTILE = "</script><img src=//x onerror=alert(1)>\"'&$\\frac{1}{2}$"


def test_names_are_never_markup(findings):
    manifest = findings.bundle.manifest
    model = manifest.model.model_copy(
        update={
            "name": HOSTILE,
            "model_class": HOSTILE,
            "audio": manifest.model.audio.model_copy(update={"stems": tuple(f"{HOSTILE}{n}" for n in range(4))}),
        }
    )
    golden = manifest.golden.model_copy(update={"audio": HOSTILE})
    tensors = tuple(
        spec.model_copy(update={"name": f"{HOSTILE}{spec.name}", "layout": HOSTILE}) for spec in manifest.tensors
    )
    bundle = replace(
        findings.bundle, manifest=manifest.model_copy(update={"model": model, "golden": golden, "tensors": tensors})
    )
    heard = findings.listening
    named = replace(
        findings,
        bundle=bundle,
        listening=replace(heard, title=HOSTILE, stems=tuple(replace(one, name=HOSTILE) for one in heard.stems)),
        chain=replace(
            findings.chain, points=tuple(replace(p, name=HOSTILE) for p in findings.chain.points), error=HOSTILE
        ),
        verification=replace(
            findings.verification,
            checks=tuple(replace(check, subject=HOSTILE, note=HOSTILE) for check in findings.verification.checks),
        ),
        doctor=NotRun(HOSTILE),
        profile=NotRun(HOSTILE),
        recorded=(Recorded(HOSTILE, findings.profile.model_copy(update={"system": HOSTILE})),),
    )
    page = reporting.render(named)
    assert_self_contained(page)
    root = parsed(page)
    assert len(root.all("script")) == 2
    assert all(one.attributes["src"].startswith("data:") for one in root.all("img"))
    assert root.all("h1")[0].words() == HOSTILE
    drawn = [one for one in root.walk() if one.attributes.get("class") == "chart wide"]
    assert len(drawn) == 4
    assert sum(f"{HOSTILE[:19]}…" in one.words() for one in drawn) == 2, "as text; mathematics would be drawn"


# ------------------------------------------------------------------------------------------- says what is so


def test_every_boundary_tensor_is_listed_with_its_bytes(elements, findings):
    shown = rows(elements, "Boundary tensors")
    expected = findings.bundle.manifest.tensors
    assert [row[0] for row in shown] == [spec.name for spec in expected]
    assert [row[-1] for row in shown] == [units.size(spec.bytes) for spec in expected]
    assert [row[3] for row in shown] == ["×".join(map(str, spec.shape)) for spec in expected]


def test_every_check_is_listed_as_verify_gave_it(elements, findings):
    shown = rows(elements, "All checks")
    assert len(shown) == len(findings.verification.checks)
    for row, check in zip(shown, findings.verification.checks, strict=True):
        assert row[:2] == [check.kind, check.subject]
        assert row[4] == str(check.status)
        assert row[5] == units.snr(check.parity)


def test_causes_tell_the_check_with_the_least_to_spare(elements, findings):
    shown = {row[0]: row[2:] for row in rows(elements, "What each cause costs")}
    assert set(shown) == {"● conversion", "■ precision", "▲ compression", "◆ port"}
    checks = findings.verification.checks
    worst = min((one for one in checks if one.kind == "conversion"), key=lambda one: one.parity.snr_db)
    assert shown["● conversion"] == ["pass", f"{units.snr(worst.parity)} {worst.subject}", "110 dB"]
    assert shown["■ precision"] == ["n/a", "the shipped package is the fp32 one"]
    assert shown["▲ compression"][0] == "n/a"


def test_what_only_a_mac_shows_is_not_run(elements):
    (core_ml,) = (row for row in rows(elements, "Questions and answers") if row[0] == "coreml")
    assert core_ml[2] == "not run"
    assert core_ml[3:5] == ["", ""]
    (profile,) = (one for one in elements.all("section") if one.attributes["id"] == "profile")
    assert "Core ML: not run" in profile.words()


def test_failures_are_seen(findings):
    checks = tuple(
        replace(one, status=Status.FAIL) if one.kind == "conversion" else one for one in findings.verification.checks
    )
    root = parsed(reporting.render(replace(findings, verification=replace(findings.verification, checks=checks))))
    assert "FAILED" in root.all("header")[0].words()
    (row,) = (row for row in rows(root, "What each cause costs") if row[0] == "● conversion")
    assert row[2] == "fail"


def test_what_was_left_out_is_not_run(findings):
    bare = replace(
        findings,
        profile=NotRun("left out"),
        doctor=NotRun("no package"),
        listening=NotRun("it overflowed"),
        recorded=(),
    )
    root = parsed(reporting.render(bare))
    sections = {one.attributes["id"]: one.words() for one in root.all("section")}
    assert "not run it overflowed" in sections["listening"]
    assert "not run no package" in sections["doctor"]
    assert "not run left out" in sections["profile"]
    figures = root.all("dl")[0].words()
    assert figures.count("Doctor not run no package") == figures.count("Time of a run not run left out") == 1
    assert not root.all("button")


def test_profiles_from_files_are_shown_as_such(findings):
    mac = findings.profile.model_copy(update={"system": "macOS-26"})
    root = parsed(reporting.render(replace(findings, recorded=(Recorded("mac.json", mac),))))
    (profile,) = (one for one in root.all("section") if one.attributes["id"] == "profile")
    words = profile.words()
    assert "[2] macOS-26" in words
    assert "read from mac.json, not run here" in words
    assert f"[1] {findings.profile.system}" in words
    table = rows(root, "Segments: time, work and memory")
    per_machine = sum(len(segment.engines) for segment in mac.segments)
    assert len(table) == 2 * per_machine


def test_findings_of_the_doctor_are_grouped_by_rule(elements, findings):
    for diagnosis in findings.doctor.diagnoses:
        rules = {}
        for finding in diagnosis.findings:
            rules.setdefault(finding.rule, []).append(finding)
        name = diagnosis.package.rpartition("/")[2]
        for rule, found in rules.items():
            shown = rows(elements, f"{rule} in {name}")
            assert len(shown) == min(len(found), pages._MOST_PLACES)
            assert [row[2] for row in shown] == [" ".join(one.what.split()) for one in found[: len(shown)]]


def test_everything_to_operate_has_a_name(elements):
    labelled = [one for label in elements.all("label") for one in label.all("input")]
    for one in elements.all("input"):
        assert one in labelled or one.attributes["aria-label"]
    (play,) = elements.all("button")
    assert play.attributes["aria-label"] == "Play"
    assert all(one.attributes.get("alt") for one in elements.all("img"))
    for table in elements.all("table"):
        assert table.all("caption")[0].words()
        assert all(cell.attributes.get("scope") for cell in table.all("th"))


def test_pictures_show_what_they_are_said_to(elements):
    charts = [one for one in elements.walk() if one.attributes.get("class", "").startswith("chart")]
    assert len(charts) == 8, "four, each for a desktop and for a phone"
    for one in charts:
        (svg,) = one.all("svg")
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-label"]
        assert len(svg.all("path")) > 4
        assert all("font-family" not in text.attributes.get("style", "") for text in svg.all("text"))
        style = " ".join(part.attributes.get("style", "") for part in svg.walk())
        assert "var(--" in style
        assert not re.findall("#[0-9a-f]{6}", style), "colours are the page's, light or dark"


# ------------------------------------------------------------------------------------------------ the file


def test_a_file_that_is_there_is_refused_before_anything_is_run(demo_path, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report.html"
    out.write_text("mine")
    monkeypatch.setattr(reporting, "gather", lambda *a, **k: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["splitter", "report", str(demo_path), "-o", str(out)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_a_file_is_replaced_whole_or_not_at_all(findings, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("old")
    monkeypatch.setattr(pages, "render", lambda findings: "new")
    assert reporting.write(findings, out, force=True) == 3
    assert out.read_text() == "new"

    def fail(findings):
        raise RuntimeError("half way")

    monkeypatch.setattr(pages, "render", fail)
    with pytest.raises(RuntimeError, match="half way"):
        reporting.write(findings, out, force=True)
    assert out.read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "message"),
    [("folder", "is no regular file"), ("none/report.html", "cannot be written; got No such file or directory$")],
)
def test_a_page_goes_where_a_file_can_be(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=message):
        reporting.check_free(tmp_path / name, force=True)


def test_command_prints_one_document(demo_path, findings, tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(pages, "gather", lambda bundle, engines, **options: asked.update(options) or findings)
    out = tmp_path / "report.html"
    arguments = ["report", demo_path, "-o", out, "--runs", 0, "--seconds", 5, "--json"]
    monkeypatch.setattr(sys, "argv", ["splitter", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    document = json.loads(capsys.readouterr().out)
    assert document == {"report": str(out), "bytes": out.stat().st_size, "verified": True}
    assert (asked["runs"], asked["seconds"]) == (0, 5.0)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_other_verbs_do_without_the_reports_libraries():
    script = "import sys, splitter.cli; print([m for m in ('jinja2', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
