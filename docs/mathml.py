"""Formulas as MathML, made when the pages are built: no script, no network, readable aloud."""

from html import escape

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.writers.html import HTMLTranslator


def mathml(latex: str, *, display: bool) -> str:
    """Return the formula as one ``math`` element, its source kept in ``alttext``."""
    try:
        element = convert(latex, display="block" if display else "inline")
    except Exception as error:
        raise ExtensionError(
            f"formulas must be LaTeX that MathML can say; got {latex!r}"
        ) from error
    return element.replace("<math ", f'<math alttext="{escape(latex, quote=True)}" ', 1)


def _inline(translator: HTMLTranslator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), display=False))
    raise nodes.SkipNode


def _block(translator: HTMLTranslator, node: nodes.math_block) -> None:
    formula = mathml(node.astext(), display=True)
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
