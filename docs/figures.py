"""Pictures of the gallery that pyplot does not know."""

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

SHOWN = {}  # by id, and kept alive: an id is not used again


def returned_figures(block, block_vars, gallery_conf):
    """Save the figures that ``gk.plot`` returned in a block: pyplot does not know them, so its scraper does not see them."""
    paths = []
    for figure in list(block_vars["example_globals"].values()):
        known = hasattr(figure, "number")  # given by pyplot
        if isinstance(figure, Figure) and not known and id(figure) not in SHOWN:
            SHOWN[id(figure)] = figure
            paths.append(next(block_vars["image_path_iterator"]))
            figure.savefig(paths[-1], dpi=100)
    return figure_rst(paths, gallery_conf["src_dir"])
