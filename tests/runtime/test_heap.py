import subprocess
import sys

import pytest

_FREEING = """
import psutil
from splitter.runtime import heap
{prepare}
def resident():
    return psutil.Process().memory_info().rss
before = resident()
held = bytearray(64_000_000)
full = resident()
del held
print(full - before > 60_000_000, resident() - before > 60_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(("prepare", "kept"), [("", False), ("heap.keep_freed()", True)])
def test_freed_memory_is_kept_when_asked(prepare, kept):
    script = _FREEING.format(prepare=prepare)
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["True", str(kept)]
