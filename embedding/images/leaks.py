"""Exceptions that Pillow leaks on corrupt bytes."""

import struct
import zlib

# Found by fuzzing; raised in its source; under `-W error`.
FUZZED = (OSError, SyntaxError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError)
LEAKS = (*FUZZED, LookupError, EOFError, struct.error, zlib.error, Warning)
