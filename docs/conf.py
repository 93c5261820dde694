"""Sphinx's configuration of this site; ``make docs`` builds it, without a network, and any warning is an error.

The theme is furo: it reads well in light, in dark and on a phone, brings its fonts and scripts along, and depends on
nothing but Sphinx and Beautiful Soup. pydata-sphinx-theme is made for several sites side by side, with a second bar
of navigation, which this one does not fill.

Pages are Markdown (MyST), as they are read on a forge as well. The reference alone is reStructuredText, which is what
docstrings are in. Tutorials are Markdown with cells of code, so that a change of one is read as a change of text; they
run while the site is built, and an error in a cell is an error of the build.
"""

from __future__ import annotations

import os

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

from ika_lightning import __version__

project = "ika_lightning"
copyright = "the authors of ika_lightning, Apache-2.0"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = "ika_lightning"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

# Markdown: mathematics between dollars, definition lists, directives between colons, links to any heading of a page
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# Tutorials run once for each change of their code; what they gave is kept beside the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
# seconds a cell; no tutorial takes a minute of one core, but a build may share its machine
nb_execution_timeout = 900
nb_merge_streams = True
# progress and advice of libraries, with paths of the machine that built the site
nb_output_stderr = "remove"
# tables in what cells display
nb_render_markdown_format = "myst"

# Docstrings are Google's, with sections of our own for shapes and examples without a colon after them.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes"]
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# what Lightning and scikit-learn say of their own methods is in their documentation
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
add_module_names = False

# Links into the documentation of others take their inventories, which take a network: make docs INTERSPHINX=1.
if os.environ.get("INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "torch_geometric": ("https://pytorch-geometric.readthedocs.io/en/latest", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }

# Every name that is spoken of has to lead somewhere, but for:
nitpicky = True
nitpick_ignore_regex = [
    # what others document, where their inventories are not asked for
    (r"py:.*", r"(abc|argparse|collections|matplotlib|numpy|os|pathlib|typing)\..+"),
    (r"py:.*", r"(lightning|optuna|sklearn|torch|torch_geometric|torchmetrics|transformers)\..+"),
    (r"py:class", r"Figure|LightningModule|PreTrainedModel|Tensor"),
    # an alias whose arguments Sphinx takes apart at the comma
    (r"py:class", r"(collections\.abc\.Mapping|tuple)\[str"),
    # types in signatures that nobody has to make or call
    (
        r"py:(class|obj)",
        r"(ika_lightning\.([a-z_]+\.)+)?(_EpochSampler|_Room|Answer|Batch|BatchSampler|Corpus|Data|DecoderState|Encoded"
        r"|Encoder|Examples|Frequencies|FromCheckpoint|Hypothesis|Kind|KernelConv|KernelAttentionEstimator|Labelled"
        r"|LinearState|NodeBatch|NodeEncoder|NodeGraph|PairEncoder|PairTokens|Pairs|Part|Parts|PretrainedClassifier"
        r"|RowBatch|RowPredictions|Rows|(Graph|Sequence)Recording|Names|Sides|Start|T|TableEncoder|TextEncoder|Tokenizer"
        r"|Tokens)",
    ),
]

# `make links` asks for pages of others, which the build never does.
linkcheck_timeout = 30


def _inline(translator: nodes.NodeVisitor, node: nodes.Element) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(translator: nodes.NodeVisitor, node: nodes.Element) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(convert(node.astext(), display="block"))
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Write mathematics as MathML, which browsers draw: Sphinx's own way fetches a script from elsewhere to do so."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_display, None))
    app.config.html_math_renderer = "mathml"
