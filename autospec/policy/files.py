"""Reading and writing policy files; how is the business of `autospec.files`."""

from __future__ import annotations

from autospec.errors import PolicyError
from autospec.files import FileKind

_POLICY = FileKind("a policy", PolicyError)
read_json, write_atomically = _POLICY.read, _POLICY.write
