"The site: pages of a small project, everything that must stop a build, and the project's own."
import base64, configparser, json, os, re, shutil, sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from neurocompanion.core import ParameterError
from neurocompanion.render import SiteError, article, markdown, readme_text
from neurocompanion.site import build, check_links, pages, readme

ROOT = Path(__file__).resolve().parents[1]
PNG = base64.b64encode(
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\x20\0\0\0\x90\x08\x02\0\0\0\0\0\0\0\0\0\0\x09pHYs"
    b"\0\0\x16\x25\0\0\x16\x25\1").decode()  # the head of a 288 x 144 picture at 144 dots per inch


def code(source, *outputs, tags=()):
    metadata = {"tags": list(tags)} if tags else {}
    return dict(cell_type="code", source=source, metadata=metadata, outputs=list(outputs),
                execution_count=None)


def shown(**data):
    return dict(output_type="display_data", metadata={},
                data={k.replace("_", "/"): v for k, v in data.items()})


def printed(text, name="stdout"): return dict(output_type="stream", name=name, text=text)


def notebook(*cells):
    cells = [dict(cell_type="markdown", source=c, metadata={}) if isinstance(c, str) else c
             for c in cells]
    return dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)


def body(*cells, **options):
    return article(notebook("# T", *cells), "a/t.ipynb", files={}, **options)[2]


def check_form(text):
    "Fail if a page is not well formed, has another number of titles than one, or a bare picture."
    closed = re.sub(r"(<(?:img|br|hr)\b[^>]*[^/])>", r"\1/>", text)  # HTML leaves them open
    closed = closed.replace("&nbsp;", " ")                            # and has names of its own
    page = ElementTree.fromstring(f"<main>{closed}</main>")
    assert len(page.findall(".//h1")) == 1
    assert all(picture.get("alt") for picture in page.iter("img"))


@pytest.fixture
def house(tmp_path):
    "Write a project of given pages; `index` and `wing/room` unless told otherwise."
    def write(sidebar=None, **books):
        books = {"index": ["# House"], "wing/room": ["# Room"]} | books
        sidebar = sidebar or [f"{name}.ipynb" for name in books]
        (tmp_path / "_quarto.yml").write_text(yaml.safe_dump(
            {"website": {"title": "House", "sidebar": {"contents": sidebar}},
             "bibliography": "references.bib"}))
        for name, cells in books.items():
            path = tmp_path / "nbs" / f"{name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(notebook(*cells)))
        shutil.copy(ROOT / "nbs/styles.css", tmp_path / "nbs/styles.css")
        shutil.copy(ROOT / "nbs/references.bib", tmp_path / "nbs/references.bib")
        return tmp_path
    return write


# ---- what a page shows
@pytest.mark.parametrize("kind", ["note", "tip", "warning", "important", "caution"])
def test_callouts(kind):
    html = body(f'::: {{.callout-{kind} title="Colons: fine, `code` too"}}\nText.\n\n- one\n:::')
    assert f'class="callout callout-{kind}"' in html and "<li>one</li>" in html
    assert re.search(r'callout-title">\s*Colons: fine, <code>code</code> too', html)
    assert f">\n{kind.capitalize()}\n" in body(f"::: {{.callout-{kind}}}\nText.\n:::")


