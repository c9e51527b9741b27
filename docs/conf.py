"""How Sphinx builds this site: ``sphinx-build -W -b html docs build/docs``."""

import importlib.metadata

project = "mpbuffer"
copyright = "mpbuffer's contributors, MIT licence"
release = version = importlib.metadata.version("mpbuffer")

extensions = ["sphinx.ext.autodoc", "myst_parser", "numpydoc"]
exclude_patterns: list[str] = []
nitpicky = False

html_theme = "furo"
html_title = f"mpbuffer {version}"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings tell the types
# Of the adapters, whose libraries need not be installed.
autodoc_mock_imports = ["minari", "stable_baselines3", "tensordict", "tianshou", "torch"]
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
