"""Without the package that it is for, a door says which one to install."""

import subprocess
import sys

import pytest

from support.paths import ROOT

ABSENT = {"huggingface": ["transformers"], "lightning": ["lightning", "pytorch_lightning"]}


@pytest.mark.parametrize("module", ABSENT)
def test_the_extra_is_named_where_the_package_is_absent(module):
    program = f"""
import sys
for name in {ABSENT[module]!r}:
    sys.modules[name] = None
import diffq_fast.integrations.{module}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=200)
    extra = {"huggingface": "hf", "lightning": "lightning"}[module]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: diffq_fast.integrations.{module} needs"), done.stderr
    assert f"pip install 'diffq_fast[{extra}]'" in last