EVIL = "```\n:::\n# no heading\n$x$ @fig-none [@none] </pre><script>"
SHOWN = {  # cells; what their page holds, as a pattern; what it does not hold
    "title from heading": (["::: {.callout-note}\n## Head\nText.\n:::"],
                           [r'callout-title">\s*Head'], ["<h2"]),
    "callout around cells": (["::: {.callout-note}", code("x = 1", printed("one")), ":::"],
                             ["(?s)callout-note.*sourceCode.*one</pre>"], []),
    "math": (["Inline $\\alpha_t$, displayed $$ \\frac{a}{b} $$ in a frame."],
             ['(?s)<math.*class="equation"><math'], ["$$"]),
    "links": (["[a](../core.ipynb) [b](b.ipynb#part) [c](https://x.org/y.ipynb) [d](#here)"],
              ['"../core.html"', '"b.html#part"', '"https://x.org/y.ipynb"', '"#here"'], []),
    "definitions": ([code("#| export\ndef fit(): ...\ndef _no(): ...")], ['id="def-fit"'],
                    ["def-_no"]),
    "hidden": ([code("#| hide\nsecret()"), code("#| include: false\nsecret()", printed("secret")),
                code("#| echo: false\nsecret()", printed("seen")),
                code("#| output: false\nx", printed("secret")),
                code("#| export\n#| eval: false\nzebra"),
                code('#| code-fold: true\n#| code-summary: "Why: so"\nwindow')],
               ["seen", "zebra", "<summary>Why: so</summary>", "window"],
               ["secret", "#|"]),
    "streams": ([code("a", printed("\x1b[31mred\x1b[0m\n 0%\r50%\r100%\n<b>&")),
                 code("b", printed("oh", "stderr"))],
                ["red\n100%\n&lt;b&gt;&amp;</pre>", '<pre class="cell-output stderr">oh'], []),
    "the richest output": ([code("c", shown(text_plain="<Figure>", image_png=PNG)),
                            code("d", shown(text_plain="df", text_html="<style scoped>x</style>Ω")),
                            code("e", shown(text_plain="Object()")),
                            code("f", shown(text_markdown="**bold**"))],
                           [r"Object\(\)</pre>", "<strong>bold</strong>", "<img", "Ω"],
                           ["&lt;Figure", "<style", ">df<"]),
    "what looks like markup": ([code(f'"""{EVIL}"""', printed(EVIL)), "## After"],
                               ["no heading", '<h2 id="after"'], ["<script", 'id="no-heading"']),
    "an error that is the point": ([code("x", dict(
        output_type="error", ename="E", evalue="", traceback=["why"]), tags=["raises-exception"])],
        ['stderr">why</pre>'], [])}


@pytest.mark.parametrize("case", SHOWN)
def test_what_a_page_shows(case):
    cells, holds, lacks = SHOWN[case]
    html = re.sub("<annotation.*?</annotation>", "", body(*cells))
    for pattern in holds: assert re.search(pattern, html), (pattern, html)
    for text in lacks: assert text not in html, (text, html)
    check_form(html)


def test_figures_are_numbered_and_linked():
    cells = [code('#| label: fig-b\n#| fig-cap: "B: $x$"\nplot()', shown(image_png=PNG)),
             code("#| label: fig-c\n#| fig-cap: C\n#| echo: false\ntable()",
                  shown(text_html="<table><tr><td>9</td></tr></table>")), "See @fig-b, @fig-c."]
    html = body(*cells)
    assert '<figure id="fig-b">' in html and '<figure id="fig-c">' in html
    assert re.search(r'<figcaption>\s*<span class="number">Figure 1</span>: B: <math', html)
    for link in ['"#fig-b">Figure 1<', '"#fig-c">Figure 2<']: assert f"<a href={link}" in html
    assert 'width="192" height="96"' in html  # as large as it was drawn, not as many pixels
    assert "table()" not in html and "plot" in html


def test_citations_and_exported_names():
    html = body("As shown [@kato2015].", bibliography=[ROOT / "nbs/references.bib"])
    assert "Kato et al." in html and 'id="ref-kato2015"' in html and ">References</h2>" in html
    assert "References" not in body("Nothing cited.", bibliography=[ROOT / "nbs/references.bib"])
    names = {"fit": "training/fit.ipynb#def-fit", "own": "a/t.ipynb#def-own"}
    html = body("`fit`, `fit()`, `own`, `fit(x)`, [`fit`](b.ipynb)", names=names)
    assert html.count('href="../training/fit.html#def-fit"') == 2 and "#def-own" not in html


def test_title_contents_and_pictures_of_a_notebook_that_stays_as_it_is():
    nb = notebook("# A *title* & `more`\n\n> Sub.", "## One\n\n### Two\n\n#### Three",
                  code("#| export\nx = 1", printed("1"), shown(image_png=PNG)))
    before, files = json.dumps(nb), {}
    title, toc, html = article(nb, "a/t.ipynb", files=files)
    assert title == "A title & more" and re.findall('href="#([^"]*)"', toc) == ["one", "two"]
    assert re.search(r"<h1>\s*A <em>title</em>", html) and re.search(r'"subtitle">\s*<p>Sub', html)
    assert list(files) == ["a/t_files/2-1.png"] and 'src="t_files/2-1.png"' in html
    markdown(nb, "t.ipynb", {})
    assert json.dumps(nb) == before


