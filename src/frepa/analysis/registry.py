"""Analyses by name. A new one is a file with ``@register_analysis``; one of this program also a word in ``_MODULES``.

An analysis of your own needs nothing here: ``frepa analyze my_package.my_module:my_name`` imports the module, which
registers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from frepa.options import Registry

if TYPE_CHECKING:  # the names of analyses are needed long before torch is
    from frepa.analysis.contract import Analysis

_MODULES = {
    "frequencies": "frepa.analysis.frequencies",
    "cka": "frepa.analysis.cka",
    "histograms": "frepa.analysis.histograms",
    "structures": "frepa.analysis.structures",
    "reconstructions": "frepa.analysis.reconstructions",
    "focal": "frepa.analysis.focal",
    "filtered": "frepa.analysis.filtered",
}
#: All of them, as a choice of options.
ANALYSES: Registry[Analysis] = Registry("kind", "kind of analysis", _MODULES)
register_analysis = ANALYSES.register
find_analysis = ANALYSES.find
