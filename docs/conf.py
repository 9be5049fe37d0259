"""Sphinx's settings for the site that tools/website.py builds (`make docs`). Pages are Markdown, and nothing is fetched."""

from samplers import registry

project = "The sampler zoo"
version = release = registry.version()
html_title = f"The sampler zoo {version}"
extensions = ["myst_parser"]
root_doc = "index"
smartquotes = False  # 'auto' is a value that one types
highlight_language = "text"  # a block that names no language is a drawing

myst_heading_anchors = 4  # links to headings, as they work in the files themselves
# Small print has its heading two levels down, and a page may do without some parts of another.
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "default", "github-dark"