# ---- what stops a page
def test_bad_cells():
    error = dict(output_type="error", ename="KeyError", evalue="'a'", traceback=[])
    for cell, says in [(code("x", error), "a cell ended in an error: found KeyError: 'a'"),
                       (code("#| fig-cap: Loss: falls\nx"), "the comments at the head")]:
        with pytest.raises(SiteError, match=f"a/t.ipynb, cell 1: {says}"): body(cell)


# ---- the site
def test_build(house):
    project = house([{"text": "Start & go", "href": "index.ipynb"},
                     {"section": "Wing", "contents": [{"href": "wing/my room.ipynb"}]}], **{
        "index": ["# House", "[room](wing/my%20room.ipynb#bed), ![](roof.svg), [sizes](sizes.csv)"],
        "wing/my room": ["# Room", "## Bed", code("draw()", shown(image_png=PNG))]})
    (project / "nbs/wing/room.ipynb").unlink()
    (project / "nbs/roof.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (project / "nbs/sizes.csv").write_text("1,2")
    site = build(project / "out", project)
    assert site == project / "out"
    first = {p.relative_to(site).as_posix(): p.read_bytes() for p in site.rglob("*") if p.is_file()}
    assert set(first) == {".nojekyll", "index.html", "roof.svg", "site.js", "sizes.csv",
                          "styles.css", "wing/my room.html", "wing/my room_files/2-0.png"}
    room, index = (site / "wing/my room.html").read_text(), (site / "index.html").read_text()
    assert 'href="../styles.css"' in room and 'href="../index.html"' in room
    assert '<a href="my%20room.html" aria-current="page">my room</a>' in room
    assert re.search('class="previous" href="../index.html"', room) and "Next" not in room
    assert '<meta name="viewport"' in room and "color-scheme" in room
    for part in ("Start &amp; go", "<h2>Wing</h2>", "Wing: my room"): assert part in index
    build(project / "out", project)  # replaces the old site, with the same bytes
    assert {p: (site / p).read_bytes() for p in first} == first
    assert not list(project.glob(".site-*"))


@pytest.mark.parametrize("text, says", [
    ('<a href="attic.html">a</a>', "index.html: attic.html is missing"),
    ('<a href="b.html#bed">a</a>', "index.html: b.html#bed has no part #bed"),
    ('<a href="#bed">a</a>', "#bed has no part #bed"),
    ('<a href="../LICENSE">a</a>', "../LICENSE leads out of the site"),
    ('<a href="/etc/hosts">a</a>', "/etc/hosts is an absolute path"),
    ('<img src="roof.png">', "roof.png is missing"),
    ('<img src="https://example.org/a.png">', "https://example.org/a.png is loaded from the inter"),
    ('<script src="//example.org/a.js"></script>', "is loaded from the internet"),
    ('<div style="background: url(https://example.org/a.png)">x</div>', "from the internet"),
    ("<style>@import 'https://example.org/a.css';</style>", "is loaded from the internet"),
    (None, "styles.css: https://fonts.example.org/a.css"),
    ('<a href="b.html#x">b</a><a href="#">b</a><img src="data:image/png,">', 4)])
def test_check_links_reads_any_site(tmp_path, text, says):
    (tmp_path / "LICENSE").touch()
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text(text or "")
    (site / "b.html").write_text('<p id="x"><a href="mailto:a@b.org">a</a>')
    if not text: (site / "styles.css").write_text("@import url('https://fonts.example.org/a.css');")
    if says == 4:
        assert check_links(site) == says
        return
    with pytest.raises(SiteError) as e: check_links(site)
    assert "1 broken link: found" in str(e.value) and says in str(e.value)


def test_a_failed_build_leaves_the_old_site(house):
    project = house()
    build(project / "out", project)
    before = (project / "out/index.html").read_text()
    house(index=["# House", "[a](attic.ipynb) [b](wing/room.ipynb#bed) ![c](roof.png)"])
    with pytest.raises(SiteError, match="3 broken links: .*attic.html is missing.*no part #bed"):
        build(project / "out", project)
    assert (project / "out/index.html").read_text() == before and not list(project.glob(".site-*"))


def test_sidebar_and_notebooks_must_agree_but_hidden_ones_are_no_pages(house):
    for sidebar, says in [(["index.ipynb"] * 2 + ["wing/room.ipynb"], "twice: found index.ipynb"),
                          ("auto", "no sidebar")]:
        with pytest.raises(SiteError, match=says): pages(house(sidebar))
    project = house(sidebar=["index.ipynb", "wing/room.ipynb"])
    for name in (".ipynb_checkpoints/index-checkpoint.ipynb", "_draft.ipynb"):
        path = project / "nbs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(notebook("no title")))
    assert [p.path for p in pages(project)] == ["index.ipynb", "wing/room.ipynb"]


def test_not_a_project_and_no_pandoc(house, monkeypatch):
    project = house()
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "pypandoc", None)
        m.setenv("PATH", "")
        with pytest.raises(SiteError, match=r"Pandoc is not installed. pip install"):
            build(project / "out", project)
    (project / "nbs/index.ipynb").write_text("{}")
    with pytest.raises(SiteError, match="index.ipynb: is not a notebook"):
        build(project / "out", project)
    (project / "_quarto.yml").write_text("a: [")
    with pytest.raises(SiteError, match="is not YAML"): pages(project)


