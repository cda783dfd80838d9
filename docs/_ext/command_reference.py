"""Shows what ``farfield COMMAND --help`` prints, for every command there is."""

from __future__ import annotations

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class CommandReference(Directive):
    """``.. command-reference::`` puts a section with the help of each command here."""

    def run(self) -> list[nodes.Node]:
        import typer.main
        from typer.testing import CliRunner

        from farfield.cli import app

        sections: list[nodes.Node] = []
        runner = CliRunner(env={"COLUMNS": "96", "TERMINAL_WIDTH": "96", "NO_COLOR": "1"})
        for name in typer.main.get_command(app).commands:
            section = nodes.section(ids=[f"command-{name}"])
            section += nodes.title(text=f"farfield {name}")
            help_text = runner.invoke(app, [name, "--help"], prog_name="farfield").output
            if not help_text.strip():
                raise self.error(f"`farfield {name} --help` printed nothing")
            section += nodes.literal_block(help_text.strip(), help_text.strip(), language="text")
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True}
