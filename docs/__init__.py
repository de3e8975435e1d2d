"""The documents. A package only so that the example can be run, checked and tested: `python -m docs.example`."""
