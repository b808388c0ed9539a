"""Makes griffe, which reads the docstrings for the site, know their section "Example"."""

import griffe


class Examples(griffe.Extension):
    """It knows "Examples" alone, and would take one for a remark, its ``>>>`` for a quotation."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
