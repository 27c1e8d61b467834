"""Small, for FuzzModule to begin with: compiled as mod.py is."""
import a.b
from ..c import d, e

if a:
    x = (1.5, 2j, b"\xff", "ä", -1, 1 << 40, (None, ...)), a[1:2], a in {"x", 3}


def f(n=0):
    import g
    return lambda: n + g.h
