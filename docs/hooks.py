"""Of mkdocs: the twin's page is twin/README.md, and links into the repository, which a site does
not hold, become paths.
"""

import os
import re

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INCLUDED = {
    "twin.md": "twin/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
HERE = "experiments|twin|configs|examples|tests|rldtf_jax|docs|CITATION"
INTO_REPOSITORY = re.compile(rf"(!?)\[([^\]]+)\]\((?:\.\./)*((?:{HERE})\b[^)#]*)[^)]*\)")


def on_page_markdown(markdown, page, **_):
    if source := INCLUDED.get(page.file.src_uri):
        with open(os.path.join(PROJECT, source), encoding="utf-8") as file:
            markdown = file.read()
    return INTO_REPOSITORY.sub(
        lambda m: m[2] if m[2].strip("`") == m[3] else f"{m[2]} (`{m[3]}`)", markdown
    )
