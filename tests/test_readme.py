"""The README's Python does what its comments say."""

import re

from .conftest import ROOT


def test_plain_python_block(capsys, embedded_model):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "pc.compress(" in block]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*?\)\s+# (.*)", code)
    assert printed[: len(promised)] == promised