def test_only_a_site_is_replaced_and_a_relative_folder_is_in_the_checkout(house, monkeypatch):
    project = house()
    (project / "mine").mkdir()
    (project / "mine/thesis.txt").write_text("years of work")
    for out in ("mine", "mine/thesis.txt", "nbs/site"):
        with pytest.raises(ParameterError, match="will not be replaced"):
            build(project / out, project)
    assert (project / "mine/thesis.txt").read_text() == "years of work"
    (project / "_docs").mkdir()
    (project / "settings.ini").touch()
    monkeypatch.chdir(project / "mine")
    assert build(project=project) == project / "_docs"


def test_readme(house, monkeypatch):
    roof = code("#| echo: false\n#| fig-cap: A roof\ndraw()", shown(image_png=PNG))
    project = house(index=["# House\n\n> Sub.", "[room](wing/room.ipynb#bed)", roof])
    with monkeypatch.context() as m:
        m.setattr("neurocompanion.site.home", lambda: project)
        with pytest.raises(SiteError, match="installed package has no README to write"): readme()
    assert not (project / "README.md").exists()
    text = readme(project).read_text()
    assert text.startswith("# House\n\n> Sub.") and "[room](nbs/wing/room.ipynb#bed)" in text
    assert 'src="index_files/2-0.png"' in text and "A roof" in text and "draw" not in text
    assert (project / "index_files/2-0.png").read_bytes() == base64.b64decode(PNG)
    assert "<div" not in text and "class=" not in text
    assert "$`x`$" in readme_text(notebook("# T", "$x$"), "index.ipynb", {})


# ---- the project's own site
def test_quarto_yml_is_the_one_that_nbdev_reads():
    link, config = ROOT / "nbs/_quarto.yml", configparser.ConfigParser(interpolation=None)
    assert link.is_symlink() and os.readlink(link) == "../_quarto.yml"
    config.read(ROOT / "settings.ini")
    settings, q = config["DEFAULT"], yaml.safe_load(link.read_text())
    assert q["project"] == {"type": "website", "output-dir": settings["doc_path"]}
    html = q["format"]["html"]
    assert html["html-math-method"] == "mathml" and set(html["theme"]) == {"light", "dark"}
    for path in [html["css"], q["bibliography"]]: assert (ROOT / "nbs" / path).is_file()
    assert "commonmark" not in q["format"] and "metadata-files" not in q
    assert settings["custom_sidebar"] == "True"
    words = [(p.section, p.text) for p in pages(ROOT)]         # its sidebar names every notebook
    assert pages(ROOT)[0].path == "index.ipynb" and len(set(words)) == len(words)


def test_colours_read_well_by_day_and_night():
    def luminance(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))
    css = (ROOT / "nbs/styles.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    colours = {name: (day, night) for name, day, night in found}
    text = [n for n in colours if n not in ("paper", "panel", "line", "wash")]
    assert len(text) > 12
    for name in text:
        for theme in (0, 1):
            for ground in ("paper", "panel"):
                a, b = sorted(luminance(colours[n][theme]) for n in (name, ground))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (name, ground, theme)
