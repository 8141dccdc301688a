"""The speculative decoder. Words: draft, step, verify, accepted, correction, bonus are defined in `acceptance.py`."""
