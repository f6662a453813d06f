"""Methods by name. A new one is a file with ``@register_method``; one of this program also a word in ``_MODULES``.

A method of your own needs nothing here: ``--method my_package.my_module:my_name`` imports the module, which registers
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frepa.options import Registry

if TYPE_CHECKING:  # the names of methods are needed long before torch is
    from frepa.pretraining.methods.contract import Method, Setting

_MODULES = {
    "frepa": "frepa.pretraining.methods.frepa",
    "mae": "frepa.pretraining.methods.mae",
    "simmim": "frepa.pretraining.methods.masked",
    "mfm": "frepa.pretraining.methods.masked",
    "clip": "frepa.pretraining.methods.clip",
}
#: All of them, as a choice of options.
METHODS: Registry[Method] = Registry("method", "pretraining method", _MODULES, flag="--method ")
register_method = METHODS.register
find_method = METHODS.find


def build_method(name: str, options: Any, setting: Setting) -> Method:
    """The method ``name`` with its options, for a setting.

    Raises:
        InputError: unknown name, or options that do not fit the setting.
    """
    return find_method(name).build(options, setting)
